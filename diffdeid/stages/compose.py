"""Stage 8: lay new faces and covers over the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.backdrop import continue_backdrop
from diffdeid.geometry.composite import FEATHER, paste
from diffdeid.geometry.cover import cover
from diffdeid.options import Cover
from diffdeid.structures import Covered, Face, Outcome, Replaced

ASIDE = 35.0  # degrees between face and camera from which on any background is continued, and not only a plain one


def lay_before_backdrop(faces: Tensor, images: Tensor, depths: Tensor, maps: Tensor, angles: Sequence[float]) -> Tensor:
    """Lay generated faces `(B, 3, S, S)` over the background of `images` `(B, 3, S, S)`, as far as it can be continued.

    Args:
        depths: `(B, 1, S, S)`, `signed_distance` of the erased region.
        maps: `(B, 9, S, S)`, the spatial conditions, whose normals say where the new heads are.
        angles: degrees between faces and camera.
    """
    heads = (maps[:, 4:7].square().sum(dim=1, keepdim=True) > 0.25).float()
    return continue_backdrop(faces.float(), images, depths, heads, torch.tensor(angles, device=faces.device) > ASIDE)


def lay_over_crops(faces: Tensor, images: Tensor, depths: Tensor, front: Tensor | float = 0) -> tuple[Tensor, Tensor]:
    """Lay generated faces `(B, 3, S, S)` over the crops `(B, 3, S, S)` of their pictures.

    They fade out at the edge of the erased region, inside of it, and lie behind what is in front.

    Args:
        depths: `(B, 1, S, S)`, `signed_distance` of the erased region.
        front: `(B, 1, S, S)`, 0…1, how much of a pixel is something in front of the face.

    Returns:
        The crops `(B, 3, S, S)`, and how opaque the faces are, `(B, 1, S, S)`, 0…1.
    """
    ramp = (depths / (FEATHER * depths.shape[-1])).clamp(0, 1)
    opacity = ramp * ramp * (3 - 2 * ramp) * (1 - front)
    return images + opacity * (faces.float().clamp(-1, 1) - images), opacity


def compose(picture: np.ndarray, faces: Iterable[tuple[Face, Outcome]], fallback: Cover, cover_scale: float) -> np.ndarray:
    """Replace or cover the faces of a copy of a picture `(H, W, 3)` uint8.

    Covers come last, so that nothing is painted over them. They spare pixels that a new face replaced completely, because nothing
    of any source is left there.
    """
    faces, result = list(faces), picture.copy()
    hidden = [face for face, outcome in faces if isinstance(outcome, Covered)]
    replaced = np.zeros(picture.shape[:2], bool) if hidden else None
    for _, outcome in faces:
        if isinstance(outcome, Replaced):
            paste(result, outcome.patch, outcome.opacity, outcome.matrix, out=result, replaced=replaced)
    return cover(result, hidden, fallback, cover_scale, replaced, out=result)
