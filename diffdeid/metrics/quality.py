"""How good pictures look and how much of them is untouched.

Distances of distributions go with the features they are taken on: by another network than Inception they are not FID or KID.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity


def psnr(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio (dB) of two uint8 `(H, W, 3)` pictures where `mask` `(H, W)` is true; infinite when equal.

    NaN for an empty mask.
    """
    if not mask.any():
        return float("nan")
    error = np.square(first[mask].astype(np.float64) - second[mask]).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(first: np.ndarray, second: np.ndarray, *masks: np.ndarray) -> tuple[float, ...]:
    """Structural similarity (Wang et al. 2004), -1…1, of uint8 `(H, W, 3)` pictures, averaged over each mask `(H, W)`.

    NaN for an empty mask.
    """
    window = min(7, (min(first.shape[:2]) - 1) // 2 * 2 + 1)
    similarity = structural_similarity(first, second, channel_axis=2, win_size=window, full=True)[1].mean(2)
    return tuple(float(similarity[mask].mean()) if mask.any() else float("nan") for mask in masks)


def colour_difference(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> float:
    """CIEDE2000 between the mean colours of uint8 sRGB pictures `(H, W, 3)` where `mask` `(H, W)` is true."""
    means = (rgb2lab(picture[mask] / 255.0).mean(0) for picture in (first, second))
    return float(deltaE_ciede2000(*means))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between Gaussians through two sets of features `(n, d)` (Heusel et al. 2017); biased upwards for few pictures.

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
