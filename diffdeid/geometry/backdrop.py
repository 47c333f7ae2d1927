"""The background behind a head that looks to the side: the head's outline then runs through the erased region."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

OUTLINE = 3, 3  # 256ths of a crop: how far a head may reach beyond its render, and how soft its outline is then


def continue_backdrop(faces: Tensor, sources: Tensor, depths: Tensor, heads: Tensor) -> Tensor:
    """Continue the background of generated faces up to the outline of the head, from pixels that were not erased.

    Networks paint the outline of a face well, but cannot know what is beyond it. A crop that shows only the head stays as it is.

    Args:
        faces: `(B, 3, S, S)` in [-1, 1], the generated crops.
        sources: `(B, 3, S, S)` in [-1, 1], crops of the pictures.
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.
        heads: `(B, 1, S, S)`, 1 where the new head was rendered, else 0.
    """
    reach, softness = (max(1, round(part * faces.shape[-1] / 256)) for part in OUTLINE)
    grown = F.max_pool2d(heads, 2 * reach + 1, stride=1, padding=reach)
    known = (depths <= 0).float() * (1 - grown)
    soft = F.avg_pool2d(grown, 2 * softness + 1, stride=1, padding=softness, count_include_pad=False)
    beyond = (depths > 0) * (1 - soft) * known.amax(dim=(2, 3), keepdim=True)
    return faces + beyond * (spread(sources * known, known) - faces)


def spread(pictures: Tensor, known: Tensor) -> Tensor:
    """Spread the colours of known pixels to all: pictures `(B, C, H, W)` are 0 where they are not `known` `(B, 1, H, W)`.

    Pixels take the mean of known ones in ever larger cells (pull-push, Gortler et al. 1996).
    """
    height, width = known.shape[-2:]
    if min(height, width) <= 2:
        return pictures.sum(dim=(2, 3), keepdim=True).expand_as(pictures) / known.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    sums, weights = F.avg_pool2d(pictures, 2, ceil_mode=True), F.avg_pool2d(known, 2, ceil_mode=True)
    some = (weights > 0).float()
    coarse = spread(sums / weights.clamp(min=1e-6), some)
    finer = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return pictures + (1 - known) * finer
