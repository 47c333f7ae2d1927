"""The filter against flicker: still where nothing happens, open to what does, and moving with the face."""

import numpy as np
import pytest
from scipy.ndimage import shift

from diffdeid.temporal import steadying

RNG = np.random.default_rng(0)
SOURCE = np.kron(RNG.integers(0, 255, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
FACE = (SOURCE / 255).astype(np.float32)
LANDMARKS = RNG.uniform(24, 104, (468, 2)).astype(np.float32)


def steady(face, before, source, source_before, moved=(0, 0)):
    """The second of two faces, filtered, with landmarks that moved along."""
    first = steadying.begin(before, source_before, LANDMARKS)
    return steadying.steady(face, source, LANDMARKS + np.float32(moved), first).face


def test_equal_faces_stay():
    assert steady(FACE, FACE, SOURCE, SOURCE) == pytest.approx(FACE, abs=1e-3)


def test_flicker_is_taken_out():
    flickering = [np.clip(FACE + offset, 0, 1) for offset in (0.03, -0.03) * 10]
    face, steps = flickering[0], []
    for generated in flickering[1:]:
        before, face = face, steady(generated, face, SOURCE, SOURCE)
        steps.append(np.abs(face - before).mean())
    assert np.mean(steps) < 0.1 * np.abs(flickering[1] - flickering[0]).mean()


def test_what_really_changes_is_shown_at_once():
    opened = FACE.copy()
    opened[60:100, 40:90] = 1 - opened[60:100, 40:90].round()
    filtered = steady(opened, FACE, SOURCE, SOURCE)
    assert np.abs(filtered - opened)[70:90, 50:80].mean() < 0.02
    assert np.abs(filtered - FACE)[:30].mean() < 0.02


def test_the_face_before_moves_as_the_source_does():
    """A picture that was not generated anew but moved by 2 pixels is not smeared."""
    moved = np.roll(SOURCE, 2, axis=1)
    filtered = steady(np.roll(FACE, 2, axis=1), FACE, moved, SOURCE, moved=(2, 0))
    assert np.abs(filtered - np.roll(FACE, 2, axis=1))[:, 8:-8].mean() < 0.02


def test_landmarks_lead_where_the_flow_sees_nothing_move():
    """A cheek without a texture: the face before goes where the landmarks say, and is there when it is generated there."""
    plain, errors = np.full_like(SOURCE, 128), []
    for led in (0.4, 0):
        filtered = steadying.begin(FACE, plain, LANDMARKS)
        for frame in range(1, 13):
            generated = shift(FACE, (0, 0.4 * frame, 0), order=1, mode="wrap")
            filtered = steadying.steady(generated, plain, LANDMARKS + np.float32([led * frame, 0]), filtered)
        errors.append(np.abs(filtered.face - generated)[32:96, 32:96].mean())
    assert errors[0] < 0.6 * errors[1]


def test_landmarks_that_tremble_do_not_shake_the_face():
    """The source stands still, so landmarks that move by a pixel to and fro hardly move the face."""
    filtered, steps = steadying.begin(FACE, SOURCE, LANDMARKS), []
    for frame in range(1, 12):
        after = steadying.steady(FACE, SOURCE, LANDMARKS + np.float32([frame % 2, 0]), filtered)
        steps.append(np.abs(after.face - filtered.face).mean())
        filtered = after
    assert np.mean(steps) < 0.3 * np.abs(shift(FACE, (0, 1, 0), order=1, mode="wrap") - FACE).mean()


def test_a_landmark_that_went_elsewhere_than_the_picture_is_not_followed_far():
    """Landmarks that are hidden may be found in wrong places."""
    assert np.abs(steady(FACE, FACE, SOURCE, SOURCE, moved=(20, 0)) - FACE).mean() < 0.05


def test_a_feature_that_is_painted_a_little_aside_is_not_seen_twice():
    aside = np.roll(FACE, 3, axis=1)
    filtered = steady(aside, FACE, SOURCE, SOURCE)
    nearest = min(np.abs(filtered - np.roll(FACE, aside_by, axis=1))[:, 8:-8].mean() for aside_by in range(4))
    assert nearest < 0.3 * np.abs(aside - FACE)[:, 8:-8].mean()


def test_a_face_that_is_aside_for_long_gets_there():
    """The filter must not hold landmarks back from where they were put."""
    aside, filtered = np.roll(FACE, 3, axis=1), FACE
    for _ in range(30):
        filtered = steady(aside, filtered, SOURCE, SOURCE)
    assert np.abs(filtered - aside)[:, 8:-8].mean() < 0.25 * np.abs(aside - FACE)[:, 8:-8].mean()


def test_a_face_stays_sharp():
    filtered = FACE
    for moved in range(1, 20):
        filtered = steady(
            np.roll(FACE, moved, axis=1),
            filtered,
            np.roll(SOURCE, moved, axis=1),
            np.roll(SOURCE, moved - 1, axis=1),
            moved=(1, 0),
        )
    assert np.abs(np.diff(filtered, axis=0))[:, 24:-24].mean() > 0.9 * np.abs(np.diff(FACE, axis=0))[:, 24:-24].mean()
