"""Metrics over time, on textures with a known motion and people who change at known frames."""

import cv2
import numpy as np
import pytest

from diffdeid.metrics import video
from diffdeid.structures import MorphableCoefficients

LIMIT = 0.5
RNG = np.random.default_rng(0)
TEXTURE = cv2.resize(RNG.integers(0, 256, (50, 50, 3), np.uint8), (200, 200), interpolation=cv2.INTER_CUBIC)
MASK = np.zeros((120, 120), bool)
MASK[30:90, 30:90] = True
EXPRESSION, POSE, GAZE = (int(sum(MorphableCoefficients.SIZES[:part])) for part in (1, 4, 5))


def people(*order: int, noise: float = 0.05) -> np.ndarray:
    """Unit embeddings `(T, 128)` of orthogonal people, by number, with noise of their own in each frame."""
    rng = np.random.default_rng(1)
    vectors = np.eye(128)[list(order)] + rng.normal(0, noise, (len(order), 128))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def frame(shift: float, light: float = 0.0) -> np.ndarray:
    """`(120, 120, 3)` of the texture, `shift` pixels to the right of where it was at 0."""
    moved = cv2.warpAffine(TEXTURE, np.float64([[1, 0, shift - 40], [0, 1, -40]]), (120, 120))
    return (moved.astype(np.float32) * 0.7 + 20 + light).round().astype(np.uint8)


def test_one_still_person_is_consistent():
    assert video.identity_consistency(people(*[0] * 5, noise=0)) == pytest.approx({"mean": 1, "min": 1, "to mean": 1})


def test_consistency_of_two_orthogonal_people():
    found = video.identity_consistency(people(0, 0, 1, 1, noise=0))
    assert found == pytest.approx({"mean": 2 / 3, "min": 0, "to mean": 0.5**0.5})


def test_one_frame_has_no_consistency():
    assert np.isnan(list(video.identity_consistency(people(0)).values())).all()


def test_one_frame_that_shows_the_source_is_the_maximum():
    assert video.source_similarity(people(0, 0, 0, 0, noise=0), people(1, 2, 0, 1, noise=0)) == {"mean": 0.25, "max": 1.0}


@pytest.mark.parametrize(
    ("order", "switches"),
    [
        ([0] * 30, 0),
        ([0] * 15 + [1] * 15, 1),
        ([0] * 10 + [1] * 10 + [0] * 10, 2),
        ([0] * 6 + [1] * 6 + [2] * 6 + [3] * 6, 3),
        ([0] * 10 + [1] + [0] * 9 + [2] + [0] * 9, 0),  # two bad frames
        ([1] + [0] * 20 + [1], 0),  # at the very ends
        ([0] * 12 + [2] + [0] * 2 + [1] * 8 + [3] + [1] * 6, 1),  # a change and two bad frames
        ([0] * 3 + [1] * 12, 1),
        ([0] * 3, 0),
        ([], 0),
    ],
)
@pytest.mark.parametrize("noise", [0, 0.06])  # at 0.06 the cosine of two frames of one person is 0.68
def test_changes_of_person_are_counted(order, switches, noise):
    assert video.identity_switches(people(*order, noise=noise), LIMIT) == switches


def test_a_clip_flickers_as_much_as_itself():
    pair = frame(0), frame(3)
    result, own = video.warping_error(pair, pair, MASK)
    assert result == own < 0.02


def test_what_moves_with_the_source_does_not_flicker():
    """Without the flow, the same pictures would differ far more."""
    real, anon = (frame(0), frame(4)), (255 - frame(0), 255 - frame(4))
    assert video.warping_error(real, anon, MASK)[0] < 0.02
    assert np.abs(anon[0][MASK].astype(float) - anon[1][MASK]).mean() / 255 > 0.1


def test_added_flicker_is_measured_in_full():
    still = frame(0), frame(0)
    assert video.warping_error(still, (frame(0), frame(0, light=25.5)), MASK) == pytest.approx((0.1, 0), abs=0.003)
    moving = video.warping_error((frame(0), frame(3)), (frame(0), frame(3, light=25.5)), MASK)
    assert moving[0] == pytest.approx(0.1, abs=0.01) and moving[1] < 0.02


def test_flicker_outside_the_mask_and_where_nothing_is_visible_before_does_not_count():
    changed = frame(0)
    changed[:25] = 0
    assert video.warping_error((frame(0), frame(0)), (frame(0), changed), MASK)[0] < 1e-3
    assert np.isnan(video.warping_error((frame(0), frame(0)), (frame(0), changed), np.zeros_like(MASK))).all()


def test_frames_in_which_the_result_stays_while_the_source_moves_flicker():
    assert video.warping_error((frame(0), frame(4)), (frame(0), frame(0)), MASK)[0] > 0.05


@pytest.fixture(scope="module")
def landmarks():
    """`(12, 468, 2)` of a face of 100 pixels that moves along two different curves."""
    t = np.linspace(0, 5, 12)[:, None]
    path = np.stack([20 * np.sin(t + RNG.uniform(0, 3, 468)), 10 * np.cos(2 * t + RNG.uniform(0, 3, 468))], axis=-1)
    return RNG.uniform(0, 100, (468, 2)) + path


@pytest.mark.parametrize(("scale", "correlation"), [(1, 1), (0.3, 1), (-1, -1), (0, 0)])
def test_landmarks_that_follow_oppose_or_stay(landmarks, scale, correlation):
    mean = landmarks.mean(0)
    assert video.landmark_correlation(landmarks, 7 + mean + scale * (landmarks - mean)) == pytest.approx(correlation, abs=1e-6)


def test_trajectories_that_stand_still_in_the_source_are_left_out(landmarks):
    source, result = landmarks.copy(), landmarks.copy()
    source[:, :200] = source[:1, :200]
    assert video.landmark_correlation(source, result) == pytest.approx(1)
    assert np.isnan(video.landmark_correlation(np.repeat(source[:1], 12, axis=0), result))
    assert np.isnan(video.landmark_correlation(landmarks[:2], landmarks[:2]))


@pytest.mark.parametrize(
    ("cosine", "start"), [(video.expression_cosine, EXPRESSION), (video.pose_cosine, POSE), (video.gaze_cosine, GAZE)]
)
def test_each_cosine_sees_its_own_coefficients(cosine, start):
    source = np.zeros((3, 261), np.float32)
    source[:, [EXPRESSION, POSE, GAZE]] = 0.2
    result = source.copy()
    assert cosine(source, result) == pytest.approx(1)
    result[1, start + 1] = 0.2  # 45°
    assert cosine(source, result) == pytest.approx((2 + 0.5**0.5) / 3)
    others = {video.expression_cosine, video.pose_cosine, video.gaze_cosine} - {cosine}
    assert all(other(source, result) == pytest.approx(1) for other in others)


def test_irises_that_look_the_other_way():
    source, result = np.zeros((2, 2, 261))
    source[:, GAZE::2], result[:, GAZE::2] = 0.1, -0.1
    assert video.gaze_cosine(source, result) == pytest.approx(-1)


def test_frames_without_a_face_are_left_out():
    source, result = np.ones((2, 3, 261))
    result[1] = np.nan
    assert video.pose_cosine(source, result) == pytest.approx(1)
    assert np.isnan(video.pose_cosine(source[:1], result[1:2]))
    assert np.isnan(video.pose_cosine(source[:0], result[:0]))
