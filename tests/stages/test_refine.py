"""Large faces are refined; all others, and everything around them, stay as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffdeid.geometry.pixels import to_tensor
from diffdeid.geometry.sharpness import soften
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.refiner import SCALE, RefinerModel
from diffdeid.options import DeidentifyOptions, VideoOptions
from diffdeid.stages import components
from diffdeid.stages import refine as refining
from diffdeid.stages.refine import LARGE, is_large, refine
from diffdeid.structures import FaceJob
from diffdeid.training.losses import lattice_loss
from tests.conftest import ROOT
from tests.tiny import tiny_pipeline, tiny_refiner

SIZE = 32


@pytest.fixture(scope="module")
def photo(astronaut) -> np.ndarray:
    return np.asarray(Image.open(astronaut).convert("RGB"))


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


def scene(sharp: bool, colour: bool, size: int = 64) -> tuple[torch.Tensor, ...]:
    """Generated faces, sources of twice the size, depths and maps; the face is a square."""
    generator, side = torch.Generator().manual_seed(1), 2 * size
    source = torch.rand(1, 3 if colour else 1, side, side, generator=generator).expand(1, 3, side, side) * 2 - 1
    if not sharp:
        source = F.interpolate(F.avg_pool2d(source, 16), scale_factor=16, mode="bicubic").clamp(-1, 1)
    depths = torch.full((1, 1, side, side), -side / 16)
    depths[..., side // 8 : -side // 8, side // 8 : -side // 8] = 3 * side / 16
    return torch.zeros(1, 3, size, size), source, depths, torch.zeros(1, 9, size, size)


class Striped(torch.nn.Module):
    """Adds faint stripes of two pixels."""

    def forward(self, faces, renders, masks):
        sample = F.interpolate(faces, scale_factor=SCALE, mode="bicubic")
        return type("Output", (), {"sample": sample + 0.05 * (-1.0) ** torch.arange(sample.shape[-1])})


def inner(pictures: torch.Tensor) -> torch.Tensor:
    return pictures[..., 32:96, 32:96]


def test_a_face_is_as_sharp_as_its_picture_at_most():
    sharp, blurred = (inner(refine(Noisy(), *scene(sharp, colour=True))).std() for sharp in (True, False))
    assert sharp > 0.25 and blurred < 0.1


def test_detail_that_the_picture_lacks_in_the_finest_band_alone_is_blurred():
    """The picture has strong stripes of 16 pixels, and the face gets faint ones of 2."""
    faces, source, depths, maps = scene(sharp=True, colour=True, size=256)
    coarse = (0.4 * torch.sin(torch.arange(512) * torch.pi / 8)).expand(source.shape)
    kept, blurred = (inner(refine(Striped(), faces, one, depths, maps)).std() for one in (source, coarse))
    assert kept > 0.05 and blurred < 0.8 * kept
    alone = (0.08 * (-1.0) ** torch.arange(512)).expand(source.shape)
    assert torch.equal(soften(alone, coarse, depths), alone)  # the coarser band does not see it


def test_a_face_of_a_black_and_white_picture_gets_no_colour():
    def colour(picture):
        return (picture.amax(1) - picture.amin(1)).mean()

    assert colour(inner(refine(Noisy(), *scene(sharp=True, colour=False)))) < 1e-5
    assert colour(inner(refine(Noisy(), *scene(sharp=True, colour=True)))) > 0.1


def test_only_faces_with_enough_pixels_are_large():
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
def test_all_faces_are_sharpened(photo, face, monkeypatch):
    """A stand-in for the unsharp mask that paints everything grey."""
    small, scale = np.asarray(Image.fromarray(photo).resize((64, 64))), 64 / 512
    shrunk = replace(face, box=face.box * scale, landmarks=face.landmarks * scale, iris=face.iris * scale)
    for module in (components, refining):
        monkeypatch.setattr(module, "sharpen", lambda faces, depths: torch.zeros_like(faces))
    engine, options = tiny_pipeline(refiner=tiny_refiner()).engine, DeidentifyOptions(num_inference_steps=2)
    for picture, found in ((small, shrunk), (photo, face)):
        (outcome,) = next(engine.deidentify([FaceJob(picture, found, (), (0,))], options))
        assert np.ptp(outcome.patch) == 0


@torch.no_grad()
def test_frames_of_videos_are_not_refined(photo, face):
    engine, jobs = tiny_pipeline(refiner=tiny_refiner()).engine, [FaceJob(photo, face)]
    assert engine.reconstruct(jobs, DeidentifyOptions(), may_refine=True).crops[0].finer.shape == (SCALE * SIZE, SCALE * SIZE, 3)
    reference = engine.reconstruct(jobs, DeidentifyOptions())  # as a stand-in of a video is cast
    frame = engine.follow([photo], [face], reference.coefficients, VideoOptions())
    assert reference.crops[0].finer is None and frame.crops[0].finer is None


@torch.no_grad()
def test_the_shipped_refiner_adds_detail_but_no_lattice(photo):
    """It sees a photo shrunk to half, in either precision."""
    target = to_tensor([photo[20:212, 130:322]])
    shrunk, mask = F.avg_pool2d(target, SCALE), torch.ones(1, 1, 96, 96)
    refiner = RefinerModel.from_pretrained(ROOT / "weights/diffdeid/refiner", torch_dtype=torch.float32).eval()
    refined = refiner(shrunk, torch.zeros_like(shrunk), mask).sample
    enlarged = F.interpolate(shrunk, scale_factor=SCALE, mode="bicubic")
    edges = [one.mean(1).diff(dim=-1).abs().mean() for one in (target, enlarged, refined)]
    assert 1.1 * edges[1] < edges[2] < 1.5 * edges[0]
    everywhere = torch.ones(1, 1, 192, 192)
    assert all(lattice_loss(refined, everywhere, side) < lattice_loss(target, everywhere, side) + 0.1 for side in (2, 4, 8))
    half = refiner.to(torch.bfloat16)(shrunk, torch.zeros_like(shrunk), mask).sample
    assert (half - refined).abs().max() < 0.1 and (half - refined).abs().mean() < 1 / 127.5


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
