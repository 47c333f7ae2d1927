"""The colour of a face is matched to the skin around it, and depends on nothing else."""

import cv2
import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from diffdeid.geometry import seam
from diffdeid.geometry.mask import signed_distance
from diffdeid.geometry.pixels import to_tensor

SIZE = 256
MASK = cv2.ellipse(np.zeros((SIZE, SIZE), np.float32), (128, 130), (80, 105), 0, 0, 360, 1, -1)
ERASED = MASK > 0
SKIN = np.array([0.72, 0.52, 0.42])
HAIR = np.array([0.12, 0.09, 0.08])
TINTS = {"redder": (1.15, 1, 0.95), "darker": (0.85, 0.85, 0.85), "lighter and paler": (1.1, 1.12, 1.2)}


def head(colour=SKIN) -> np.ndarray:
    """A picture of skin in soft light, `(S, S, 3)` float32."""
    y, x = np.indices((SIZE, SIZE)) / SIZE - 0.5
    return ((1 + 0.25 * x - 0.2 * y)[..., None] * colour).astype(np.float32)


def bytes_of(picture: np.ndarray) -> np.ndarray:
    return (255 * picture).round().astype(np.uint8)


def tinted(picture: np.ndarray, tint) -> np.ndarray:
    return np.float32(picture * tint).clip(0, 1)


