"""Stage 8: new faces and covers back into the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from diffdeid.geometry.backdrop import continue_backdrop
from diffdeid.geometry.composite import FEATHER, paste
from diffdeid.geometry.cover import cover
from diffdeid.options import Cover
from diffdeid.structures import Covered, Face, Outcome, Replaced

ASIDE = 35.0  # degrees past the camera from which the outline of a face is seen before what is behind it


def lay_before_backdrop(faces: Tensor, images: Tensor, depths: Tensor, maps: Tensor, angles: Sequence[float]) -> Tensor:
    """Generated faces `(B, 3, S, S)`, those that look to the side before what is behind them in `images` `(B, 3, S, S)`.

    Args:
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.
        maps: `(B, 9, S, S)`, the spatial conditions, whose normals say where the new heads are.
        angles: degrees by which they look past the camera.
    """
    aside = [row for row, angle in enumerate(angles) if angle > ASIDE]
    if not aside:
        return faces
    heads = (maps[aside, 4:7].square().sum(dim=1, keepdim=True) > 0.25).float()
    laid = faces.float().clone()
    laid[aside] = continue_backdrop(laid[aside], images[aside], depths[aside], heads)
    return laid


def lay_over_crops(faces: Tensor, images: Tensor, depths: Tensor, front: Tensor | float = 0) -> tuple[Tensor, Tensor]:
    """Generated faces `(B, 3, S, S)` over the crops `(B, 3, S, S)` of their pictures, and how opaque they are, `(B, 1, S, S)`.

    They fade out inside of what is erased, and lie behind what is in front.

    Args:
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.
        front: `(B, 1, S, S)`, 0…1, what is in front.
    """
    ramp = (depths / (FEATHER * depths.shape[-1])).clamp(0, 1)
    opacity = ramp * ramp * (3 - 2 * ramp) * (1 - front)
    return images + opacity * (faces.float().clamp(-1, 1) - images), opacity


def compose(picture: np.ndarray, faces: Iterable[tuple[Face, Outcome]], fallback: Cover, cover_scale: float) -> np.ndarray:
    """A picture `(H, W, 3)` uint8 with its faces replaced or covered.

    Covers come last, so that nothing is painted over them. Pixels that a new face replaced hold nothing of any other, and stay.
    """
    faces, result = list(faces), picture.copy()
    hidden = [face for face, outcome in faces if isinstance(outcome, Covered)]
    replaced = np.zeros(picture.shape[:2], bool) if hidden else None
    for _, outcome in faces:
        if isinstance(outcome, Replaced):
            paste(result, outcome.patch, outcome.opacity, outcome.matrix, out=result, replaced=replaced)
    return cover(result, hidden, fallback, cover_scale, replaced, out=result)
