import numpy as np
import pytest

from diffdeid.geometry.boxes import part_of
from diffdeid.geometry.cover import cover, cover_box, silhouette
from diffdeid.structures import Face

BOXES = [(40, 30, 70, 65), (-20, -20, 30, 30), (50, 40, 50.4, 40.4), (-500, -500, 900, 900), (300, 300, 350, 350)]
OVAL = np.stack([np.cos(np.linspace(0, 6, 468)), np.sin(np.linspace(0, 6, 468)), np.zeros(468)], axis=1).astype(np.float32)


def noise(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def face(*box: float, **known) -> Face:
    return Face(np.array(box, np.float32), **known)


def five_points(angle: float) -> np.ndarray:
    upright = np.array([(-6, -5), (6, -5), (0, 1), (-4, 8), (4, 8)], np.float32)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (upright @ turn + (60, 45)).astype(np.float32)


KNOWN = {
    "box": face(40, 25, 80, 65),
    "five points": face(40, 25, 80, 65, keypoints=five_points(0.7)),
    "landmarks": face(45, 30, 70, 65, landmarks=OVAL * 18 + np.float32([60, 45, 0])),
    "over the border": face(-20, -20, 30, 30),
    "tiny": face(50, 40, 55, 46),
    "degenerate points": face(40, 25, 80, 65, keypoints=np.zeros((5, 2), np.float32)),
}


@pytest.mark.parametrize("method", ["fill", "solid", "mosaic", "blur"])
@pytest.mark.parametrize("box", BOXES)
def test_a_cover_changes_the_face_and_nothing_else(method, box):
    image = noise()
    before = image.copy()
    result = cover(image, [face(*box)], method)
    np.testing.assert_array_equal(image, before)
    x0, y0, x1, y1 = np.array(box)
    margin = 0.15 + 0.1 * (method == "fill")  # its soft edge, and the ellipse
    margin_x, margin_y = margin * (x1 - x0) + 3, margin * (y1 - y0) + 3
    y, x = np.mgrid[:90, :120] + 0.5
    outside = (x < x0 - margin_x) | (x > x1 + margin_x) | (y < y0 - margin_y) | (y > y1 + margin_y)
    np.testing.assert_array_equal(result[outside], image[outside])
    if method == "solid":
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        assert (result[inside] == 0).all()


@pytest.mark.parametrize("method", ["fill", "solid"])
@pytest.mark.parametrize("one", KNOWN.values(), ids=KNOWN)
def test_nothing_of_the_face_is_left(method, one):
    """Whatever the face looks like, the bytes of the result are the same."""
    hidden = silhouette(one, (0, 0), (90, 120))
    if method == "solid":
        hidden = np.zeros((90, 120), bool)
        part_of(hidden, cover_box(one))[0][:] = True
    assert hidden.any()
    results = [cover(np.where(hidden[..., None], noise(seed=seed), noise()), [one], method) for seed in (1, 2)]
    np.testing.assert_array_equal(*results)


def test_faces_that_overlap_are_not_filled_from_each_other():
    crowd = [face(20, 20, 60, 70), face(50, 25, 90, 75), face(55, 60, 75, 85)]
    hidden = np.any([silhouette(one, (0, 0), (90, 120)) for one in crowd], axis=0)
    results = [cover(np.where(hidden[..., None], noise(seed=seed), noise()), crowd) for seed in (1, 2)]
    np.testing.assert_array_equal(*results)


def test_nothing_is_left_of_random_faces_in_the_dark():
    """In dark pictures, the smallest difference of a hidden pixel could change a rounded value."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, size = rng.uniform(-20, 100, 2), rng.uniform(4, 80, 2)
        crowd = [face(*low, *(low + size)), face(*(low + size / 3), *(low + size))]
        if rng.random() < 0.5:
            points = OVAL * rng.uniform(3, 40) + np.float32([*rng.uniform(0, 90, 2), 0])
            crowd.append(face(*points.min(0)[:2], *points.max(0)[:2], landmarks=points))
        hidden = np.any([silhouette(one, (0, 0), (90, 120)) for one in crowd], axis=0)
        dark = rng.integers(0, 12, (90, 120, 3), dtype=np.uint8)
        faces = [np.where(hidden[..., None], rng.integers(0, 256, dark.shape, dtype=np.uint8), dark) for _ in range(2)]
        np.testing.assert_array_equal(*(cover(one, crowd) for one in faces))


@pytest.mark.parametrize("scale", [1.3, 2])
@pytest.mark.parametrize("one", KNOWN.values(), ids=KNOWN)
def test_the_silhouette_holds_the_face(one, scale):
    """It contains the ellipse in the box, and the landmarks."""
    hidden = silhouette(one, (0, 0), (90, 120), scale)
    centre, half = (one.box[:2] + one.box[2:]) / 2, (one.box[2:] - one.box[:2]) / 2
    y, x = np.mgrid[:90, :120] + 0.5
    distance = np.hypot((x - centre[0]) / half[0], (y - centre[1]) / half[1])
    assert hidden[distance < 1].all()
    if one.landmarks is not None:
        columns, rows = one.landmarks[:, :2].astype(int).T
        assert hidden[rows, columns].all()


def test_a_larger_scale_hides_more():
    for one in KNOWN.values():
        small, large = (silhouette(one, (0, 0), (90, 120), scale) for scale in (1.3, 2.6))
        assert (large >= small).all() and large.sum() > small.sum()


def test_a_fill_continues_the_colours_around_the_face():
    y, x = np.mgrid[:90, :120]
    ramp = np.stack([x, y, x + y], axis=-1).astype(np.uint8) + 20
    result = cover(np.where(silhouette(face(40, 25, 80, 65), (0, 0), (90, 120))[..., None], 255, ramp), [face(40, 25, 80, 65)])
    assert np.abs(result.astype(int) - ramp).mean(axis=(0, 1)).max() < 4
    assert np.abs(result.astype(int) - ramp).max() < 25


def test_a_fill_has_the_grain_of_its_surroundings():
    def grain(level: float) -> float:
        picture = np.random.default_rng(0).normal(128, level, (200, 200, 3)).clip(0, 255).astype(np.uint8)
        return cover(picture, [face(60, 60, 140, 140)])[80:120, 80:120].astype(float).std()

    assert grain(0) < 0.6 < 3 < grain(8) < grain(12)


def test_a_fill_does_not_flicker():
    """The surroundings in a still picture change only by the noise of the camera."""
    frames = [np.random.default_rng(seed).normal(128, 4, (200, 200, 3)).clip(0, 255).astype(np.uint8) for seed in range(4)]
    centres = [cover(frame, [face(60, 60, 140, 140)])[80:120, 80:120].astype(float).mean() for frame in frames]
    assert np.ptp(centres) < 1


def test_a_picture_that_is_all_face_becomes_grey():
    assert np.ptp(cover(noise(), [face(-500, -500, 900, 900)])) <= 1


def test_spared_pixels_stay():
    spared = np.zeros((90, 120), bool)
    spared[:, 60:] = True
    for method in ("fill", "solid", "mosaic", "blur"):
        result = cover(noise(), [face(40, 25, 80, 65)], method, spared=spared)
        np.testing.assert_array_equal(result[spared], noise()[spared])
        assert (result[~spared] != noise()[~spared]).any()


def test_a_cover_reaches_around_landmarks_outside_the_box():
    one = face(40, 30, 60, 60, landmarks=OVAL * 30 + np.float32([65, 45, 0]))
    columns, rows = one.landmarks[:, :2].astype(int).T
    assert (cover(np.full((90, 120, 3), 9, np.uint8), [one], "solid")[rows, columns] == 0).all()


@pytest.mark.parametrize("method", ["mosaic", "blur"])
def test_mosaic_and_blur_leave_no_detail(method):
    image = noise(200, 200)
    hidden = cover(image, [face(50, 50, 150, 150)], method)[60:140, 60:140].astype(float)
    assert hidden.std() < 20 < image.std()


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="pixelate"):
        cover(noise(), [face(1, 1, 5, 5)], "pixelate")
