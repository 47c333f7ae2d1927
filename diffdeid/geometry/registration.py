"""Registration: generated faces are moved by a few pixels, so that their features lie where the conditions put them.

A network may paint a mouth only half as far open as asked, or eyes that look ahead. Landmarks of the painted face tell how far
features are off. Marks are the 468 landmarks and the centres of the right and the left iris, `(B, 470, 2)` in crop pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# In crop sizes:
REACH = 6 / 256  # how far around it a landmark moves the face; about the distance between landmarks
IRIS_RADIUS = 5 / 256  # an iris moves as a whole
IRIS_REACH = 4 / 256  # how far around an iris its movement fades out
FARTHEST = 12 / 256  # most that a landmark moves; larger offsets are errors
IRIS_FARTHEST = 6 / 256  # the same for an iris
EDGE = 12 / 256  # width of the zone at the border of the erased region in which the movement dies away

BACKGROUND = 0.3  # weight of no movement, in landmarks
CELLS = 32  # side of the grid on which the smooth movement of the landmarks is computed


def offsets(seen: Tensor, meant: Tensor, depths: Tensor) -> Tensor:
    """The offset from each pixel to the pixel that belongs there, for `displace`.

    It is the mean of the offsets of nearby landmarks; what an iris then still lacks is added around it.

    Args:
        seen, meant: `(B, 470, 2)` marks, as they are and as they should be.
        depths: `(B, 1, S, S)`, how deep in the erased region each pixel lies, in pixels; outside of it, nothing moves.

    Returns:
        `(B, S, S, 2)`, x and y in pixels.
    """
    size = depths.shape[-1]
    field = spread(shortened(seen - meant, FARTHEST * size)[:, :468], meant[:, :468], size)

    pixels, rows = _pixels(size).to(field), torch.arange(len(field), device=field.device)
    for here, target in zip(seen[:, 468:].unbind(1), meant[:, 468:].unbind(1), strict=True):
        column, row = (target - 0.5).round().long().clamp(0, size - 1).unbind(1)
        rest = shortened(here - target - field[rows, row, column], IRIS_FARTHEST * size)
        away = ((pixels - target[:, None, None]).norm(dim=-1, keepdim=True) - IRIS_RADIUS * size).clamp(min=0)
        field = field + rest[:, None, None] * torch.exp(-away.square() / (2 * (IRIS_REACH * size) ** 2))

    return field * (depths / (EDGE * size)).clamp(0, 1).permute(0, 2, 3, 1)


def spread(vectors: Tensor, landmarks: Tensor, size: int) -> Tensor:
    """Spread vectors of landmarks, both `(B, 468, 2)`, to all pixels, `(B, S, S, 2)`: Gaussian means (Nadaraya-Watson)."""
    line = (torch.arange(CELLS, device=vectors.device) + 0.5) * (size / CELLS)
    near = torch.exp(-(line[:, None] - landmarks.mT[:, :, None]).square() / (2 * (REACH * size) ** 2))
    across, down = near[:, None].unbind(2)  # (B, 1, CELLS, 468): a Gaussian is a product
    weighted = torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1).mT  # (B, 3, 468)
    sums = (down * weighted[:, :, None]) @ across.mT
    field = sums[:, :2] / (sums[:, 2:] + BACKGROUND)
    return F.interpolate(field, size=(size, size), mode="bicubic").permute(0, 2, 3, 1)


def displace(images: Tensor, field: Tensor) -> Tensor:
    """Move images `(B, C, S, S)`, float32: each pixel is sampled (cubic) `field` `(B, S, S, 2)` pixels away from it."""
    size = field.shape[1]
    grid = 2 * (_pixels(size).to(field) + field) / size - 1
    return F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)


def _pixels(size: int) -> Tensor:
    """The centre of each pixel, `(S, S, 2)`."""
    line = torch.arange(size) + 0.5
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)


def shortened(vectors: Tensor, limit: float) -> Tensor:
    """Vectors `(..., n)`, shortened to a length of at most `limit`."""
    return vectors * (limit / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
