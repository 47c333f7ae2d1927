"""Moving a generated face by a few pixels, so that what is seen of it lies where the conditions put it.

A network paints a mouth half as far open as it was told and eyes that look ahead; landmarks of what it painted tell by how much.
Marks are the 468 landmarks and the centres of the right and the left iris, `(470, 2)` in crop pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.mask import depth_in

# In crop sizes:
REACH = 6 / 256  # over which a landmark takes the face with it; about their distance from each other
IRIS_RADIUS = 5 / 256  # an iris moves as a whole
IRIS_REACH = 4 / 256  # over which the movement dies away around it
FARTHEST = 12 / 256  # a landmark moves; by more it was mistaken
IRIS_FARTHEST = 6 / 256
EDGE = 12 / 256  # width of the zone at the border of the erased region in which the movement dies away

BACKGROUND = 0.3  # weight of standing still, in landmarks
CELLS = 32  # the movement of the landmarks is smooth and calculated on a grid


def offsets(seen: np.ndarray, meant: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How far from each pixel that lies which belongs there, so that `displace` brings it.

    Means of the landmarks' distances; what an iris lacks then is added around it.

    Args:
        seen, meant: `(470, 2)` marks, as they are and as they should be.
        mask: `(S, S)`, 1 where the face is erased; outside it nothing moves.

    Returns:
        `(S, S, 2)` float32, x and y in pixels.
    """
    size = len(mask)
    seen, meant = np.float32(seen), np.float32(meant)
    field = spread(shortened(seen - meant, FARTHEST * size)[:468], meant[:468], size)

    pixels = _pixels(size)
    for here, target in zip(seen[468:], meant[468:], strict=True):
        column, row = (target - 0.5).round().astype(int).clip(0, size - 1)
        rest = shortened(here - target - field[row, column], IRIS_FARTHEST * size)
        away = np.maximum(np.linalg.norm(pixels - target, axis=-1, keepdims=True) - IRIS_RADIUS * size, 0)
        field += rest * np.exp(-np.square(away) / (2 * (IRIS_REACH * size) ** 2))

    return field * np.clip(depth_in(mask) / (EDGE * size), 0, 1)[..., None]


def spread(vectors: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """What vectors `(468, 2)` of landmarks `(468, 2)` mean for all pixels, `(S, S, 2)`: Gaussian means (Nadaraya-Watson)."""
    line = (np.arange(CELLS, dtype=np.float32) + 0.5) * (size / CELLS)
    across, down = np.exp(-np.square(line[:, None] - landmarks.T[:, None]) / (2 * (REACH * size) ** 2))  # a Gaussian is a product
    *sums, weights = (down * np.vstack([vectors.T, np.ones_like(vectors[:, 0])])[:, None]) @ across.T
    field = np.dstack(sums) / (weights[..., None] + BACKGROUND)
    return cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)


def displace(images: Tensor, field: np.ndarray) -> Tensor:
    """Images `(B, C, S, S)`, float32 on the CPU, whose every pixel comes from `field` `(S, S, 2)` pixels further; cubic."""
    size = len(field)
    grid = torch.from_numpy(2 * (_pixels(size) + field) / size - 1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images.float().cpu(), grid, mode="bicubic", padding_mode="border", align_corners=False)


def _pixels(size: int) -> np.ndarray:
    """`(S, S, 2)`: where the middle of each pixel is."""
    return np.dstack(np.indices((size, size), dtype=np.float32)[::-1]) + 0.5


def shortened(vectors: np.ndarray, limit: float) -> np.ndarray:
    """Vectors `(..., n)` none of which is longer than the limit."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors * np.minimum(1, limit / np.maximum(lengths, 1e-6))
