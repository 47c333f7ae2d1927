"""Stage 8: new faces and covers back into the picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from torch import Tensor

from diffdeid.geometry.composite import FEATHER, cover, paste
from diffdeid.geometry.mask import depth_in
from diffdeid.structures import Covered, Face, FaceCrop, Outcome, Replaced


def lay_over_crop(generated: Tensor, crop: FaceCrop, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A generated face `(1, 3, S, S)` -> the patch, its opacity `(S, S)`, and the crop with the patch in it, both uint8.

    `mask` `(S, S)` is 1 where the face is erased; the patch fades out inside of it.
    """
    patch = ((generated[0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    ramp = np.clip(depth_in(mask) / (FEATHER * len(mask)), 0, 1)
    opacity = ramp * ramp * (3 - 2 * ramp)
    mixed = crop.image + opacity[..., None] * (patch.astype(np.float32) - crop.image)
    return patch, opacity, mixed.round().astype(np.uint8)


def compose(
    picture: np.ndarray, faces: Iterable[tuple[Face, Outcome]], fallback: Literal["solid", "mosaic", "blur"]
) -> np.ndarray:
    """A picture `(H, W, 3)` uint8 with its faces replaced or covered. Covers come last: nothing is painted over them."""
    faces = list(faces)
    for _, outcome in faces:
        if isinstance(outcome, Replaced):
            picture = paste(picture, outcome.patch, outcome.opacity, outcome.matrix)
    for face, outcome in faces:
        if isinstance(outcome, Covered):
            picture = cover(picture, face, fallback)
    return picture
