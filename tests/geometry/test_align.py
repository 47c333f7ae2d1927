import cv2
import numpy as np
import pytest
import torch

from diffdeid.geometry.align import chip_matrix, ffhq_matrix, invert, sample, scale_of, similarity_transform, square_matrix, warp


def random_similarity(rng: np.random.Generator) -> np.ndarray:
    scale, angle = rng.uniform(0.2, 5), rng.uniform(-np.pi, np.pi)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, rng.uniform(-50, 50)], [sin, cos, rng.uniform(-50, 50)]])


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def smooth_picture(height: int, width: int) -> np.ndarray:
    """Red tells x, green tells y (continuous pixel coordinates), so that a warp can be read off its output."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("seed", range(10))
def test_similarity_is_recovered_from_points(seed):
    rng = np.random.default_rng(seed)
    matrix, points = random_similarity(rng), rng.normal(size=(5, 2)) * 30
    np.testing.assert_allclose(similarity_transform(points, apply(matrix, points)), matrix, atol=1e-9)


def test_similarity_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, 6, 2))
    best = similarity_transform(source, target)
    error = np.square(apply(best, source) - target).sum()
    for _ in range(50):
        a, b, x, y = rng.normal(size=4) * 1e-2
        other = best + [[a, -b, x], [b, a, y]]
        assert np.square(apply(other, source) - target).sum() >= error


def test_coinciding_points_are_refused():
    with pytest.raises(ValueError, match="same point"):
        similarity_transform(np.ones((5, 2)), np.random.default_rng(0).normal(size=(5, 2)))


@pytest.mark.parametrize("seed", range(5))
def test_invert_is_the_way_back(seed):
    rng = np.random.default_rng(seed)
    matrix, points = random_similarity(rng), rng.normal(size=(5, 2))
    np.testing.assert_allclose(apply(invert(matrix), apply(matrix, points)), points, atol=1e-9)


def test_square_matrix_maps_the_square():
    matrix = square_matrix((10, 20), (0, 2), 8, 64)  # the square's own right points down the picture
    np.testing.assert_allclose(apply(matrix, np.array([[10, 20], [10, 24], [6, 20]])), [[32, 32], [64, 32], [32, 64]], atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_alignment_ignores_how_the_picture_was_turned(seed):
    rng = np.random.default_rng(seed)
    landmarks, motion = rng.normal(size=(468, 2)) * 40, random_similarity(rng)
    for align in (ffhq_matrix, chip_matrix):
        moved = apply(motion, landmarks)
        np.testing.assert_allclose(apply(align(moved), moved), apply(align(landmarks), landmarks), atol=1e-6)


@pytest.mark.parametrize(
    "matrix", [np.eye(2, 3), square_matrix((40, 30), (3, 1), 20, 64), square_matrix((40, 30), (1, -2), 45, 16)]
)
def test_warp_puts_every_pixel_where_the_matrix_says(matrix):
    size = 16 if scale_of(matrix) < 1 else 32
    read = warp(smooth_picture(60, 80), matrix, size)[..., :2]
    y, x = np.mgrid[:size, :size] + 0.5
    expected = apply(invert(matrix), np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(size, size, 2)
    inside = ((expected > 3) & (expected < (77, 57))).all(axis=-1)
    assert inside.sum() > 20
    np.testing.assert_allclose(read[inside], expected[inside], atol=0.05)


def test_warp_by_the_identity_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(warp(image, np.eye(2, 3), (30, 20)), image)


@pytest.mark.parametrize("scale", [0.3, 0.11, 0.05])
def test_strong_minification_does_not_alias(scale):
    board = (np.indices((600, 600)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = warp(board, np.array([[scale, 0, 0], [0, scale, 0]]), int(600 * scale))
    assert np.abs(small[2:-2, 2:-2].astype(float) - 127.5).max() < 20


@pytest.mark.parametrize("scale", [0.01, 1e-4, 1e-9])
def test_a_matrix_gone_wild_takes_little_memory_and_gives_the_mean(scale):
    """Landmarks far outside of the picture would give such a matrix."""
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    matrix = square_matrix(np.array([200, 150]), (1, 0), 192 / scale, 192)
    made = warp(picture, matrix, 192, cv2.BORDER_REPLICATE)
    assert made.shape == (192, 192, 3) and np.abs(made[96, 96] - picture.mean((0, 1))).max() < 40


def test_crop_outside_the_picture_is_filled():
    image = np.full((10, 10, 3), 200, np.uint8)
    assert (warp(image, square_matrix((0, 0), (1, 0), 40, 32), 32) == 200).all()
    assert (warp(image, square_matrix((-90, 0), (1, 0), 40, 32), 32, cv2.BORDER_CONSTANT) == 0).all()


def test_sample_agrees_with_warp():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 3)
    matrices = [square_matrix((32, 32), (1, 0.2), 40, 24), square_matrix((30, 33), (1, -0.3), 20, 24)]
    batch = torch.from_numpy(image).permute(2, 0, 1).float().expand(2, -1, -1, -1)
    sampled = sample(batch, torch.from_numpy(np.stack(matrices)), 24)
    for matrix, got in zip(matrices, sampled, strict=True):
        np.testing.assert_allclose(got.permute(1, 2, 0), warp(image, matrix, 24), atol=3)


def test_sample_is_differentiable():
    images = torch.rand(1, 1, 6, 6, dtype=torch.float32, requires_grad=True)
    sample(images, torch.from_numpy(square_matrix((3, 3), (1, 0.5), 4, 5))[None], 5).sum().backward()
    assert images.grad.sum().item() == pytest.approx(25, rel=1e-4)
