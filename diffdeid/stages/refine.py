"""Stage 6b, which the paper does not have: large faces get the detail that the denoiser's crops have no room for."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.align import scale_of
from diffdeid.geometry.seam import without_colour
from diffdeid.geometry.sharpness import DETAIL, sharpen, soften
from diffdeid.models.refiner import SCALE, RefinerModel

# From so many pixels of the picture for each pixel of its crop on, a face is refined. With crops of 256 it is 300 pixels high.
LARGE = 1.5


def is_large(matrix: np.ndarray) -> bool:
    """Whether the picture has at least `LARGE` pixels for each pixel of a crop; `matrix` `(2, 3)` is picture -> crop."""
    return scale_of(matrix) <= 1 / LARGE


def enlarged(maps: Tensor) -> Tensor:
    """Maps `(B, C, S, S)` at the resolution of refined faces, `(B, C, 2 S, 2 S)`."""
    return F.interpolate(maps, scale_factor=SCALE, mode="bilinear", align_corners=False)


def refine(refiner: RefinerModel, faces: Tensor, sources: Tensor, depths: Tensor, maps: Tensor) -> Tensor:
    """Double the resolution of generated faces, sharpen them, and blur those that are then sharper than their sources.

    Args:
        refiner: the network.
        faces: `(B, 3, S, S)` in [-1, 1], generated crops.
        sources: `(B, 3, 2 S, 2 S)` in [-1, 1], crops of the pictures. The erased face is read only for how much detail it has.
        depths: `(B, 1, 2 S, 2 S)`, `signed_distance` of what is erased.
        maps: `(B, 9, S, S)`, the spatial conditions that the faces were painted from.

    Returns:
        `(B, 3, 2 S, 2 S)` in [-1, 1].
    """
    masks = (maps[:, :1] > 0).float()  # of what was erased
    refined = refiner(faces.clamp(-1, 1), maps[:, 1:4], masks).sample.clamp(-1, 1)
    refined = without_colour(refined, sources, depths)
    return soften(soften(sharpen(refined, depths), sources, depths), sources, depths, DETAIL / SCALE)
