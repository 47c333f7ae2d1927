"""Open mouths show no teeth where the picture shows none; of a mouth only three colours are read; nothing else changes."""

import numpy as np
import pytest
import torch

from diffdeid.geometry.landmarks import LIPS_INNER
from diffdeid.geometry.mouth import BANDS, LEAST, LIGHTEST, match_mouths

SIZE = 128
HALF = 30, 18  # width and height of a mouth, halved
TEETH, DARK, SKIN = 0.8, -0.9, 0.2


def mouth(centre: tuple[float, float] = (64, 64), height: float = HALF[1]) -> np.ndarray:
    """468 landmarks, of which those of the inner lips are an oval."""
    points = np.zeros((468, 2))
    ring = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    points[list(LIPS_INNER)] = np.stack([centre[0] - HALF[0] * np.cos(ring), centre[1] + height * np.sin(ring)], axis=-1)
    return points


def picture(*bands: float, centre: tuple[float, float] = (64, 64)) -> torch.Tensor:
    """Skin with an open mouth `(1, 3, S, S)`, whose bands from the upper lip to the lower one have these greys."""
    y, x = np.indices((SIZE, SIZE)) + 0.5
    reach = 1 - np.square((x - centre[0]) / HALF[0])
    half = HALF[1] * np.sqrt(reach.clip(1e-6))
    place = ((y - centre[1] + half) / (2 * half) * len(bands)).clip(0, len(bands) - 1).astype(int)
    grey = np.where((np.abs(y - centre[1]) < half) & (reach > 0), np.float32(bands)[place], np.float32(SKIN))
    return torch.from_numpy(grey).expand(1, 3, SIZE, SIZE).clone()


def matched(face, source, marks=None, landmarks=None, front=None, trust=1.0) -> torch.Tensor:
    points = [mouth() if one is None else one for one in (marks, landmarks)]
    front = torch.zeros(1, 1, SIZE, SIZE) if front is None else front
    return match_mouths(face, source, front, *(one[None] for one in points), np.array([trust]))


def column(result: torch.Tensor) -> list[float]:
    """The greys in the middles of the three bands."""
    return [float(result[0, 1, row, 64]) for row in (52, 64, 76)]


def test_a_dark_mouth_gets_no_block_of_teeth():
    result = matched(picture(TEETH), picture(DARK))
    assert max(column(result)) < -0.6
    assert torch.equal(result[..., :40, :], picture(TEETH)[..., :40, :])  # above the lips
    assert torch.equal(result[..., :28], picture(TEETH)[..., :28])  # beside them


def test_teeth_stay_where_the_picture_shows_them():
    above, middle, below = column(matched(picture(TEETH), picture(TEETH, DARK, DARK)))
    assert above > 0.4 and max(middle, below) < -0.6


def test_colours_are_matched_one_by_one():
    source = picture(TEETH)
    source[:, 2] -= 0.4 * (source[:, 2] == TEETH)
    red, _, blue = matched(picture(TEETH), source)[0, :, 64, 64]
    assert red == pytest.approx(TEETH, abs=0.05) and blue == pytest.approx(TEETH - 0.4, abs=0.05)


def test_the_mouth_is_read_where_it_is_in_the_picture():
    source = picture(DARK, centre=(50, 80))
    assert max(column(matched(picture(TEETH), source, landmarks=mouth((50, 80))))) < -0.6


def test_a_dark_place_is_not_lit_up():
    """Noise that is made brighter is no tooth."""
    result = matched(picture(DARK), picture(TEETH))
    assert max(column(result)) <= (DARK + 1) * LIGHTEST - 1 + 1e-6


@pytest.mark.parametrize("height", [LEAST * SIZE / 2 * 0.9, -6], ids=["nearly closed", "crossed"])
@pytest.mark.parametrize("which", ["marks", "landmarks"])
def test_closed_mouths_stay_as_they_are(which, height):
    face = picture(TEETH)
    assert torch.equal(matched(face, picture(DARK), **{which: mouth(height=height)}), face)


@pytest.mark.parametrize("degrees", [-35, 35, 90])
def test_a_tilted_mouth_is_matched_like_an_upright_one(degrees):
    turn = np.deg2rad(degrees)
    points = (mouth() - 64) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + 64
    face = torch.full((1, 3, SIZE, SIZE), TEETH)
    result = matched(face, torch.full_like(face, DARK), points, points)
    ends = 64 + 0.8 * (points[list(LIPS_INNER)[::10]] - 64)  # near the corners of the mouth
    assert all(result[0, 0, int(y), int(x)] < -0.5 for x, y in [*ends, (64, 64)])
    assert (result != face).float().mean() == pytest.approx(
        float((matched(face, torch.full_like(face, DARK)) != face).float().mean()), rel=0.05
    )


def test_what_is_in_front_of_a_mouth_is_no_part_of_it():
    """A white stick before a dark mouth."""
    source, front = picture(DARK), torch.zeros(1, 1, SIZE, SIZE)
    source[..., 50:70], front[..., 50:70] = 1, 1
    assert max(column(matched(picture(TEETH), source, front=front))) < -0.6
    assert max(column(matched(picture(TEETH), source))) > -0.5
    front[..., 40:90] = 1  # and a hand
    assert torch.equal(matched(picture(TEETH), source, front=front), picture(TEETH))


def test_gains_grow_with_the_opening_and_with_the_trust():
    """In a video a mouth that opens slowly, or a head that turns, may not change at once."""
    opened = [{"landmarks": mouth(height=height)} for height in np.linspace(0, 3.5, 15)]
    for options in (opened, [{"trust": trust} for trust in np.linspace(0, 1, 15)]):
        changes = [float((matched(picture(TEETH), picture(DARK), **one) - picture(TEETH)).abs().sum()) for one in options]
        steps = np.diff(changes)
        assert changes[0] == 0 and (steps >= 0).all() and steps.max() < 0.5 * changes[-1]


def test_only_the_mean_colours_of_three_bands_are_read():
    """Another face with another mouth, whose bands have the same means, gives the same result."""
    source, other = picture(-0.2, -0.7, 0.1), picture(-0.2, -0.7, 0.1)
    noise = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) - 0.5
    other[source == SKIN] += noise[source == SKIN]
    halves = 0.2 * picture(*[1, -1] * 3)  # of each band, above and below its middle
    other = torch.where(source == SKIN, other, other + halves)
    results = [matched(picture(TEETH), one) for one in (source, other)]
    assert BANDS == 3
    assert (other - source).abs().max() >= 0.2 and (results[0] - results[1]).abs().max() < 0.08


def test_bands_pass_softly_into_one_another():
    result = matched(picture(TEETH), picture(TEETH, DARK, TEETH))[0, 0, 47:82, 64]
    assert result.diff().abs().max() < 0.6 < result.max() - result.min()


def test_each_face_of_a_batch_is_matched_alone():
    faces, sources = picture(TEETH).repeat(3, 1, 1, 1), torch.cat([picture(DARK), picture(TEETH, DARK), picture(DARK)])
    marks, landmarks = np.stack([mouth()] * 3), np.stack([mouth(), mouth(), mouth(height=0)])
    result = match_mouths(faces, sources, torch.zeros(3, 1, SIZE, SIZE), marks, landmarks, np.ones(3))
    for row in range(3):
        alone = matched(faces[row : row + 1], sources[row : row + 1], landmarks=landmarks[row])
        torch.testing.assert_close(result[row], alone[0])
    assert torch.equal(result[2], faces[2])
