"""Large faces are refined; all others, and everything around them, stay as they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.refiner import SCALE
from diffdeid.options import DeidentifyOptions
from diffdeid.stages.refine import LARGE, is_large, refine
from diffdeid.structures import FaceJob
from tests.tiny import tiny_pipeline, tiny_refiner

ROOT = Path(__file__).parents[2]
SIZE = 32


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB"))


@pytest.fixture(scope="module")
def face(photo):
    return FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")(photo)[0]


class Noisy(torch.nn.Module):
    """Adds strong noise in colour, the same on each call."""

    dtype = torch.float32

    def forward(self, faces, renders, masks):
        sample = F.interpolate(faces, scale_factor=SCALE, mode="bicubic")
        noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
        return type("Output", (), {"sample": sample + 0.3 * noise})


def scene(sharp: bool, colour: bool) -> tuple[torch.Tensor, ...]:
    """Generated faces, sources of twice the size, depths and maps; the face is a square."""
    generator = torch.Generator().manual_seed(1)
    source = torch.rand(1, 3 if colour else 1, 128, 128, generator=generator).expand(1, 3, 128, 128) * 2 - 1
    if not sharp:
        source = F.interpolate(F.avg_pool2d(source, 16), scale_factor=16, mode="bicubic").clamp(-1, 1)
    depths = torch.full((1, 1, 128, 128), -8.0)
    depths[..., 16:112, 16:112] = 24
    return torch.zeros(1, 3, 64, 64), source, depths, torch.zeros(1, 9, 64, 64)


def inner(pictures: torch.Tensor) -> torch.Tensor:
    return pictures[..., 32:96, 32:96]


def test_a_face_is_as_sharp_as_its_picture_at_most():
    sharp, blurred = (inner(refine(Noisy(), *scene(sharp, colour=True))).std() for sharp in (True, False))
    assert sharp > 0.25 and blurred < 0.1


def test_a_face_of_a_black_and_white_picture_gets_no_colour():
    def colour(picture):
        return (picture.amax(1) - picture.amin(1)).mean()

    assert colour(inner(refine(Noisy(), *scene(sharp=True, colour=False)))) < 1e-5
    assert colour(inner(refine(Noisy(), *scene(sharp=True, colour=True)))) > 0.1


def test_only_faces_with_more_pixels_than_their_crop_are_large():
    assert is_large(np.array([[1 / LARGE, 0, 3], [0, 1 / LARGE, 4.0]]))
    assert not is_large(np.array([[1.01 / LARGE, 0, 3], [0, 1.01 / LARGE, 4.0]]))


@torch.no_grad()
def test_a_refined_face_lies_where_the_others_lie(photo, face):
    options, plain, refining = DeidentifyOptions(num_inference_steps=2), tiny_pipeline(), tiny_pipeline(refiner=tiny_refiner())
    (without,), (within,) = (
        next(pipe.engine.deidentify([FaceJob(photo, face, (), (0,))], options)) for pipe in (plain, refining)
    )
    assert without.patch.shape == (SIZE, SIZE, 3) and within.patch.shape == (SCALE * SIZE, SCALE * SIZE, 3)
    np.testing.assert_allclose(within.matrix, SCALE * without.matrix)
    assert within.opacity.shape == within.patch.shape[:2]
    coarse = within.opacity.reshape(SIZE, SCALE, SIZE, SCALE).mean((1, 3))
    assert np.abs(coarse - without.opacity).mean() < 0.05 and not coarse[without.opacity == 0].max() > 0.3


@torch.no_grad()
def test_a_face_is_where_it_was_after_its_resolution_is_doubled(photo, face):
    """With a refiner that adds nothing, all but the sharpness is as without one, to a fraction of a pixel."""
    silent = tiny_refiner()
    for parameter in silent.body[-1].parameters():
        parameter.zero_()
    options = DeidentifyOptions(num_inference_steps=2)
    (without,), (within,) = (
        next(pipe.engine.deidentify([FaceJob(photo, face, (), (0,))], options))
        for pipe in (tiny_pipeline(), tiny_pipeline(refiner=silent))
    )
    small, before = within.patch.reshape(SIZE, SCALE, SIZE, SCALE, 3).mean((1, 3)), without.patch.astype(float)
    apart = [np.abs(np.roll(small, shift, axis=(0, 1)) - before)[8:24, 8:24].mean() for shift in (0, 1, -1)]
    assert apart[0] < 0.5 * min(apart[1:])


@torch.no_grad()
def test_large_and_small_faces_share_a_batch(photo, face):
    small, scale = np.asarray(Image.fromarray(photo).resize((64, 64))), 64 / 512
    shrunk = replace(face, box=face.box * scale, landmarks=face.landmarks * scale, iris=face.iris * scale)
    jobs = [FaceJob(small, shrunk, (), (1,)), FaceJob(photo, face, (), (0,))]
    engine, options = tiny_pipeline(refiner=tiny_refiner()).engine, DeidentifyOptions(num_inference_steps=2)
    together = [outcome for (outcome,) in engine.deidentify(jobs, options)]
    alone = [outcome for job in jobs for (outcome,) in engine.deidentify([job], options)]
    assert [len(outcome.patch) for outcome in together] == [SIZE, SCALE * SIZE]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.patch.astype(int) - other.patch).max() <= 2
        np.testing.assert_allclose(one.opacity, other.opacity, atol=1e-5)


@torch.no_grad()
def test_a_small_face_is_the_same_with_and_without_a_refiner(photo, face):
    small, scale = np.asarray(Image.fromarray(photo).resize((64, 64))), 64 / 512
    shrunk = replace(face, box=face.box * scale, landmarks=face.landmarks * scale, iris=face.iris * scale)
    options = DeidentifyOptions(num_inference_steps=2)
    jobs = [FaceJob(small, shrunk, (), (0,))]
    (without,), (within,) = (
        next(pipe.engine.deidentify(jobs, options)) for pipe in (tiny_pipeline(), tiny_pipeline(refiner=tiny_refiner()))
    )
    assert np.array_equal(without.patch, within.patch) and np.array_equal(without.opacity, within.opacity)


@torch.no_grad()
def test_a_face_whose_refiner_fails_is_covered(photo, face):
    broken = tiny_refiner()
    broken.body[0].weight.fill_(torch.nan)
    (outcome,) = next(
        tiny_pipeline(refiner=broken).engine.deidentify(
            [FaceJob(photo, face, (), (0,))], DeidentifyOptions(num_inference_steps=2)
        )
    )
    assert "not finite" in outcome.reason
