"""Heads that are turned away beside those that are not, and faces that are not replaced at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffdeid import DeidentifyOptions
from diffdeid.engine.faces import Engine
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.stages.components import Painted
from diffdeid.stages.compose import lay_before_backdrop
from diffdeid.stages.verify import EXACT_TURN, seem_pets
from diffdeid.structures import Covered, Face, FaceBatch, FaceJob
from tests.conftest import ROOT
from tests.tiny import tiny_pipeline

OPTIONS = DeidentifyOptions(num_inference_steps=2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    analyser = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")
    return tiny_pipeline(face_analyser=analyser).engine


@pytest.fixture(scope="module")
def job(engine, astronaut) -> FaceJob:
    picture = np.asarray(Image.open(astronaut).convert("RGB"))
    return FaceJob(picture, engine.face_analyser(picture)[0])


@pytest.fixture(scope="module")
def both(engine, job) -> FaceBatch:
    """The demo face, said to look at the camera, and said to look far away from it."""
    with torch.no_grad():
        batch = engine.reconstruct([job, job], OPTIONS)
    batch.coefficients.pose[1, :3] = torch.tensor([0, np.deg2rad(EXACT_TURN + 5), 0])
    return batch


@pytest.fixture(scope="module")
def painted(both) -> list[Painted]:
    """The photo itself, as if it had been painted a hundredth of a crop beside its place."""
    marks = both.landmarks[0, :, :2] + np.float32([0.01 * both.images.shape[-1], 0])
    marks = np.concatenate([marks, marks[[159, 386]]])
    return [Painted(both.pick([row]), both.images[row], marks, torch.ones(9, *both.images.shape[2:])) for row in range(2)]


@torch.no_grad()
def test_what_is_painted_of_heads_turned_away_stays_where_it_is(engine, both, painted):
    frontal, turned = engine.register(painted)
    assert (frontal != both.images[0]).any() and torch.equal(turned, both.images[1])


@torch.no_grad()
def test_teeth_of_frontal_heads_are_painted_only_where_the_picture_shows_some(engine, both, painted):
    """The photo smiles with its teeth. It is checked as if it had been painted for a photo with a dark mouth."""
    x, y = both.landmarks[0, [13, 14], :2].mean(0).round().astype(int)  # between the lips
    around = (..., slice(y - 5, y + 6), slice(x - 8, x + 9))  # of crops of 32 pixels
    images = both.images.clone()
    images[around] = torch.where(images[around] > 0.2, -0.9, images[around])
    dark = replace(both, images=images)
    seen = []
    for batch in (both, dark):
        some = [replace(one, source=batch.pick([row])) for row, one in enumerate(painted)]
        faces = engine._match_mouths(both.images, some, batch.images, torch.zeros_like(batch.depths), [0.0, EXACT_TURN])
        assert torch.equal(faces[1], both.images[1])
        seen.append(faces[0, :, y - 1 : y + 2, x - 3 : x + 4].mean())
    assert seen[0] > seen[1] + 0.3


@torch.no_grad()
def test_features_of_heads_turned_away_are_seen_by_the_head_mesh(engine, painted, monkeypatch):
    asked = []
    for name in ("find_again", "find_in_any_pose"):
        find = getattr(FaceAnalyserModel, name)
        monkeypatch.setattr(
            FaceAnalyserModel, name, lambda *given, name=name, find=find: asked.append((name, len(given[1]))) or find(*given)
        )
    exact, rough = engine.verify(painted, [one.face for one in painted], [torch.zeros(1, 128)] * 2, straying=0.001)
    assert asked == [("find_again", 1), ("find_in_any_pose", 1)]
    assert "not where they were meant" in exact.problem and rough.problem is None  # a few hundredths are allowed


@torch.no_grad()
def test_what_is_erased_reaches_farther_where_landmarks_are_doubtful(engine, job):
    sure, doubtful = engine.reconstruct([job, replace(job, face=replace(job.face, doubt=0.05))], OPTIONS).masks
    assert (doubtful >= sure).all() and 1.05 < doubtful.sum() / sure.sum() < 1.3


@torch.no_grad()
def test_nobody_is_cast_for_a_pet(engine, both, monkeypatch):
    monkeypatch.setattr(engine.context_encoder, "pet", lambda images: torch.full((len(images),), 0.9))
    view = both.pick([0])
    cast = engine.cast(view, view.embedding, None, OPTIONS, 0)
    assert isinstance(cast, Covered) and "pet" in cast.reason and cast.attempts == 0


def test_without_a_context_encoder_nobody_is_a_pet():
    assert seem_pets(None, torch.zeros(2, 3, 8, 8)) == [None, None]


def test_a_face_says_nothing_of_doubts_by_itself():
    assert Face(np.zeros(4)).doubt == 0


def test_only_heads_that_look_to_the_side_are_laid_before_any_backdrop():
    faces, images, depths, maps = (
        torch.rand(2, 3, 64, 64),
        torch.zeros(2, 3, 64, 64),
        torch.ones(2, 1, 64, 64),
        -torch.ones(2, 9, 64, 64),
    )
    images[0, :, ::2] = 1  # stripes, which are not plain
    depths[..., :8] = -1
    maps[:, 4:7] = 0
    maps[:, 4, :, 32:] = 1  # a head in the right half
    frontal, aside = lay_before_backdrop(faces, images, depths, maps, [30.0, 40.0])
    assert torch.equal(frontal, faces[0])
    assert (aside[:, :, 8:24] == 0).all() and torch.equal(aside[:, :, 40:], faces[1, :, :, 40:])
