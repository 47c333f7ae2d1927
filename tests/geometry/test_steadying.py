"""The filter against flicker: still where nothing happens, open to what does, and moving with the face."""

import numpy as np
import pytest

from diffdeid.geometry.steadying import steady

RNG = np.random.default_rng(0)
SOURCE = np.kron(RNG.integers(0, 255, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
FACE = (SOURCE / 255).astype(np.float32)


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
    filtered = steady(np.roll(FACE, 2, axis=1), FACE, moved, SOURCE)
    assert np.abs(filtered - np.roll(FACE, 2, axis=1))[:, 8:-8].mean() < 0.02
