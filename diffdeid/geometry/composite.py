"""Pasting crops back into the picture."""

from __future__ import annotations

import cv2
import numpy as np

from diffdeid.geometry.align import invert, warp
from diffdeid.geometry.boxes import part_of

FEATHER = 7 / 256  # width of the soft edge of a new face, inside the erased region, in crop sizes
OPAQUE = 0.999  # weight of a patch at which nothing is left of the picture under it


def paste(
    image: np.ndarray,
    patch: np.ndarray,
    alpha: np.ndarray,
    matrix: np.ndarray,
    out: np.ndarray | None = None,
    replaced: np.ndarray | None = None,
) -> np.ndarray:
    """Lay a crop over the picture it came from.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        patch: `(S, S, 3)` uint8 RGB crop.
        alpha: `(S, S)`, 0…1, how much of the patch shows; should fall to 0 towards the border of the crop.
        matrix: `(2, 3)` picture -> patch.
        out: holds the picture and gets the result; a copy when `None`.
        replaced: `(H, W)` bool; pixels that the patch replaces completely are set in it.

    Returns:
        `(H, W, 3)` uint8. Where the warped alpha is 0, the picture is bit-identical.
    """
    size = len(patch)
    back, result = invert(matrix), image.copy() if out is None else out
    region, origin = part_of(result, footprint(matrix, size))
    if region.size == 0:
        return result
    back[:, 2] -= origin
    target = (region.shape[1], region.shape[0])
    layer = warp(patch.astype(np.float32), back, target)
    weight = warp(alpha.astype(np.float32), back, target, cv2.BORDER_CONSTANT).clip(0, 1)[..., None]
    mixed = (region + weight * (layer - region)).round().clip(0, 255)
    region[:] = np.where(weight > 0, mixed, region)
    if replaced is not None:
        part_of(replaced, footprint(matrix, size))[0][:] |= weight[..., 0] > OPAQUE
    return result


def footprint(matrix: np.ndarray, size: int) -> np.ndarray:
    """The box of a picture, `(4,)`, that a crop of `size` pixels was taken from; `matrix` `(2, 3)` is picture -> crop."""
    back = invert(matrix)
    corners = np.array([(0, 0), (size, 0), (size, size), (0, size)]) @ back[:, :2].T + back[:, 2]
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])
