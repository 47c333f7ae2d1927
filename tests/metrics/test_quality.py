import cv2
import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab

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


ROWS, COLUMNS = np.indices((224, 224)) - 111.5
FACE = (ROWS / 95) ** 2 + (COLUMNS / 75) ** 2 < 1
FEATHER = 6.0


def painted(*lab):
    return (lab2rgb(np.broadcast_to(lab, (224, 224, 3)).astype(float)) * 255).round().astype(np.uint8)


SKIN, OTHER_SKIN, HAIR = painted(65, 14, 18), painted(60, 16, 24), painted(20, 3, 5)


def pasted(original, generated):
    """A result as the pipeline makes it: mixed along the soft edge inside of the face."""
    depth = cv2.distanceTransform(FACE.astype(np.uint8), cv2.DIST_L2, 5)
    opacity = np.clip(depth / FEATHER, 0, 1)[..., None]
    return (original + opacity * (generated.astype(float) - original)).round().astype(np.uint8)


def known_difference(first, second):
    return deltaE_ciede2000(*(rgb2lab(picture[0, 0] / 255) for picture in (first, second)))


def test_a_drawn_colour_step_is_measured_behind_the_soft_edge():
    after, before = quality.colour_step(SKIN, pasted(SKIN, OTHER_SKIN), FACE, FEATHER)
    assert known_difference(SKIN, OTHER_SKIN) > 5
    assert after == pytest.approx(known_difference(SKIN, OTHER_SKIN), rel=0.02)
    assert before == pytest.approx(0, abs=1e-3)


def test_texture_is_no_colour_step():
    rng = np.random.default_rng(0)
    first, second = ((SKIN + rng.normal(0, 6, SKIN.shape)).round().clip(0, 255).astype(np.uint8) for _ in range(2))
    assert max(quality.colour_step(first, pasted(first, second), FACE, FEATHER)) < 2


def test_where_hair_meets_the_border_nothing_counts():
    hairy = np.where((ROWS < 0)[..., None] & ~FACE[..., None], HAIR, SKIN)
    bald = pasted(hairy, OTHER_SKIN)
    after, before = quality.colour_step(hairy, bald, FACE, FEATHER)
    assert after == pytest.approx(known_difference(SKIN, OTHER_SKIN), rel=0.03) and before < 0.1
    below = pasted(hairy, np.where((ROWS < 0)[..., None], HAIR, SKIN))  # new hair in the upper half alone
    assert quality.colour_step(hairy, below, FACE, FEATHER)[0] < 0.5


def test_a_fringe_over_the_border_does_not_count():
    fringe = np.where((ROWS < -40)[..., None], HAIR, SKIN)
    after, before = quality.colour_step(fringe, pasted(fringe, SKIN), FACE, FEATHER)
    assert after < 0.5 and before < 0.5


def test_without_skin_around_the_face_there_is_no_colour_step():
    veiled = np.where(FACE[..., None], SKIN, HAIR)
    assert np.isnan(quality.colour_step(veiled, pasted(veiled, OTHER_SKIN), FACE, FEATHER)).all()


def test_uneven_skin_steps_in_the_original_too():
    lit = (SKIN * (1 + COLUMNS / 800)[..., None]).round().clip(0, 255).astype(np.uint8)
    after, before = quality.colour_step(lit, lit, FACE, FEATHER)
    assert after == before and 0.3 < before < 3


def test_what_cannot_be_told_apart_has_an_auc_of_a_half():
    values = [quality.two_sample_auc(*RNG.normal(size=(2, 60, 8))) for _ in range(20)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_shifted_features_are_told_apart():
    x, y = RNG.normal(size=(2, 60, 100))
    y[:, 0] += 10
    auc = quality.two_sample_auc(x, y)
    assert auc > 0.99
    assert quality.two_sample_auc(y, x) == pytest.approx(auc) == quality.two_sample_auc(3 * x + 1, 3 * y + 1)
    assert 0.6 < quality.two_sample_auc(*RNG.normal([[[0]], [[0.4]]], 1, (2, 200, 8))) < 0.9  # 0.79 by the best classifier


def test_a_picture_and_its_result_are_in_the_same_fold():
    """Otherwise the twin in the training set, which has the other label, would pull the answer below a half."""
    x = RNG.normal(size=(40, 100))
    assert quality.two_sample_auc(x, x) == pytest.approx(0.5)
    assert quality.two_sample_auc(x, np.roll(x, 1, axis=0)) < 0.3


def test_two_sets_may_differ_in_size():
    assert quality.two_sample_auc(RNG.normal(size=(6, 5)), RNG.normal(9, 1, size=(5, 5))) == 1
