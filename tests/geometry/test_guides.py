import numpy as np
import pytest

from diffdeid.geometry.guides import eye_map, feature_lines, mouth_map, openings
from diffdeid.geometry.landmarks import LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_EYE
from diffdeid.geometry.mask import face_region, mouth_region

SIZE = 96
WIDTH = 20  # of an eye
AHEAD = np.zeros(4)
DRAWINGS = {
    "feature lines": feature_lines,
    "eye map": lambda points, size: eye_map(points, AHEAD, size),
    "openings": lambda points, size: openings(points, AHEAD, size),
    "face": face_region,
    "mouth": mouth_region,
}


def face(seed: int = 0) -> np.ndarray:
    """468 points in an oval around (48, 48), with round eyes and a mouth."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, 468), np.sqrt(rng.uniform(0, 1, 468))
    points = np.stack([48 + 28 * radius * np.cos(angle), 48 + 34 * radius * np.sin(angle)], axis=-1)
    points[10], points[152] = (48, 14), (48, 82)
    ring = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = WIDTH / 2 * np.stack([np.cos(ring), np.sin(ring)], axis=-1)
    points[list(RIGHT_EYE)], points[list(LEFT_EYE)] = (34, 38) + circle * [-1, 1], (62, 38) + circle
    ring = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    points[list(LIPS_OUTER)] = (48, 66) + np.stack([-10 * np.cos(ring), 5 * np.sin(ring)], axis=-1)
    points[list(LIPS_INNER)] = (48, 66) + np.stack([-8 * np.cos(ring), 3 * np.sin(ring)], axis=-1)
    return points


def centroid(picture: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    return np.array([(x * picture).sum(), (y * picture).sum()]) / picture.sum()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_drawings_are_between_zero_and_one(draw):
    picture = draw(face(), SIZE)
    assert picture.shape == (SIZE, SIZE) and picture.dtype == np.float32
    assert picture.min() == 0 and picture.max() == 1


@pytest.mark.parametrize("draw", [face_region, mouth_region])
def test_regions_are_zero_or_one(draw):
    assert set(np.unique(draw(face(), SIZE))) == {0, 1}


@pytest.mark.parametrize("seed", range(5))
def test_the_face_contains_every_landmark_and_the_mouth(seed):
    points = face(seed)
    region = face_region(points, SIZE)
    column, row = np.floor(points).astype(int).T
    assert region[row, column].all()
    assert (region >= mouth_region(points, SIZE)).all()


def test_the_face_is_grown_by_its_margin():
    points = face()
    rows = np.flatnonzero(face_region(points, SIZE)[:, 48])
    assert rows[0] == pytest.approx(14 - 0.07 * 68, abs=1.5) and rows[-1] + 1 == pytest.approx(82 + 0.07 * 68, abs=1.5)


def test_the_mouth_contains_the_lips_and_little_else():
    region = mouth_region(face(), SIZE)
    column, row = np.floor(face()[list(LIPS_OUTER)]).astype(int).T
    assert region[row, column].all()
    assert region.sum() < 2 * np.pi * 10 * 5


@pytest.mark.parametrize("gaze", [(0, 0, 0, 0), (0.2, 0, -0.1, 0), (0, 0.15, 0, -0.2), (-0.1, 0.1, 0.1, 0.1)])
@pytest.mark.parametrize("slant", [0.0, 0.4])
def test_the_iris_follows_the_gaze(gaze, slant):
    cos, sin = np.cos(slant), np.sin(slant)
    turn = np.array([[cos, -sin], [sin, cos]])
    drawn = eye_map((face() - 48) @ turn.T + 48, np.array(gaze), SIZE)
    iris = (drawn - 0.51).clip(0)
    back = (np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1) + 0.5 - 48) @ turn + 48
    for middle, offset, side in (((34, 38), gaze[:2], back[..., 0] < 48), ((62, 38), gaze[2:], back[..., 0] > 48)):
        expected = turn @ (middle + WIDTH * np.array(offset) - 48) + 48
        np.testing.assert_allclose(centroid(iris * side), expected, atol=0.2)


def test_the_iris_stays_inside_the_eye():
    looking_away = eye_map(face(), np.array([0.5, 0.5, 0.5, 0.5]), SIZE)
    assert (looking_away[eye_map(face(), AHEAD, SIZE) == 0] == 0).all()


def test_the_mouth_is_drawn_as_far_as_it_is_open():
    wide, narrow = face(), face()
    narrow[list(LIPS_INNER), 1] = 66 + (narrow[list(LIPS_INNER), 1] - 66) / 3
    opened, closing = mouth_map(wide, SIZE), mouth_map(narrow, SIZE)
    assert opened.max() == closing.max() == 128 / 255
    assert opened.sum() == pytest.approx(np.pi * 8 * 3 / 2, rel=0.3) and closing.sum() < opened.sum() / 1.5
    assert (opened <= mouth_region(wide, SIZE)).all()


def test_a_mouth_in_profile_is_drawn_though_its_far_half_lies_over_the_near_half():
    folded = face()
    lips = list(LIPS_INNER)
    folded[lips, 0] = 50 - np.abs(50 - folded[lips, 0])  # the far corner lies where the middle is
    near = face()[lips, 0] < 49
    column, row = np.floor((folded[lips][near] + (48, 66)) / 2).astype(int).T  # between the near lips and the middle
    assert (mouth_map(folded, SIZE)[row, column] == 128 / 255).all()


def test_openings_are_those_of_eyes_and_mouth():
    drawn = openings(face(), AHEAD, SIZE)
    np.testing.assert_array_equal(drawn[:58], eye_map(face(), AHEAD, SIZE)[:58])
    np.testing.assert_array_equal(drawn[58:], mouth_map(face(), SIZE)[58:])


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_whole_pixel_shifts_shift_the_drawing(draw):
    moved = draw(face() + [3, -2], SIZE)
    np.testing.assert_allclose(moved[:-2, 3:], draw(face(), SIZE)[2:, :-3], atol=1 / 255)


@pytest.mark.parametrize("draw", [DRAWINGS["feature lines"], DRAWINGS["eye map"]])
def test_drawings_follow_fractions_of_a_pixel(draw):
    moved = centroid(draw(face() + [0.25, 0.5], SIZE)) - centroid(draw(face(), SIZE))
    np.testing.assert_allclose(moved, [0.25, 0.5], atol=0.1)


def test_drawings_are_centred_where_the_eyes_are():
    np.testing.assert_allclose(centroid(eye_map(face(), AHEAD, SIZE)), (48, 38), atol=0.15)


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("shift", [(-40, 0), (0, 45), (35, -45)])
def test_a_face_over_the_border_is_cut_off(draw, shift):
    room = 47
    whole = draw(face() + shift + room, SIZE + 2 * room)
    different = np.abs(draw(face() + shift, SIZE) - whole[room:-room, room:-room]) > 0.02
    assert different.mean() < 0.01  # OpenCV rounds where it cuts


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_nothing_is_drawn_of_a_distant_face(draw):
    assert not draw(face() + [1e5, -1e5], SIZE).any()


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_coinciding_landmarks_draw_next_to_nothing(draw):
    assert draw(np.full((468, 2), 48.0), SIZE).sum() < 30
