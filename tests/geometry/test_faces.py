"""Whether detections are one face or two does not depend on which box lies inside which."""

from dataclasses import replace

import numpy as np
import pytest

from diffdeid.geometry.boxes import bounding_box
from diffdeid.geometry.faces import is_reached, merge, same_face
from diffdeid.structures import Face

ANGLES = np.linspace(0, 2 * np.pi, 468, endpoint=False)
DISC = np.stack([np.cos(ANGLES), np.sin(ANGLES), 0 * ANGLES], axis=1).astype(np.float32)


def face(x, y, size, score=0.9, landmarks=True):
    points = np.float32([x, y, 0]) + size / 2 * DISC
    return Face(bounding_box(points), score, landmarks=points if landmarks else None)


def test_a_small_face_in_the_corner_of_a_large_box_stays():
    """For example a child in front of a parent's shoulder: the hull of the large face does not reach there."""
    large = face(200, 200, 270)
    for small in (face(95, 95, 59), face(95, 95, 59, landmarks=False)):
        assert (small.box[:2] > large.box[:2]).all() and (small.box[2:] < large.box[2:]).all()
        assert merge([large, small]) == [large, small]


def test_a_face_that_was_seen_twice_is_one():
    once, again = face(100, 100, 80), face(104, 98, 84, score=0.7)
    assert same_face(once, again) and merge([again, once]) == [once]
    unsure = replace(again, landmarks=None, score=0.99)  # landmarks count for more than scores
    assert merge([unsure, once]) == [once]


def test_two_who_are_cheek_to_cheek_are_two():
    one, other = face(100, 100, 80), face(150, 100, 80)
    assert not same_face(one, other) and len(merge([one, other])) == 2


@pytest.mark.parametrize("known", [True, False])
def test_what_lies_in_a_face_that_is_replaced_or_covered_needs_no_care_of_its_own(known):
    large = face(200, 200, 270, landmarks=known)
    nose = face(200, 210, 40, landmarks=False)
    assert is_reached(nose, large) and merge([large, nose]) == [large]
    beside = face(350, 200, 40, landmarks=False)
    assert not is_reached(beside, large) and len(merge([large, beside])) == 2


def test_the_largest_comes_first():
    faces = [face(100 * number, 50, size) for number, size in enumerate((20, 60, 40), 1)]
    assert [np.ptp(one.box[::2]) for one in merge(faces)] == [60, 40, 20]
