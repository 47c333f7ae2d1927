"""How good pictures look, and how much of them is untouched.

Distances of distributions depend on the network that gives the features: only with Inception are they FID or KID.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import rankdata, trim_mean
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

COMPONENTS, FOLDS = 64, 5
RIDGE = 0.1  # penalty of the two-sample classifier, in mean variances of its components
# Of `colour_step`; lengths are in parts of the height of the erased region.
BAND_START, BAND_END, PATCH = 0.01, 0.05, 0.05  # the bands that are compared, and the deviation of the patches along them
MIDDLE = 0.1  # depth of the part of the face that tells what skin looks like
SKIN_SPREADS, JUST_VISIBLE = 3.0, 2.0  # skin is at most this many median deviations plus this from the median, in L*, a* and b*
EDGE = 12.0  # CIEDE2000 between the two sides in the original above which there is an edge: of hair, a shadow or a jaw
LEAST_SKIN, LEAST_LINE = 0.7, 0.05  # shares of a patch, and of the border line, that must be skin
TRIMMED = 0.1  # share of the line left out at either end


def psnr(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio (dB) of two uint8 `(H, W, 3)` pictures where `mask` `(H, W)` is true.

    It is infinite for equal pictures, and NaN for an empty mask.
    """
    if not mask.any():
        return float("nan")
    error = np.square(first[mask].astype(np.float64) - second[mask]).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(first: np.ndarray, second: np.ndarray, *masks: np.ndarray) -> tuple[float, ...]:
    """Structural similarity (Wang et al. 2004), -1…1, of uint8 `(H, W, 3)` pictures, averaged over each mask `(H, W)`.

    It is NaN for an empty mask.
    """
    window = min(7, (min(first.shape[:2]) - 1) // 2 * 2 + 1)
    similarity = structural_similarity(first, second, channel_axis=2, win_size=window, full=True)[1].mean(2)
    return tuple(float(similarity[mask].mean()) if mask.any() else float("nan") for mask in masks)


def colour_difference(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """CIEDE2000 between the mean colours of uint8 sRGB pictures `(H, W, 3)` where `mask` `(H, W)` is true."""
    means = (rgb2lab(picture[mask] / 255.0).mean(0) for picture in (first, second))
    return float(deltaE_ciede2000(*means))


def colour_step(original: np.ndarray, result: np.ndarray, region: np.ndarray, feather: float) -> tuple[float, float]:
    """How much the colour of the skin changes at the border of an erased face, which nobody should see.

    Skin just outside of the border is compared with skin just inside, point by point along the border line, as CIEDE2000 between
    the mean colours of two patches. Skin is defined by the original: pixels with about the colour of most of the face. A point
    counts if there is enough skin on both of its sides, and no edge between them in the original. So hair, clothes, hats, the
    background and the line of a jaw do not count.

    Args:
        original, result: uint8 sRGB crops `(S, S, 3)` of an upright face.
        region: `(S, S)` bool, what is erased and painted anew.
        feather: width in pixels of the soft edge inside of the region, where the two pictures are mixed.

    Returns:
        The mean along the line without the lowest and highest tenth, for the result and, at the same points, for the original,
        whose skin is not even either. NaN if less than a twentieth of the line has skin on both sides.
    """
    height = np.ptp(np.flatnonzero(region.any(1))) + 1.0
    before, after = (rgb2lab(picture / 255.0).astype(np.float32) for picture in (original, result))
    depth, distance = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (region, ~region))
    face = before[depth > MIDDLE * height]
    middle = np.median(face, axis=0)
    spread = np.median(np.abs(face - middle), axis=0)
    skin = (np.abs(before - middle) < SKIN_SPREADS * spread + JUST_VISIBLE).all(2)

    def along_the_line(values: np.ndarray) -> np.ndarray:
        patches = cv2.GaussianBlur(values.astype(np.float32), (0, 0), PATCH * height, borderType=cv2.BORDER_CONSTANT)
        return patches[(depth > 0) & (depth < 1.5)]

    enough, colours = [], []
    for away in (distance, depth - feather):
        band = (away > BAND_START * height) & (away < BAND_END * height)
        known = along_the_line(band & skin)
        enough.append(known > LEAST_SKIN * along_the_line(band))
        colours.append([along_the_line((band & skin)[..., None] * lab) / known[:, None].clip(1e-6) for lab in (before, after)])
    own, steps = (deltaE_ciede2000(outside, inside) for outside, inside in zip(*colours, strict=True))
    counts = enough[0] & enough[1] & (own < EDGE)
    if counts.mean() < LEAST_LINE:
        return float("nan"), float("nan")
    return float(trim_mean(steps[counts], TRIMMED)), float(trim_mean(own[counts], TRIMMED))


def two_sample_auc(first: np.ndarray, second: np.ndarray) -> float:
    """How well a linear classifier tells two sets of pictures apart, 0…1, by their features `(n, d)` and `(m, d)`.

    0.5 means not at all (it may be less by chance), 1 means always (a classifier two-sample test, Lopez-Paz & Oquab 2017). Ridge
    regression on the leading components is trained on four fifths and scores the last fifth, five times. Rows with the same index
    are in the same fold, so that no original is judged by a classifier that has seen its result.
    """
    folds = np.random.default_rng(0).permutation(max(len(first), len(second))) % FOLDS
    fold, x = np.concatenate([folds[: len(first)], folds[: len(second)]]), np.concatenate([first, second])
    is_second = np.arange(len(x)) >= len(first)
    scores = np.empty(len(x))
    for held_out in range(FOLDS):
        train = fold != held_out
        mean = x[train].mean(0)
        scores[~train] = (x[~train] - mean) @ _ridge_direction(x[train] - mean, is_second[train])
    ordered = rankdata(scores)  # ties share their mean rank
    return float((ordered[is_second].mean() - (len(second) + 1) / 2) / len(first))


def _ridge_direction(centred: np.ndarray, is_second: np.ndarray) -> np.ndarray:
    """The direction `(d,)` along which the second set of centred features `(n, d)` lies higher."""
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    variances, axes = np.square(lengths[:COMPONENTS]), axes[:COMPONENTS]
    return axes.T @ (axes @ centred.T @ (is_second - is_second.mean()) / (variances + RIDGE * variances.mean()))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features `(n, d)` (Heusel et al. 2017), squared.

    It is biased upwards for few pictures.

    tr √(C₁C₂) is the nuclear norm of R₁R₂ᵀ, where C = AᵀA and A = QR.
    """
    centred = [np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r") for x in (first, second)]
    mixed = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * mixed)


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared maximum mean discrepancy of two sets of features `(n, d)`, cubic kernel, unbiased (Bińkowski et al. 2018)."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (first, second)]
    return float(sum(within) - 2 * kernel(first, second).mean())


def diversity(embeddings: np.ndarray) -> float:
    """Mean cosine distance, 0…2, between the unit embeddings `(n, d)` of candidates for one face: 0 is one person."""
    return float(pdist(embeddings, "cosine").mean())
