import numpy as np
import pytest

from diffdeid.metrics import quality

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(60, 196, (40, 50, 3)).astype(np.uint8)
EVERYWHERE = np.ones((40, 50), bool)


def test_equal_pictures_are_perfect():
    assert quality.psnr(PICTURE, PICTURE, EVERYWHERE) == np.inf
    assert quality.ssim(PICTURE, PICTURE, EVERYWHERE, ~EVERYWHERE) == pytest.approx((1, np.nan), nan_ok=True)
    assert np.isnan(quality.psnr(PICTURE, PICTURE, ~EVERYWHERE))
    assert quality.colour_difference(PICTURE, PICTURE, EVERYWHERE) == 0


@pytest.mark.parametrize("sigma", [2, 8, 20])
def test_psnr_of_added_noise_is_known(sigma):
    noisy = (PICTURE + RNG.normal(0, sigma, PICTURE.shape)).round().clip(0, 255).astype(np.uint8)
    assert quality.psnr(PICTURE, noisy, EVERYWHERE) == pytest.approx(20 * np.log10(255 / sigma), abs=0.4)


def test_only_the_masked_pixels_count():
    changed, mask = PICTURE.copy(), np.zeros((40, 50), bool)
    changed[:20] = 0
    mask[20:] = True
    assert quality.psnr(PICTURE, changed, mask) == np.inf
    assert quality.psnr(PICTURE, changed, ~mask) < 10
    mask[:24] = False  # the window of SSIM looks three pixels further
    below, above = quality.ssim(PICTURE, changed, mask, np.arange(40)[:, None].repeat(50, 1) < 15)
    assert below == pytest.approx(1) and above < 0.1


def test_ssim_of_a_tiny_picture():
    assert quality.ssim(PICTURE[:5, :6], PICTURE[:5, :6], EVERYWHERE[:5, :6]) == (pytest.approx(1),)


def test_colour_difference_knows_black_and_white():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert quality.colour_difference(black, white, np.ones((4, 4), bool)) == pytest.approx(100, abs=0.1)


def test_frechet_distance_of_shifted_bells_is_the_shift():
    x = RNG.normal(size=(4000, 3))
    assert quality.frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    assert quality.frechet_distance(x, x + [3, 0, 4]) == pytest.approx(25)


def test_frechet_distance_agrees_with_the_matrix_root():
    from scipy.linalg import sqrtm

    x, y = RNG.normal(size=(200, 5)), RNG.normal(size=(150, 5)) @ RNG.normal(size=(5, 5))
    first, second = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert quality.frechet_distance(x, y) == pytest.approx(expected)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    values = [quality.kernel_distance(*RNG.normal(size=(2, 30, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert quality.kernel_distance(RNG.normal(size=(200, 4)), RNG.normal(1, 1, size=(200, 4))) > 1


def test_kernel_distance_agrees_with_the_sum_over_pairs():
    x, y = RNG.normal(size=(5, 3)), RNG.normal(size=(6, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert quality.kernel_distance(x, y) == pytest.approx(sum(within) - 2 * between)


def test_diversity_of_one_person_is_none():
    assert quality.diversity(np.tile([0.6, 0.8], (5, 1))) == pytest.approx(0, abs=1e-12)
    assert quality.diversity(np.eye(5)) == pytest.approx(1)
