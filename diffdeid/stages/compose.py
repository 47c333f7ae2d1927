"""Stage 8: new faces and covers back into the picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from torch import Tensor

from diffdeid.geometry.composite import FEATHER, cover, paste
from diffdeid.structures import Covered, Face, Outcome, Replaced


def lay_over_crops(faces: Tensor, images: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Generated faces `(B, 3, S, S)` over the crops `(B, 3, S, S)` of their pictures, and how opaque they are, `(B, 1, S, S)`.

    They fade out inside of what is erased; `depths` `(B, 1, S, S)` is its `signed_distance`.
    """
    ramp = (depths / (FEATHER * depths.shape[-1])).clamp(0, 1)
    opacity = ramp * ramp * (3 - 2 * ramp)
    return images + opacity * (faces.float().clamp(-1, 1) - images), opacity


def compose(
    picture: np.ndarray, faces: Iterable[tuple[Face, Outcome]], fallback: Literal["solid", "mosaic", "blur"]
) -> np.ndarray:
    """A picture `(H, W, 3)` uint8 with its faces replaced or covered. Covers come last: nothing is painted over them."""
    faces, result = list(faces), picture.copy()
    for _, outcome in faces:
        if isinstance(outcome, Replaced):
            paste(result, outcome.patch, outcome.opacity, outcome.matrix, out=result)
    for face, outcome in faces:
        if isinstance(outcome, Covered):
            cover(result, face, fallback, out=result)
    return result
