"""Back into the picture: pasting crops, covering faces.

Both return a new array, or write into `out` where it is given (which may be the picture itself), and leave every pixel they do
not mean to change bit-identical.
"""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np

from diffdeid.geometry.align import invert, warp
from diffdeid.geometry.faces import whole_box
from diffdeid.structures import Face

FEATHER = 7 / 256  # width of the soft edge of a new face, inside the erased region, in crop sizes
COVER_MARGIN = 1.3  # size of a cover in face boxes
COVER_CELLS = 6  # mosaic cells along a face; the blur is as coarse


def paste(
    image: np.ndarray, patch: np.ndarray, alpha: np.ndarray, matrix: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """Lay a crop over the picture it came from.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        patch: `(S, S, 3)` uint8 RGB crop.
        alpha: `(S, S)`, 0…1, how much of the patch shows; should fall to 0 towards the border of the crop.
        matrix: `(2, 3)` picture -> crop, as the crop was made.
        out: holds the picture and gets the result; a copy when `None`.

    Returns:
        `(H, W, 3)` uint8. Where the warped alpha is 0, the picture is untouched.
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
    return result


def cover(
    image: np.ndarray,
    face: Face,
    method: Literal["solid", "mosaic", "blur"] = "solid",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Hide a whole face: its box enlarged by `COVER_MARGIN` and its landmarks, in one rectangle.

    `"solid"` is black and keeps nothing. `"mosaic"` and `"blur"` look softer but do not protect: people in obfuscated faces have
    been recognised by networks trained on obfuscated faces (McPherson et al. 2016).
    """
    if method not in ("solid", "mosaic", "blur"):
        raise ValueError(f"`method` must be 'solid', 'mosaic' or 'blur', got {method!r}.")
    box, result = cover_box(face), image.copy() if out is None else out
    region, _ = part_of(result, box)
    if region.size == 0:
        return result
    if method == "solid":
        region[:] = 0
        return result
    height, width = region.shape[:2]
    cell = max(1, *((box[2:] - box[:2]) / COVER_CELLS))
    cells = (math.ceil(width / cell), math.ceil(height / cell))
    interpolation = cv2.INTER_NEAREST if method == "mosaic" else cv2.INTER_CUBIC
    region[:] = cv2.resize(cv2.resize(region, cells, interpolation=cv2.INTER_AREA), (width, height), interpolation=interpolation)
    return result


def cover_box(face: Face) -> np.ndarray:
    """What a cover hides of a picture, `(4,)`: the box of the face and of its landmarks, enlarged by `COVER_MARGIN`."""
    low, high = whole_box(face).astype(np.float64).reshape(2, 2)
    centre, half = (low + high) / 2, (high - low) / 2 * COVER_MARGIN
    return np.concatenate([centre - half, centre + half])


def footprint(matrix: np.ndarray, size: int) -> np.ndarray:
    """The box of a picture, `(4,)`, that a crop of `size` pixels was taken from; `matrix` `(2, 3)` is picture -> crop."""
    back = invert(matrix)
    corners = np.array([(0, 0), (size, 0), (size, size), (0, size)]) @ back[:, :2].T + back[:, 2]
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def part_of(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The view of the pixels that a box touches, and the picture coordinates of its corner."""
    height, width = image.shape[:2]
    x0, y0 = np.floor(box[:2]).clip(0, (width, height)).astype(int)
    x1, y1 = np.ceil(box[2:]).clip((x0, y0), (width, height)).astype(int)
    return image[y0:y1, x0:x1], np.array([x0, y0])