def tensors(face: np.ndarray, source: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A face in [0, 1], the bytes of its crop and its mask, as the tensors that stages pass on."""
    depth = torch.from_numpy(signed_distance(mask))[None, None]
    return torch.from_numpy(2 * face - 1).permute(2, 0, 1)[None], to_tensor([source]), depth


def picture_of(face: torch.Tensor) -> np.ndarray:
    return (face[0].permute(1, 2, 0).numpy() + 1) / 2


def match(face: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return picture_of(seam.match(*tensors(face, source, mask)))


def match_steadily(face: np.ndarray, source: np.ndarray, mask: np.ndarray, before: seam.ColourCast | None):
    matched, cast = seam.match_steadily(*tensors(face, source, mask), before)
    return picture_of(matched), cast


def difference(face: np.ndarray, wanted: np.ndarray, where: np.ndarray) -> float:
    """Mean CIEDE2000."""
    return float(deltaE_ciede2000(rgb2lab(face), rgb2lab(wanted))[where].mean())


@pytest.mark.parametrize("tint", TINTS.values(), ids=TINTS)
def test_a_cast_is_taken_out_of_the_whole_face(tint):
    face, edge = tinted(head(), tint), ERASED & (signed_distance(MASK) < 10)
    matched = match(face, bytes_of(head()), MASK)
    assert difference(face, head(), edge) > 3 and difference(face, head(), ERASED) > 3
    assert difference(matched, head(), edge) < 0.7 and difference(matched, head(), ERASED) < 1


def test_of_a_step_at_the_border_a_part_is_taken_for_shading():
    """Heads are shaded at jaws and hairlines, so a face may rightly be darker than the skin painted around it."""
    face = np.where(ERASED[..., None], tinted(head(), 0.85), head())
    changed = match(face, bytes_of(head()), MASK)[ERASED] / face[ERASED]
    assert 1.01 < changed.mean() < 1.12


def test_a_face_that_fits_stays():
    face = head() + np.random.default_rng(0).normal(0, 0.01, (SIZE, SIZE, 3)).astype(np.float32)
    changed = np.abs(match(face, bytes_of(head()), MASK) - face)
    assert changed[ERASED].mean() < 0.5 / 255 and changed.max() < 2 / 255


@pytest.mark.parametrize("colour", [HAIR, (0.2, 0.3, 0.7), (0.95, 0.95, 0.95)], ids=["hair", "clothes", "background"])
def test_what_is_no_skin_changes_nothing(colour):
    """This also holds where the network painted something else there, or skin."""
    face, source = head(), head(np.array(colour))
    assert np.abs(match(face, bytes_of(source), MASK) - face).max() < 2 / 255
    face = np.where(ERASED[..., None], face, tinted(source, (0.8, 0.9, 1)))
    assert np.abs(match(face, bytes_of(source), MASK) - face).max() < 2 / 255


def test_skin_speaks_for_the_border_where_hair_is():
    """A visible neck is enough: forehead and cheeks under hair get its tone."""
    hair = np.arange(SIZE)[:, None, None] < 180
    source = np.where(hair, head(HAIR), head())
    face = np.where(hair & ~ERASED[..., None], head(HAIR), tinted(head(), TINTS["redder"]))
    matched = match(face, bytes_of(source), MASK)
    assert difference(matched, head(), ERASED) < 0.35 * difference(face, head(), ERASED)


def test_a_beard_outside_does_not_darken_the_face():
    beard = np.arange(SIZE)[:, None, None] > 180
    source = np.where(beard, head(np.array([0.35, 0.2, 0.1])), head())
    assert np.abs(match(head(), bytes_of(source), MASK) - head()).max() < 3 / 255


def test_no_more_than_so_much_is_corrected():
    gain = match(tinted(head(), 0.3), bytes_of(head()), MASK)[ERASED].mean() / tinted(head(), 0.3)[ERASED].mean()
    assert gain < 1.5


def test_pixels_under_the_mask_have_no_influence():
    face, source = tinted(head(), TINTS["redder"]), bytes_of(head())
    other = np.where(ERASED[..., None], np.random.default_rng(0).integers(0, 256, source.shape, np.uint8), source)
    np.testing.assert_array_equal(match(face, source, MASK), match(face, other, MASK))


def test_pixels_outside_the_mask_stay():
    face = tinted(head(), TINTS["darker"])
    np.testing.assert_allclose(match(face, bytes_of(head()), MASK)[~ERASED], face[~ERASED], atol=1e-6)


def test_eyes_stay_dark_and_light_stays_where_it_is():
    """The correction is smooth: edges within the face keep their contrast."""
    drawn = cv2.circle(head(), (100, 110), 8, (0.02, 0.02, 0.02), -1)
    matched = match(tinted(drawn, TINTS["darker"]), bytes_of(head()), MASK)
    assert matched[110, 100].max() < 0.04
    gain = (matched / tinted(drawn, TINTS["darker"]))[ERASED & (drawn[..., 0] > 0.1)]
    assert gain.std(axis=0).max() < 0.02


@pytest.mark.parametrize("mask", [np.zeros_like(MASK), np.ones_like(MASK)], ids=["nothing erased", "all erased"])
def test_without_a_border_nothing_changes(mask):
    face = tinted(head(), TINTS["redder"])
    np.testing.assert_allclose(match(face, bytes_of(head()), mask), face, atol=1e-6)


def test_any_resolution_gives_the_same():
    face, source = tinted(head(), TINTS["redder"]), bytes_of(head())
    small = match(face[::2, ::2], source[::2, ::2], MASK[::2, ::2])
    assert np.abs(match(face, source, MASK)[::2, ::2] - small)[ERASED[::2, ::2]].max() < 2 / 255


def test_in_time_a_constant_cast_is_kept():
    face, source, before = tinted(head(), TINTS["redder"]), bytes_of(head()), None
    for _ in range(5):
        matched, before = match_steadily(face, source, MASK, before)
        np.testing.assert_allclose(matched, match(face, source, MASK), atol=1e-5)


def test_in_time_a_cast_that_flickers_is_steadied():
    rng, source, before, alone, steadied = np.random.default_rng(0), bytes_of(head()), None, [], []
    for _ in range(20):
        face = tinted(head(), 1 + rng.normal(0, 0.05, 3))
        alone.append((match(face, source, MASK) / face)[ERASED].mean(0))
        matched, before = match_steadily(face, source, MASK, before)
        steadied.append((matched / face)[ERASED].mean(0))
    assert np.abs(np.diff(steadied, axis=0)).mean() < 0.2 * np.abs(np.diff(alone, axis=0)).mean()


def test_in_time_what_is_hidden_is_remembered():
    """With a hand or a scarf in front of the border, the frame itself gives no evidence, but those before it do."""
    face, source = tinted(head(), TINTS["redder"]), bytes_of(head())
    matched, before = match_steadily(face, source, MASK, None)
    hidden, _ = match_steadily(face, bytes_of(head(np.array([0.1, 0.2, 0.6]))), MASK, before)
    assert np.abs(hidden - matched).max() < 2 / 255


def test_a_batch_gives_what_its_faces_give_alone():
    singles = [
        tensors(tinted(head(), tint), bytes_of(head(colour)), mask)
        for tint, colour, mask in zip(TINTS.values(), (SKIN, HAIR, SKIN), (MASK, MASK, np.zeros_like(MASK)), strict=True)
    ]
    together = seam.match(*(torch.cat(parts) for parts in zip(*singles, strict=True)))
    for one, alone in zip(together, singles, strict=True):
        torch.testing.assert_close(one, seam.match(*alone)[0], atol=1e-5, rtol=0)


def test_faces_in_black_and_white_pictures_have_no_colour():
    generator = torch.Generator().manual_seed(0)
    faces, sources = (torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    depths = torch.full((3, 1, 32, 32), -1.0)
    depths[..., 8:24, 8:24] = 1
    outside = (depths[:2] <= 0).float()
    sources[:2] += outside * (sources[:2, :1] - sources[:2])  # two are grey, but for what is erased
    depths[1] = 1  # of one nothing else is seen
    result = seam.without_colour(faces, sources, depths)
    assert torch.equal(result[0, 0], result[0, 1]) and torch.equal(result[0, 0], result[0, 2])
    torch.testing.assert_close(result[0, 0], (faces[0] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0))
    assert torch.equal(result[1:], faces[1:])
