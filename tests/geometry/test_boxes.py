"""Boxes: how far two agree."""

import numpy as np
import pytest

from diffdeid.geometry.boxes import bounding_box, intersection_over_union

BOX = np.array([0.0, 0, 2, 1])


def test_intersection_over_union():
    assert intersection_over_union(BOX, BOX) == 1
    assert intersection_over_union(BOX, BOX + [1, 0, 1, 0]) == pytest.approx(1 / 3)
    assert intersection_over_union(BOX, BOX + 5) == 0


def test_bounding_box_holds_all_points():
    points = np.random.default_rng(0).normal(size=(20, 3))
    box = bounding_box(points)
    assert (points[:, :2] >= box[:2] - 1e-6).all() and (points[:, :2] <= box[2:] + 1e-6).all()
    assert set(np.float32(points[:, :2]).ravel()) >= set(box)
