"""What makes a result, or a face that is to be replaced, one that nobody would take for a face."""

import numpy as np
import torch

from diffdeid.stages.verify import STRAYING, gapes, strays, turned_away

MEANT = np.stack(np.meshgrid(np.linspace(8, 56, 26), np.linspace(6, 58, 18)), axis=-1).reshape(468, 2).astype(np.float32)
NOTHING = np.zeros((64, 64), np.float32)


def test_features_elsewhere_than_they_were_meant_to_be_are_a_problem():
    size = np.ptp(MEANT, axis=0).max()
    assert strays(MEANT + np.float32([0.9 * STRAYING * size, 0]), MEANT, NOTHING, STRAYING) is None
    assert "1.5%" in strays(MEANT + np.float32([0.0154 * size, 0]), MEANT, NOTHING, STRAYING)
    assert strays(MEANT * np.nan, MEANT, NOTHING, STRAYING) is not None


def test_features_behind_something_do_not_count():
    hand = NOTHING.copy()
    hand[:, 30:] = 1
    seen = np.where(MEANT[:, :1] > 31, MEANT + 9, MEANT)
    assert strays(seen, MEANT, NOTHING, STRAYING) is not None
    assert strays(seen, MEANT, hand, STRAYING) is None
    assert strays(seen, MEANT, np.ones_like(hand), STRAYING) is None  # nothing of the new face shows
    assert strays(None, MEANT, NOTHING, STRAYING) is None  # that no face is found is said elsewhere


def test_heads_that_look_away_too_far_are_named():
    angles = torch.tensor([[0, 0, 0], [0, 0.8, 0], [0, 0.9, 0], [0, -1.5, 0], [-0.8, 0, 0], [-1.2, 0, 0], [0, 0, 3.0]])
    problems = turned_away(torch.cat([angles, torch.zeros(7, 3)], dim=1))
    assert [problem is not None for problem in problems] == [False, False, True, True, False, True, False]
    assert "86°" in problems[3]


def test_mouths_that_are_open_too_wide_are_named():
    points = np.zeros((468, 3), np.float32)
    points[152, 1] = 100  # the chin
    for gap, expected in ((0, False), (14, False), (16, True)):
        points[14, 1] = gap  # the lower lip
        assert (gapes(points) is not None) == expected
