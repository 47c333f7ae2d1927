"""The one camera: at (0, 0, 10) decimetres, looking down -z (docs/conventions.md)."""

import torch
from torch import Tensor

from diffdeid.geometry.rotation import rotation_matrix

DISTANCE = 10.0  # camera to origin, decimetres
FOCAL = 5.0  # focal length in crop sizes: 128 pixels a decimetre at z = 0 in a 256-pixel crop


def to_camera(points: Tensor, pose: Tensor) -> Tensor:
    """Head space `(B, N, 3)` -> camera space, with pose p `(B, 6)`: rotation vector, translation."""
    return points @ rotation_matrix(pose[:, :3]).transpose(1, 2) + pose[:, None, 3:]


def project(points: Tensor, size: int, margin: int = 0) -> Tensor:
    """Camera space `(..., 3)` -> `(..., 3)`: x and y in pixels of a `size` × `size` crop, and depth in decimetres.

    With a `margin`, coordinates are those of the crop extended by that many pixels on every side.
    """
    depth = DISTANCE - points[..., 2:]
    scale = FOCAL * size / depth
    centre = size / 2 + margin
    return torch.cat([centre + scale * points[..., :1], centre - scale * points[..., 1:2], depth], dim=-1)
