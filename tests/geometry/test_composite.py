import numpy as np
import pytest

from diffdeid.geometry.align import invert, square_matrix, warp
from diffdeid.geometry.composite import paste

SIZE = 64


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    """Smooth, so that resampling twice loses little."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + phase) + np.cos(y / 11 - phase) for phase in range(3)]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8)


def disc() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2
    return (SIZE / 2 - 4 - np.hypot(x, y)).clip(0, 1)


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


def test_pixels_of_which_nothing_is_left_are_marked():
    black, white = (paste(np.full((90, 120, 3), level, np.uint8), np.full((SIZE, SIZE, 3), 99, np.uint8), disc(),
                          MATRICES["over the border"]) for level in (0, 255))  # fmt: skip
    replaced = np.zeros((90, 120), bool)
    paste(picture(), np.zeros((SIZE, SIZE, 3), np.uint8), disc(), MATRICES["over the border"], replaced=replaced)
    assert 0 < replaced.sum() < replaced.size
    np.testing.assert_array_equal(black[replaced], white[replaced])


def test_a_crop_pasted_back_gives_the_picture():
    image, matrix = picture(), square_matrix((60, 45), (1, 0.4), 50, SIZE)
    result = paste(image, warp(image, matrix, SIZE), disc(), matrix)
    assert np.abs(result.astype(int) - image).max() <= 4


def test_pasting_a_reduced_crop_does_not_alias():
    board = np.repeat(((np.indices((SIZE, SIZE)).sum(axis=0) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    matrix = square_matrix((60, 45), (1, 0), 13, SIZE)
    result = paste(picture(), board, np.ones((SIZE, SIZE)), matrix)[41:49, 56:64]
    assert np.abs(result.astype(float) - 127.5).max() < 20


def test_matrix_is_not_written_to():
    matrix = square_matrix((60, 45), (1, 0.4), 50, SIZE)
    kept = matrix.copy()
    paste(picture(), np.zeros((SIZE, SIZE, 3), np.uint8), disc(), matrix)
    invert(matrix)
    np.testing.assert_array_equal(matrix, kept)
