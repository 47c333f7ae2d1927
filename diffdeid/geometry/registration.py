"""Moving generated faces by a few pixels, so that what is seen of them lies where the conditions put it.

A network paints a mouth half as far open as it was told and eyes that look ahead; landmarks of what it painted tell by how much.
Marks are the 468 landmarks and the centres of the right and the left iris, `(B, 470, 2)` in crop pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# In crop sizes:
REACH = 6 / 256  # over which a landmark takes the face with it; about their distance from each other
IRIS_RADIUS = 5 / 256  # an iris moves as a whole
IRIS_REACH = 4 / 256  # over which the movement dies away around it
FARTHEST = 12 / 256  # a landmark moves; by more it was mistaken
IRIS_FARTHEST = 6 / 256
EDGE = 12 / 256  # width of the zone at the border of the erased region in which the movement dies away

BACKGROUND = 0.3  # weight of standing still, in landmarks
CELLS = 32  # the movement of the landmarks is smooth and calculated on a grid


def offsets(seen: Tensor, meant: Tensor, depths: Tensor) -> Tensor:
    """How far from each pixel that lies which belongs there, so that `displace` brings it.

    Means of the landmarks' distances; what an iris lacks then is added around it.

    Args:
        seen, meant: `(B, 470, 2)` marks, as they are and as they should be.
        depths: `(B, 1, S, S)`, how deep in the erased region each pixel lies, in pixels; where it is not, nothing moves.

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
    """What vectors of landmarks, both `(B, 468, 2)`, mean for all pixels, `(B, S, S, 2)`: Gaussian means (Nadaraya-Watson)."""
    line = (torch.arange(CELLS, device=vectors.device) + 0.5) * (size / CELLS)
    near = torch.exp(-(line[:, None] - landmarks.mT[:, :, None]).square() / (2 * (REACH * size) ** 2))
    across, down = near[:, None].unbind(2)  # (B, 1, CELLS, 468): a Gaussian is a product
    weighted = torch.cat([vectors, torch.ones_like(vectors[..., :1])], dim=-1).mT  # (B, 3, 468)
    sums = (down * weighted[:, :, None]) @ across.mT
    field = sums[:, :2] / (sums[:, 2:] + BACKGROUND)
    return F.interpolate(field, size=(size, size), mode="bicubic").permute(0, 2, 3, 1)


def displace(images: Tensor, field: Tensor) -> Tensor:
    """Images `(B, C, S, S)` whose every pixel comes from `field` `(B, S, S, 2)` pixels further, float32; cubic."""
    size = field.shape[1]
    grid = 2 * (_pixels(size).to(field) + field) / size - 1
    return F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)


def _pixels(size: int) -> Tensor:
    """`(S, S, 2)`: where the middle of each pixel is."""
    line = torch.arange(size) + 0.5
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)


def shortened(vectors: Tensor, limit: float) -> Tensor:
    """Vectors `(..., n)` none of which is longer than the limit."""
    return vectors * (limit / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
