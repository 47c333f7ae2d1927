import numpy as np
import pytest

from diffdeid.geometry.align import invert, square_matrix, warp
from diffdeid.geometry.composite import cover, paste
from diffdeid.structures import Face

SIZE = 64


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    """Smooth, so that resampling twice loses little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + phase) + np.cos(y / 11 - phase) for phase in range(3)]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8)


def disc() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    return (SIZE / 2 - 4 - np.hypot(x, y)).clip(0, 1)


def face(*box: float) -> Face:
    return Face(np.array(box, np.float32))


MATRICES = {
    "enlarged": square_matrix((60, 45), (1, 0.3), 200, SIZE),
    "reduced": square_matrix((60, 45), (1, -0.5), 20, SIZE),
    "over the border": square_matrix((5, 80), (1, 0.1), 60, SIZE),
    "tiny": square_matrix((60, 45), (1, 0), 3, SIZE),
    "outside": square_matrix((-300, 45), (1, 0), 50, SIZE),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_nothing_is_pasted_where_alpha_is_zero(matrix):
    image, before = picture(), picture()
    result = paste(image, np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE)), matrix)
    np.testing.assert_array_equal(result, before)
    np.testing.assert_array_equal(image, before)
    assert result is not image


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_pixels_outside_the_mask_are_untouched(matrix):
    image = picture()
    result = paste(image, np.full((SIZE, SIZE, 3), 255, np.uint8), disc(), matrix)
    y, x = np.mgrid[:90, :120] + 0.5
    mapped = np.stack([x, y], axis=-1) @ matrix[:, :2].T + matrix[:, 2] - SIZE / 2
    distance = np.hypot(*np.moveaxis(mapped, -1, 0))
    pixel = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    far, near = distance > SIZE / 2 + 2 * pixel, distance < SIZE / 2 - 6 - 2 * pixel
    np.testing.assert_array_equal(result[far], image[far])
    assert (result[near] == 255).all()


def test_a_crop_pasted_back_gives_the_picture():
    image, matrix = picture(), square_matrix((60, 45), (1, 0.4), 50, SIZE)
    result = paste(image, warp(image, matrix, SIZE), disc(), matrix)
    assert np.abs(result.astype(int) - image).max() <= 4


def test_pasting_a_reduced_crop_does_not_alias():
    board = np.repeat(((np.indices((SIZE, SIZE)).sum(axis=0) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    matrix = square_matrix((60, 45), (1, 0), 13, SIZE)
    result = paste(picture(), board, np.ones((SIZE, SIZE)), matrix)[41:49, 56:64]
    assert np.abs(result.astype(float) - 127.5).max() < 20


@pytest.mark.parametrize("method", ["solid", "mosaic", "blur"])
@pytest.mark.parametrize(
    "box", [(40, 30, 70, 65), (-20, -20, 30, 30), (50, 40, 50.4, 40.4), (-500, -500, 900, 900), (300, 300, 350, 350)]
)
def test_cover_changes_the_face_and_nothing_else(method, box):
    image = np.random.default_rng(0).integers(1, 256, (90, 120, 3), dtype=np.uint8)
    before = image.copy()
    result = cover(image, face(*box), method)
    np.testing.assert_array_equal(image, before)
    x0, y0, x1, y1 = np.array(box)
    margin_x, margin_y = 0.15 * (x1 - x0) + 1, 0.15 * (y1 - y0) + 1
    y, x = np.mgrid[:90, :120] + 0.5
    outside = (x < x0 - margin_x) | (x > x1 + margin_x) | (y < y0 - margin_y) | (y > y1 + margin_y)
    np.testing.assert_array_equal(result[outside], image[outside])
    if method == "solid":
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        assert (result[inside] == 0).all()


def test_cover_reaches_around_landmarks_outside_the_box():
    landmarks = np.zeros((468, 3), np.float32)
    landmarks[:, :2] = np.random.default_rng(0).uniform((30, 20), (100, 80), (468, 2))
    hidden = cover(np.full((90, 120, 3), 9, np.uint8), Face(np.array([40, 30, 60, 60], np.float32), landmarks=landmarks))
    oval = landmarks[[10, 152, 234, 454], :2].astype(int)
    assert (hidden[oval[:, 1], oval[:, 0]] == 0).all()


@pytest.mark.parametrize("method", ["mosaic", "blur"])
def test_mosaic_and_blur_leave_no_detail(method):
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    hidden = cover(image, face(50, 50, 150, 150), method)[60:140, 60:140].astype(float)
    assert hidden.std() < 20 < image.std()


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="pixelate"):
        cover(picture(), face(1, 1, 5, 5), "pixelate")


def test_matrix_is_not_written_to():
    matrix = square_matrix((60, 45), (1, 0.4), 50, SIZE)
    kept = matrix.copy()
    paste(picture(), np.zeros((SIZE, SIZE, 3), np.uint8), disc(), matrix)
    invert(matrix)
    np.testing.assert_array_equal(matrix, kept)
