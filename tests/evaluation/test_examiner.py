"""The examiner on rendered heads, whose pose, gaze and expression are known."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffdeid.errors import AssetNotFoundError
from diffdeid.evaluation.examiner import CONTEXT, EMOTIONS, FEATURES, Examiner
from diffdeid.geometry.camera import to_camera
from diffdeid.geometry.eyes import eye_coordinates
from diffdeid.geometry.mask import face_region
from diffdeid.geometry.renderer import render
from diffdeid.io.images import read_image
from diffdeid.metrics.utility import coefficient_distances
from diffdeid.structures import Face, MorphableCoefficients
from tests.tiny import tiny_context_encoder

ROOT = Path(__file__).parents[2]
SIZE = 384


@pytest.fixture(scope="module")
def draw(panel):
    """ρ in parts -> a picture of the mean head."""
    model = panel.examiner.head

    def draw(yaw=0.0, gaze=0.0, **expression):
        rho = MorphableCoefficients.unpack(torch.zeros(1, 261))
        pose = torch.tensor([[0, np.radians(yaw), 0, 0, 0, -1.5]], dtype=torch.float32)
        light = torch.zeros(1, 9, 3)
        light[:, 0], light[:, 2] = 0.7, 0.3
        rho = replace(rho, pose=pose, illumination=light.flatten(1), gaze=torch.tensor([[gaze, 0, gaze, 0]]))
        for unit, value in expression.items():
            rho.expression[0, list(model.config.expression_names).index(unit)] = value
        head = model(rho.shape, rho.expression, rho.albedo)
        posed = [to_camera(points, rho.pose) for points in (head.vertices, head.landmarks)]
        eyes = eye_coordinates(*posed, model.eyeballs, rho.gaze)
        shown = render(posed[0], head.albedo, rho.illumination, model.triangles, SIZE, eyes=eyes)
        picture = torch.where(shown.mask[..., None], shown.image.clamp(0, 1), torch.tensor(0.6))
        return (picture[0] * 255).byte().numpy()

    return draw


def examined(panel, picture):
    face = next(face for face in panel.examiner.analyser(picture) if face.iris is not None)
    return panel.examiner.describe(picture, face)


@pytest.mark.parametrize("yaw", [-20, 15, 25])
def test_a_turned_head_is_measured_in_degrees(panel, draw, yaw):
    distances = coefficient_distances(*(examined(panel, draw(angle)).coefficients for angle in (0, yaw)))
    assert distances["pose"] == pytest.approx(abs(yaw), abs=4)


def test_shifted_irises_are_measured_as_gaze(panel, draw):
    """The attention mesh sees about half of the shift of the irises in a render."""
    left, middle, right = (examined(panel, draw(gaze=gaze)).coefficients for gaze in (-0.12, 0, 0.12))
    distances = coefficient_distances(left, right)
    assert distances["GAZE"] == pytest.approx(0.5 * 2**0.5 * 0.24, rel=0.3)
    assert max(coefficient_distances(middle, side)["GAZE"] for side in (left, right)) < 0.8 * distances["GAZE"]
    assert distances["pose"] < 3


def test_an_open_jaw_is_measured_as_expression(panel, draw):
    still, same, opened = (examined(panel, draw(**units)).coefficients for units in ({}, {}, {"jawOpen": 0.6}))
    assert coefficient_distances(still, same)["EXP"] == 0
    assert coefficient_distances(still, opened)["EXP"] > 0.3


def test_the_demo_photo_is_a_happy_woman(panel, astronaut):
    face = examined(panel, np.asarray(read_image(astronaut).image))
    assert EMOTIONS[face.emotion.argmax()] == "happy"
    assert face.femininity > 0.8 and 25 < face.age < 60
    assert set(face.embeddings) == set(panel.examiner.recognisers)
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in face.embeddings.values())


def test_a_covered_face_is_looked_at_where_it_was(panel, astronaut):
    photo = np.array(read_image(astronaut).image)
    source = examined(panel, photo).face
    x0, y0, x1, y1 = source.box.astype(int)
    photo[y0 - 40 : y1 + 40, x0 - 40 : x1 + 40] = 0
    result = panel.examiner.examine_at(photo, source)
    assert not result.found and np.isnan(result.coefficients).all() and np.isnan(result.age)
    assert all(np.isfinite(vector).all() for vector in result.embeddings.values())


def test_a_further_recogniser_of_arcface_kind_is_named_by_its_file(panel, astronaut, tmp_path):
    shutil.copy(ROOT / "weights/evaluators/faceplugin.onnx", tmp_path / "w600k_r50.onnx")  # which is of that kind
    examiner = Examiner(ROOT / "weights/diffdeid", ROOT / "weights/evaluators", [tmp_path / "w600k_r50.onnx"])
    assert examiner.recognisers == ("faceplugin", "faceres", "w600k_r50", "filter")
    photo = np.asarray(read_image(astronaut).image)
    embeddings = examiner.embed(photo, examined(panel, photo).face.landmarks)
    assert embeddings["w600k_r50"] @ embeddings["faceplugin"] > 0.99  # they differ in the scale of pixels, by 1 in 256


def test_a_graph_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 112, 112\)"):
        Examiner(ROOT / "weights/diffdeid", ROOT / "weights/evaluators", [ROOT / "weights/evaluators/emotion.onnx"])


def test_missing_networks_are_named(tmp_path):
    with pytest.raises(AssetNotFoundError, match="faceplugin.onnx"):
        Examiner(ROOT / "weights/diffdeid", tmp_path)
    with pytest.raises(AssetNotFoundError, match="Packages lack it.*--evaluators"):
        Examiner(ROOT / "weights/diffdeid", tmp_path / "none")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released models, with a small context encoder."""
    folder = tmp_path_factory.mktemp("released")
    for part in (ROOT / "weights/diffdeid").iterdir():
        if part.name != "context_encoder":
            (folder / part.name).symlink_to(part)
    tiny_context_encoder().save_pretrained(folder / "context_encoder")
    return folder


