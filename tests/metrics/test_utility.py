import numpy as np
import pytest

from diffdeid.metrics.utility import DEGREES_PER_EYE_WIDTH, coefficient_distances, gaze_direction, landmark_error
from diffdeid.structures import MorphableCoefficients

STARTS = dict(
    zip(("alpha", "beta", "delta", "gamma", "pose", "gaze"), np.cumsum((0, *MorphableCoefficients.SIZES[:-1])), strict=True)
)
SOURCE = np.random.default_rng(0).normal(0, 0.1, 261).astype(np.float32)


def changed(part: str, offset: int, by: float) -> np.ndarray:
    result = SOURCE.copy()
    result[STARTS[part] + offset] += by
    return result


def test_nothing_moves_between_a_face_and_itself():
    assert coefficient_distances(SOURCE, SOURCE) == pytest.approx(
        dict.fromkeys(("EXP", "POSE", "GAZE", "pose", "gaze"), 0), abs=1e-4
    )


@pytest.mark.parametrize(("part", "name"), [("beta", "EXP"), ("pose", "POSE"), ("gaze", "GAZE")])
def test_each_distance_sees_its_own_coefficients(part, name):
    distances = coefficient_distances(SOURCE, changed(part, 1, 0.2))
    assert distances[name] == pytest.approx(0.2, abs=1e-6)
    assert all(distances[other] == pytest.approx(0, abs=1e-6) for other in {"EXP", "POSE", "GAZE"} - {name})


def test_identity_skin_and_light_are_no_utility():
    for part in ("alpha", "delta", "gamma"):
        assert sum(coefficient_distances(SOURCE, changed(part, 0, 3)).values()) == pytest.approx(0, abs=1e-5)


def test_a_turn_about_the_vertical_axis_in_degrees():
    source, result = np.zeros(261), np.zeros(261)
    source[STARTS["pose"] + 1], result[STARTS["pose"] + 1] = np.radians(10), np.radians(-15)
    assert coefficient_distances(source, result)["pose"] == pytest.approx(25)


def test_moving_the_head_aside_is_no_turn():
    distances = coefficient_distances(SOURCE, changed("pose", 3, 0.5))
    assert distances["pose"] == pytest.approx(0, abs=1e-4) and distances["POSE"] == pytest.approx(0.5)


def test_gaze_in_degrees_is_the_mean_of_both_eyes():
    one = coefficient_distances(SOURCE, changed("gaze", 0, 0.1))["gaze"]
    assert one == pytest.approx(0.1 * DEGREES_PER_EYE_WIDTH / 2, abs=1e-5)


def test_eyes_that_turn_against_the_head_look_where_it_looked():
    ahead, aside, turned = (np.zeros(261) for _ in range(3))
    aside[[STARTS["gaze"], STARTS["gaze"] + 2]] = 20 / DEGREES_PER_EYE_WIDTH
    turned[STARTS["pose"] + 1] = np.radians(-20)
    np.testing.assert_allclose(gaze_direction(ahead), (0, 0, 1), atol=1e-6)
    np.testing.assert_allclose(gaze_direction(aside), (np.sin(np.radians(20)), 0, np.cos(np.radians(20))), atol=1e-6)
    np.testing.assert_allclose(gaze_direction(aside + turned), (0, 0, 1), atol=1e-6)
    aside[[STARTS["gaze"] + 1, STARTS["gaze"] + 3]] = 0.1  # down
    assert gaze_direction(aside)[1] < 0 and np.linalg.norm(gaze_direction(aside)) == pytest.approx(1)


def test_what_is_not_found_is_not_a_number():
    assert all(np.isnan(value) for value in coefficient_distances(SOURCE, np.full(261, np.nan)).values())


def test_landmark_error_is_in_eye_distances():
    source = np.random.default_rng(0).normal(size=(468, 3))
    source[33], source[263] = (0, 0, 0), (30, 40, 0)
    assert landmark_error(source, source + [3, 4, 9]) == pytest.approx(0.1)
