"""Pictures under review: what is corrected is rendered again, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffdeid import DeidentifyOptions, NoFaceFoundError
from diffdeid.detection import describe
from diffdeid.engine.faces import Engine
from diffdeid.engine.review import PictureReview
from diffdeid.face_lists import ListedFace
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.structures import Face, Replaced

OPTIONS = DeidentifyOptions(num_inference_steps=1)
SIDE = 200
BESIDE = (2 * SIDE + 12.0, 10.0, 2 * SIDE + 42.0, 45.0)  # a place of the third portrait that shows no face


@pytest.fixture(scope="module")
def picture(astronaut) -> np.ndarray:
    """Three portraits side by side."""
    portrait = np.asarray(Image.open(astronaut).convert("RGB").crop((124, 0, 324, SIDE)))
    return np.concatenate([portrait] * 3, axis=1)


@pytest.fixture(scope="module")
def listed(pipeline, picture) -> list[ListedFace]:
    """The faces of the three portraits, from the left."""
    faces = sorted(pipeline.detect_faces(picture), key=lambda face: face.box[0])
    return [describe(face, number, 0.7) for number, face in enumerate(faces, start=1)]


@pytest.fixture(scope="module")
def review(pipeline, picture) -> PictureReview:
    return PictureReview(pipeline.engine, picture, OPTIONS, seed=3)


@pytest.fixture(scope="module")
def before(review, listed, picture) -> np.ndarray:
    result, reports = review.render(listed)
    assert [report.method for report in reports.values()] == ["diffusion"] * 3
    assert changed(picture, result) == [True] * 3
    return result


@pytest.fixture
def rendered(monkeypatch) -> list[tuple[float, ...]]:
    """The boxes of the faces that the engine is given."""
    boxes, deidentify = [], Engine.deidentify

    def watched(self, jobs, options):
        boxes.extend(tuple(job.face.box.tolist()) for job in jobs)
        return deidentify(self, jobs, options)

    monkeypatch.setattr(Engine, "deidentify", watched)
    return boxes


def parts(picture) -> list[np.ndarray]:
    """The parts of a picture that show the three portraits."""
    return np.split(picture, 3, axis=1)


def changed(before, after) -> list[bool]:
    return [bool((one != other).any()) for one, other in zip(parts(before), parts(after), strict=True)]


def corrected(listed, number, **values):
    return [replace(face, **values) if face.id == number else face for face in listed]


def test_another_candidate_is_rendered_and_nothing_else(pipeline, review, before, listed, picture, rendered):
    other = corrected(listed, 2, candidate=1)
    after, _ = review.render(other)
    assert len(rendered) == 1 and changed(before, after) == [False, True, False] and changed(picture, after)[1]
    again, _ = review.render(listed)  # taken back
    assert len(rendered) == 1
    np.testing.assert_array_equal(again, before)
    fresh, _ = PictureReview(pipeline.engine, picture, OPTIONS, seed=3).render(other[::-1])  # as the command line does it
    np.testing.assert_array_equal(fresh, after)
    one, two = (review._outcomes[listed[1].box, 2, candidate] for candidate in (0, 1))
    assert isinstance(two, Replaced) and (one.identity.embedding @ two.identity.embedding.T).item() < 0.99


def test_a_box_that_is_moved_is_rendered_and_nothing_else(review, before, listed, rendered):
    after, _ = review.render(corrected(listed, 2, box=tuple(side + 8 for side in listed[1].box)))
    assert len(rendered) == 1 and changed(before, after) in ([False, True, False], [False] * 3)


@pytest.mark.parametrize("how", ["keep", "deleted"])
def test_a_face_that_is_left_as_it_is_takes_nothing_from_others(review, before, listed, picture, rendered, how):
    after, reports = review.render(corrected(listed, 1, **{how: True}))
    assert not rendered and changed(before, after) == [True, False, False] and changed(picture, after) == [False, True, True]
    methods = {number: report.method for number, report in reports.items()}
    assert methods == ({1: "kept"} if how == "keep" else {}) | {2: "diffusion", 3: "diffusion"}


def test_a_box_that_is_drawn_where_nobody_is_seen_is_covered(review, before, listed, rendered):
    after, reports = review.render([*listed, ListedFace(9, BESIDE)])
    assert not rendered and changed(before, after) == [False, False, True] and reports[9].method == "fill"


def test_a_drawn_box_whose_landmarks_are_those_of_a_neighbour_is_covered_itself(pipeline, listed, picture, monkeypatch):
    """If it were not, the neighbour would be replaced twice, and the face in the box would stay."""
    complete = FaceAnalyserModel._complete
    (neighbour,) = pipeline.detect_faces(picture, [Face(np.float32(listed[0].box))])

    def wander(self, *given):
        return [replace(face, landmarks=neighbour.landmarks, iris=neighbour.iris) for face in complete(self, *given)]

    monkeypatch.setattr(FaceAnalyserModel, "_complete", wander)
    result, reports = PictureReview(pipeline.engine, picture, OPTIONS, seed=3).render([ListedFace(1, BESIDE)])
    assert reports[1].method == "fill" and changed(picture, result) == [False, False, True]


def test_a_list_without_a_face_says_nothing(review, listed):
    with pytest.raises(NoFaceFoundError):
        review.render([replace(face, deleted=True) for face in listed])
