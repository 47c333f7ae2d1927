"""The seams of generated faces: their colour is matched to the skin around them before they are laid over the picture.

The network paints the surroundings of the face too, with the same colour cast as the face. There the picture tells what the cast
is: the quotient of the same spot in both, from which the shading of jaw and neck cancels. These border values are carried inwards
smoothly, as differences are in P. Pérez et al., *Poisson image editing*, 2003, by a mean over inverse distances as in Z. Farbman
et al., *Coordinates for instant image cloning*, 2009, and *Convolution pyramids*, 2011.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.composite import FEATHER

CELLS = 32  # side of the grid on which the smooth cast is computed
# In crop sizes:
RING = 10 / 256  # width of the zones on both sides of the border that are compared; the inner one begins beyond the soft edge
FRAME = 4 / 256  # networks paint the edge of their picture badly
BLUR = 12 / 256  # of the zones before they are compared, so that they overlap
SOFTNESS = 18 / 256  # distance over which border values are averaged instead of met exactly
# In natural logarithms of colour:
HUE, LIGHT = 0.15, 0.4  # spread of skin around the median of the face, in log R/G and log B/G, and in log G
DISAGREEMENT = 0.5  # a spot that differs by more shows different things in the two pictures
FARTHEST = 0.35  # the largest correction
BLACK = 0.06  # is added to all colours, so that noise in dark places does not count

NOTHING = 0.01  # weight of "no cast" all along the border, for places without evidence
SHARE = 0.3  # of the step across the border that is a fault; the rest is the shading of heads (by regression on real ones)
GREY = 1.5 / 127.5  # mean difference between the colours of a pixel up to which a picture is black and white
LUMA = 0.299, 0.587, 0.114  # shares of red, green and blue in the light of a pixel (ITU-R BT.601)
PERSISTENCE = 0.9  # share of earlier frames in the evidence


class ColourCast(NamedTuple):
    """The colour cast that is seen around generated faces, in cells of the crop; 0 away from the border.

    Attributes:
        weight: `(B, 1, CELLS, CELLS)`, 0…1, how much of a cell is evidence.
        weighted: `(B, 3, CELLS, CELLS)`, logarithms of the gains that the channels need there, times `weight`.
        border: `(B, 1, CELLS, CELLS)`, 0…1, how much of a cell lies along the border.
    """

    weight: Tensor
    weighted: Tensor
    border: Tensor


def match(faces: Tensor, sources: Tensor, depths: Tensor) -> Tensor:
    """Correct the colour casts of generated faces that show at their borders.

    Args:
        faces: `(B, 3, S, S)` in [-1, 1], the generated crops with their surroundings.
        sources: `(B, 3, S, S)` in [-1, 1], crops of the pictures. What is erased has no influence.
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.

    Returns:
        `(B, 3, S, S)` in [-1, 1]; differs from `faces` only in the erased region.
    """
    return correct(faces, depths, measure(faces, sources, depths))


def match_steadily(faces: Tensor, sources: Tensor, depths: Tensor, before: ColourCast | None) -> tuple[Tensor, ColourCast]:
    """`match` for frames of a video, by the evidence of all frames so far; `before` is the cast of the last frame, if any."""
    cast = measure(faces, sources, depths)
    if before is not None:  # crops move with the face, so cells can be compared
        cast = ColourCast(*(new + PERSISTENCE * (old - new) for old, new in zip(before, cast, strict=True)))
    return correct(faces, depths, cast), cast


def measure(faces: Tensor, sources: Tensor, depths: Tensor) -> ColourCast:
    """Compare generated crops with their sources around what is erased; arguments as for `match`."""
    size, edge = depths.shape[-1], round(FRAME * depths.shape[-1])
    seen = F.pad(torch.ones_like(depths[..., edge : size - edge, edge : size - edge]), [edge] * 4)
    outside = seen * ((depths < 0) & (depths >= -RING * size))
    inside = seen * ((depths > FEATHER * size) & (depths <= (FEATHER + RING) * size))
    old, new = _colours(sources), _colours(faces)

    # 1. the same spots in both pictures, where both show skin
    deep = depths.clamp(min=0)
    usual = (
        torch.where(deep >= deep.amax(dim=(2, 3), keepdim=True) / 4, new, math.nan)
        .flatten(2)
        .nanmedian(dim=2)
        .values[..., None, None]
    )
    skin = _skin(new, usual)
    outer, inner = outside * skin * _skin(old, usual), inside * skin
    old_seen, new_seen = _in_cells(outer * old), _in_cells(outer * new)
    gain = _log_quotient(old_seen, new_seen)

    # 2. across the border of the generated pictures, for a face painted lighter or darker than the skin around it
    weight, (inner, inner_seen) = _in_cells(outer), (_blurred(_in_cells(part)) for part in (inner, inner * new))
    step = _log_quotient(_blurred(new_seen) * inner, inner_seen * _blurred(weight))
    gain = gain + SHARE * _agreement(step) * step * inner / (inner + NOTHING)

    weight = weight * _agreement(gain)
    return ColourCast(weight, weight * gain, _in_cells(outside))


def correct(faces: Tensor, depths: Tensor, cast: ColourCast) -> Tensor:
    """Remove a cast from the erased region of generated crops, by gains, so that black hair and pupils stay black."""
    border = cast.border > 0
    known = torch.cat([cast.weighted, cast.weight + NOTHING * cast.border], dim=1) * border
    means = (known.flatten(2) @ _nearness(faces.device)).unflatten(2, (CELLS, CELLS))
    gain = torch.exp((means[:, :3] / means[:, 3:].clamp(min=1e-12)).clamp(-FARTHEST, FARTHEST))
    gain = F.interpolate(gain, size=depths.shape[-2:], mode="bicubic")
    corrected = (_colours(faces) * gain - BLACK).clamp(0, 1) * 2 - 1
    return torch.where(depths > 0, corrected, faces)


@cache
def _nearness(device: torch.device) -> Tensor:
    """Weights of cells for one another, `(CELLS², CELLS²)`, as in Farbman et al. 2011."""
    cells = torch.cartesian_prod(*[torch.arange(CELLS, device=device, dtype=torch.float32)] * 2)
    return (torch.cdist(cells, cells).square() + (SOFTNESS * CELLS) ** 2) ** -1.5


def _colours(pictures: Tensor) -> Tensor:
    """Pictures in [-1, 1] -> colours in 0…1, plus `BLACK`."""
    return (pictures + 1) / 2 + BLACK


def _skin(colours: Tensor, usual: Tensor) -> Tensor:
    """How much colours look like the usual colour of the face, `(B, 1, S, S)`, 0…1; hue counts more than lightness."""
    red, green, blue = torch.log(colours / usual).split(1, dim=1)
    return torch.exp(-((red - green).square() + (blue - green).square()) / (2 * HUE**2) - green.square() / (2 * LIGHT**2))


def _in_cells(pictures: Tensor) -> Tensor:
    """Means over cells, `(B, n, CELLS, CELLS)`."""
    return F.adaptive_avg_pool2d(pictures, CELLS)


def _blurred(cells: Tensor) -> Tensor:
    line = torch.arange(CELLS, device=cells.device, dtype=cells.dtype)
    gaussian = torch.exp(-(line[:, None] - line).square() / (2 * (BLUR * CELLS) ** 2))
    return gaussian @ cells @ gaussian / gaussian.sum(1).amax() ** 2


def _log_quotient(dividend: Tensor, divisor: Tensor) -> Tensor:
    return torch.log(dividend.clamp(min=1e-6) / divisor.clamp(min=1e-6))


def _agreement(gain: Tensor) -> Tensor:
    """Weights `(B, 1, …)` of border values `(B, 3, …)`, which are 0 for large ones: Tukey's biweight."""
    return (1 - (gain.abs().amax(dim=1, keepdim=True) / DISAGREEMENT).clamp(0, 1).square()).square()


def without_colour(faces: Tensor, sources: Tensor, depths: Tensor) -> Tensor:
    """Remove the colour that networks give to generated faces `(B, 3, S, S)` in black-and-white pictures.

    Faces in colour pictures stay bit-identical. `sources` and `depths` are as for `match`; erased pixels do not count.
    """
    outside = (depths <= 0).float()
    chroma = (sources.amax(dim=1, keepdim=True) - sources.amin(dim=1, keepdim=True)) * outside
    grey = (chroma.sum(dim=(1, 2, 3)) <= GREY * outside.sum(dim=(1, 2, 3))) & (outside.sum(dim=(1, 2, 3)) > 0)
    light = (faces * faces.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True).expand_as(faces)
    return torch.where(grey[:, None, None, None], light, faces)
