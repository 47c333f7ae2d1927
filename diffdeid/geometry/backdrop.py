"""The background behind a new head: where that is narrower than the old one, its outline runs through the erased region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# In 256ths of a crop:
REACH, REACH_ASIDE = 1, 3  # how far a head may reach beyond its render; noses in profile are not rendered as exactly as jaws
SOFTNESS = 3  # of its outline, which begins to fade so far within
CELL = 4  # side of cells, of which the nearest 5 × 5 say whether a background is plain
PLAIN = 0.08  # standard deviation of colours there, of -1…1, at which the continued background counts by a third


def continue_backdrop(faces: Tensor, sources: Tensor, depths: Tensor, heads: Tensor, aside: Tensor) -> Tensor:
    """Continue the background of generated faces up to the outline of the head, from pixels that were not erased.

    Networks paint the outline of a face well, but smear plain colours beyond it. They continue hair and clothes well, which are
    not plain. Beyond the outline of a profile is neither. A crop that shows only the head stays as it is.

    Args:
        faces: `(B, 3, S, S)` in [-1, 1], the generated crops.
        sources: `(B, 3, S, S)` in [-1, 1], crops of the pictures.
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.
        heads: `(B, 1, S, S)`, 1 where the new head was rendered, else 0.
        aside: `(B,)` bool, heads that look to the side. Behind these, any background is continued, else only a plain one.
    """
    reach, reach_aside, softness, cell = (
        max(1, round(part * faces.shape[-1] / 256)) for part in (REACH, REACH_ASIDE, SOFTNESS, CELL)
    )
    aside = aside[:, None, None, None]
    grown = torch.where(aside, _grown(heads, reach_aside), _grown(heads, reach))
    known = (depths <= 0).float() * (1 - grown)
    seen = torch.cat([sources, _variance(sources, known, cell)], dim=1)
    backdrop, variance = spread(seen * known, known).split([3, 1], dim=1)
    trust = torch.where(aside, 1.0, torch.exp(-variance / PLAIN**2))
    beyond = (depths > 0) * (1 - _blurred(grown, softness)) * known.amax(dim=(2, 3), keepdim=True) * trust
    return faces + beyond * (backdrop - faces)


def _grown(region: Tensor, reach: int) -> Tensor:
    return F.max_pool2d(region, 2 * reach + 1, stride=1, padding=reach)


def _blurred(pictures: Tensor, reach: int) -> Tensor:
    return F.avg_pool2d(pictures, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)


def _variance(pictures: Tensor, known: Tensor, cell: int) -> Tensor:
    """The variance of the `known` pixels `(B, 1, S, S)` next to each pixel of `pictures` `(B, C, S, S)`, `(B, 1, S, S)`."""
    square = pictures.square().mean(dim=1, keepdim=True)
    cells = F.avg_pool2d(torch.cat([pictures * known, square * known, known], dim=1), cell, ceil_mode=True)
    mean, square, count = _blurred(cells, 2).split([pictures.shape[1], 1, 1], dim=1)
    count = count.clamp(min=1e-6)
    variance = (square / count - (mean / count).square().mean(dim=1, keepdim=True)).clamp(min=0)
    return F.interpolate(variance, size=known.shape[-2:], mode="bilinear", align_corners=False)


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