def test_a_folder_with_a_context_encoder_has_it_look_around(released, astronaut):
    examiner, photo = Examiner(released, ROOT / "weights/evaluators"), np.asarray(read_image(astronaut).image)
    assert examiner.onlookers == (FEATURES, CONTEXT)
    faces = examiner.analyser(photo)
    seen = examiner.look_around(photo, faces[0], faces)
    assert {network: vector.shape for network, vector in seen.items()} == {FEATURES: (1280,), CONTEXT: (128,)}
    assert np.linalg.norm(seen[CONTEXT]) == pytest.approx(1, abs=1e-5)
    photo = photo.copy()
    erased = face_region(faces[0].landmarks, 512) > 0
    photo[erased] = np.random.default_rng(0).integers(0, 256, (erased.sum(), 3))
    other = Face(np.float32([0, 0, 60, 90]))
    for network, vector in examiner.look_around(photo, faces[0], faces).items():
        np.testing.assert_array_equal(vector, seen[network], err_msg="erased pixels have an influence")
    hidden = examiner.look_around(photo, faces[0], [other])
    photo[:90, :60] = 255
    for network, vector in examiner.look_around(photo, faces[0], [other]).items():
        np.testing.assert_array_equal(vector, hidden[network], err_msg="pixels of another face have an influence")


def test_a_folder_without_a_context_encoder_has_the_features_alone(released, astronaut, tmp_path):
    for part in released.iterdir():
        if part.name != "context_encoder":
            (tmp_path / part.name).symlink_to(part)
    examiner, photo = Examiner(tmp_path, ROOT / "weights/evaluators"), np.asarray(read_image(astronaut).image)
    assert examiner.onlookers == (FEATURES,) == tuple(examiner.look_around(photo, examiner.analyser(photo)[0], []))
