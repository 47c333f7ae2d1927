import numpy as np
import pytest

from diffdeid.geometry.hand import FINGERS, hand_silhouette, palm_length

SIZE = 128


@pytest.fixture
def flat() -> np.ndarray:
    """A flat hand, fingers up, whose palm is 40 pixels long."""
    roots = np.array([[40, 85], [50, 60], [60, 60], [70, 62], [80, 66]], float)
    ways = np.array([[-10, -9], [-3, -14], [0, -15], [2, -13], [5, -10]], float)
    fingers = [root + step * way for root, way in zip(roots, ways, strict=True) for step in range(4)]
    return np.array([[62, 100], *fingers])


def test_every_landmark_is_inside(flat):
    silhouette = hand_silhouette(flat, SIZE)
    columns, rows = flat.astype(int).T
    assert silhouette[rows, columns].all() and silhouette.max() == 1
    assert sorted({number for finger in FINGERS for number in finger}) == list(range(21))


def test_it_moves_and_grows_with_the_hand(flat):
    silhouette = hand_silhouette(flat, SIZE)
    np.testing.assert_array_equal(hand_silhouette(flat + [7, -11], SIZE)[:-11, 7:], silhouette[11:, :-7])
    larger = hand_silhouette(2 * flat, 2 * SIZE)
    assert larger.sum() / silhouette.sum() == pytest.approx(4, rel=0.1)


def test_a_palm_seen_from_its_end_is_not_thin(flat):
    foreshortened = flat * [1, 0.1]
    assert palm_length(foreshortened) > 0.6 * palm_length(flat)


def test_what_lies_outside_is_cut_off(flat):
    assert not hand_silhouette(flat + 10 * SIZE, SIZE).any()
    assert hand_silhouette(flat - [0, 70], SIZE).any()
    assert hand_silhouette(1e4 * (flat - 64) + 64, SIZE).shape == (SIZE, SIZE)
