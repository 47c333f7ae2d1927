"""Results that do not look like a face, and faces that cannot be replaced, are refused."""

import numpy as np
import pytest
import torch

from diffdeid.stages.verify import ROUGH_STRAYING, STRAYING, allowed_straying, gapes, look, strays, turned_away
from diffdeid.structures import Face

MEANT = np.stack(np.meshgrid(np.linspace(8, 56, 26), np.linspace(6, 58, 18)), axis=-1).reshape(468, 2).astype(np.float32)
NOTHING = np.zeros((64, 64), np.float32)


def test_features_elsewhere_than_they_were_meant_to_be_are_a_problem():
    size = np.ptp(MEANT, axis=0).max()
    share, problem = strays(MEANT + np.float32([0.9 * STRAYING * size, 0]), MEANT, NOTHING, STRAYING)
    assert share == pytest.approx(0.9, abs=1e-3) and problem is None
    share, problem = strays(MEANT + np.float32([0.0154 * size, 0]), MEANT, NOTHING, STRAYING)
    assert share == pytest.approx(1.1, abs=1e-3) and "1.5%" in problem
    assert strays(MEANT * np.nan, MEANT, NOTHING, STRAYING)[1] is not None


def test_features_behind_something_do_not_count():
    hand = NOTHING.copy()
    hand[:, 30:] = 1
    seen = np.where(MEANT[:, :1] > 31, MEANT + 9, MEANT)
    assert strays(seen, MEANT, NOTHING, STRAYING)[1] is not None
    assert strays(seen, MEANT, hand, STRAYING)[1] is None
    assert strays(seen, MEANT, np.ones_like(hand), STRAYING) == (0, None)  # nothing of the new face shows
    assert strays(None, MEANT, NOTHING, STRAYING) == (0, None)  # that no face is found is said elsewhere


def test_heads_that_look_away_too_far_are_named():
    turns = [[0, 0, 0], [0, 0.8, 0], [0, 0.9, 0], [0, -1.5, 0], [-0.8, 0, 0], [-1.2, 0, 0], [0, 0, 3.0], 3 * [torch.nan]]
    problems = turned_away(torch.cat([torch.tensor(turns), torch.zeros(8, 3)], dim=1), 50)
    assert [problem is not None for problem in problems] == [False, False, True, True, False, True, False, True]
    assert "86°" in problems[3]
    profile, behind = turned_away(torch.tensor([[0, 1.6, 0, 0, 0, 0], [0, -1.9, 0, 0, 0, 0]]))
    assert profile is None and "109°" in behind


def test_mouths_that_are_open_too_wide_are_named():
    points = np.zeros((468, 3), np.float32)
    points[152, 1] = 100  # the chin
    for gap, expected in ((0, False), (14, False), (16, True)):
        points[14, 1] = gap  # the lower lip
        assert (gapes(points) is not None) == expected


def test_heads_that_are_turned_away_are_looked_at_by_the_head_mesh():
    class Analyser:
        def find_again(self, images, landmarks):
            return [Face(np.zeros(4), landmarks=points if image.any() else None)
                    for image, points in zip(images, landmarks, strict=True)]  # fmt: skip

        def find_in_any_pose(self, images, landmarks):
            return [Face(np.zeros(4), landmarks=points + 1 if image.any() else None)
                    for image, points in zip(images, landmarks, strict=True)]  # fmt: skip

    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    before = [np.full((468, 3), float(number)) for number in range(4)]
    seen = look(Analyser(), [white, black, white, black], before, [False, False, True, True])
    np.testing.assert_array_equal(seen[0], before[0])
    np.testing.assert_array_equal(seen[2], before[2] + 1)
    assert seen[1] is None and seen[3] is None
    assert look(None, [black], before[:1], [True]) == before[:1]


def test_more_straying_is_allowed_the_farther_a_head_is_turned():
    limits = [allowed_straying(angle) for angle in (0, 30, 35, 45, 54.9, 56, 90)]
    assert limits[:3] == [STRAYING] * 3 and limits == sorted(limits) and limits[3] > STRAYING
    assert allowed_straying(45, 2 * STRAYING) == pytest.approx(2 * limits[3])
    doubted = [allowed_straying(angle, 1.5 * STRAYING, 0.04) for angle in (0, 30, 54.9, 56)]  # as those of frames
    assert doubted == [ROUGH_STRAYING] * 4
    assert allowed_straying(45, STRAYING, 0.01) == pytest.approx(limits[3] + 0.01)
    size = np.ptp(MEANT, axis=0).max()
    shifted = MEANT + 1e-3 * size
    assert strays(shifted, MEANT, NOTHING, allowed_straying(torch.nan))[1] is not None  # where nobody knows, no face passes
