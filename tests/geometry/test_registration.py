"""Features of generated faces are moved to where they should be; nothing else moves, and nothing folds over."""

import cv2
import numpy as np
import pytest
import torch

from diffdeid.geometry import registration
from diffdeid.geometry.mask import signed_distance
from diffdeid.geometry.registration import FARTHEST

SIZE = 256
WHOLE = np.ones((SIZE, SIZE), np.float32)


def offsets(seen: np.ndarray, meant: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The field `(S, S, 2)` of one face."""
    depth = torch.from_numpy(signed_distance(mask))[None, None]
    return registration.offsets(*(torch.from_numpy(np.float32(marks))[None] for marks in (seen, meant)), depth)[0].numpy()


def displace(picture: torch.Tensor, field: np.ndarray) -> torch.Tensor:
    return registration.displace(picture, torch.from_numpy(field).expand(len(picture), -1, -1, -1))


@pytest.fixture
def meant() -> np.ndarray:
    """A grid of landmarks over the face, and two irises."""
    grid = np.stack(np.meshgrid(np.linspace(60, 196, 26), np.linspace(50, 206, 18)), axis=-1).reshape(-1, 2)
    return np.concatenate([grid, [(96, 100), (160, 100)]])


def picture_of(points: np.ndarray) -> torch.Tensor:
    """A soft spot at each point, `(1, 1, S, S)`."""
    pixels = np.dstack(np.indices((SIZE, SIZE))[::-1]) + 0.5
    spots = [np.exp(-np.square(pixels - point).sum(-1) / 8) for point in points]
    return torch.from_numpy(np.max(spots, axis=0)).float()[None, None]


def spot_near(picture: torch.Tensor, point: np.ndarray) -> np.ndarray:
    """Centre of what is bright within 8 pixels."""
    pixels = np.dstack(np.indices((SIZE, SIZE))[::-1]) + 0.5
    weight = picture[0, 0].numpy().clip(0) * (np.linalg.norm(pixels - point, axis=-1) < 8)
    return (weight[..., None] * pixels).sum((0, 1)) / weight.sum()


def test_marks_in_their_places_move_nothing(meant):
    field = offsets(meant, meant, WHOLE)
    assert not field.any()
    picture = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(displace(picture, field), picture, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shift", [(3, 0), (0, -4), (-2.5, 2.5)])
def test_what_is_seen_lands_where_it_was_meant_to_be(meant, shift):
    seen = meant + shift
    chosen = [5 * 26 + 13, 9 * 26 + 6, 12 * 26 + 20]  # landmarks in the middle of the face
    moved = displace(picture_of(seen[chosen]), offsets(seen, meant, WHOLE))
    for index in chosen:
        assert spot_near(moved, meant[index]) == pytest.approx(meant[index], abs=0.35)


def test_a_mouth_opens(meant):
    """Landmarks that should be farther apart are moved apart, each side by its own offset."""
    seen, middle = meant.copy(), (meant[:468, 1] > 140) & (meant[:468, 1] < 150)
    lower = meant[:468, 1] > 150
    seen[:468][lower, 1] -= 4
    chosen = [np.flatnonzero(lower)[13 + 26], np.flatnonzero(~lower & ~middle)[13 + 26 * 7]]
    moved = displace(picture_of(seen[chosen]), offsets(seen, meant, WHOLE))
    for index in chosen:
        assert spot_near(moved, meant[index]) == pytest.approx(meant[index], abs=0.6)


def test_irises_move_within_faces_that_stay(meant):
    seen = meant.copy()
    seen[468:] += [(3, 0), (0, 2)]
    field = offsets(seen, meant, WHOLE)
    moved = displace(picture_of(seen[468:]), field)
    for index in (468, 469):
        assert spot_near(moved, meant[index]) == pytest.approx(meant[index], abs=0.25)
    far = np.linalg.norm(meant[:468, None] - meant[468:], axis=-1).min(1) > 20  # eye corners are 15 from the centre
    columns, rows = (meant[:468][far] - 0.5).round().astype(int).T
    assert np.abs(field[rows, columns]).max() < 0.01


def test_outside_of_the_mask_nothing_moves(meant):
    mask = cv2.circle(np.zeros((SIZE, SIZE), np.float32), (128, 128), 70, 1, -1)
    field = offsets(meant + 5, meant, mask)
    assert not field[mask == 0].any() and np.abs(field[128, 128] - 5).max() < 0.5
    ring = cv2.dilate(1 - mask, np.ones((3, 3))) * mask > 0
    assert np.abs(field[ring]).max() < 1  # and its border hardly


def test_a_landmark_that_was_mistaken_takes_nobody_along(meant):
    seen = meant.copy()
    seen[200] += 400
    assert np.linalg.norm(offsets(seen, meant, WHOLE), axis=-1).max() < FARTHEST * SIZE / 2


def test_the_field_does_not_depend_on_the_resolution(meant):
    seen = meant + np.random.default_rng(0).normal(0, 2, meant.shape)
    large, small = offsets(seen, meant, WHOLE), offsets(seen / 2, meant / 2, WHOLE[::2, ::2])
    reduced = cv2.resize(large, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA) / 2
    assert small == pytest.approx(reduced, abs=0.1)


def test_nothing_folds_when_irises_go_as_far_as_they_may(meant):
    seen = meant.copy()
    seen[468:] += [(9, 0), (0, -9)]
    field = offsets(seen, meant, WHOLE)
    along_x, along_y = np.gradient(field[..., 0], axis=1), np.gradient(field[..., 1], axis=0)
    assert along_x.min() > -1 and along_y.min() > -1  # neighbours stay in their order


def test_pictures_keep_their_range(meant):
    picture = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).half()
    moved = displace(picture, offsets(meant + 2, meant, WHOLE))
    assert moved.shape == picture.shape and moved.dtype == torch.float32 and moved.isfinite().all()


def test_a_batch_gives_what_its_faces_give_alone(meant):
    rng = np.random.default_rng(0)
    seen, targets = (torch.from_numpy(np.float32([meant + rng.normal(0, 2, meant.shape) for _ in range(3)])) for _ in range(2))
    disc = signed_distance(cv2.circle(np.zeros((SIZE, SIZE), np.float32), (128, 128), 70, 1, -1))
    depths = torch.from_numpy(np.stack([disc, signed_distance(WHOLE), disc]))[:, None]
    together = registration.offsets(seen, targets, depths)
    for row, field in enumerate(together):
        alone = registration.offsets(seen[row, None], targets[row, None], depths[row, None])
        torch.testing.assert_close(field, alone[0], atol=1e-4, rtol=0)
