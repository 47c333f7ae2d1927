"""The sharpness of generated faces: a face must be as sharp as its photo.

In a blurred picture, or out of focus, it must not be sharper than its surroundings. In a sharp one it is sharpened, because
networks paint fine detail with too little contrast: half of a photo's within the finest octave.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.pixels import on_host

BLURS = (0.0, 1.0, 1.5, 2.25, 3.4, 5.0)  # standard deviations in 256ths of a crop
DETAIL = 1.5  # in the same units; what a blur by this removes from a picture is its detail, unless another is asked for
SHARPENED = 0.8  # share of the detail of the source up to which faces are sharpened …
GAINS = 1.0, 0.75, 0.5, 0.25  # … by adding their own detail at most so many times
INSIDE = 8 / 256  # crop sizes; detail is measured at least this far inside the outline of the face


def match_sharpness(faces: Tensor, sources: Tensor, depths: Tensor, band: float = DETAIL) -> Tensor:
    """Blur generated faces that show more detail than their sources, and sharpen those that show less than `SHARPENED` of it.

    Others stay bit-identical. The erased face is read only for how much detail it has.

    Args:
        faces: `(B, 3, S, S)` in [-1, 1], the generated crops.
        sources: `(B, 3, S, S)` in [-1, 1], crops of the pictures.
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.
        band: what a blur by this many 256ths of a crop removes from a picture is its detail.
    """
    size = depths.shape[-1]
    inside = (depths > INSIDE * size).float()
    most, found = _detail(sources, inside, band), _detail(faces, inside, band)
    least, matched = SHARPENED * most, faces
    for make, wanted, rows in ((_blurs, most, found > most), (_sharpened, least, found < least)):
        rows = np.flatnonzero(on_host(rows)).tolist()
        if rows:
            matched = matched.clone() if matched is faces else matched
            matched[rows] = _choose(make(faces[rows], band), inside[rows], wanted[rows], band)
    return matched


def relative_detail(pictures: Tensor, depths: Tensor) -> Tensor:
    """The detail of faces in pictures `(B, 3, S, S)`, `(B,)` in parts of the contrast of the face; 0.08 or more is sharp.

    `depths` is as for `soften`.
    """
    inside = (depths > INSIDE * depths.shape[-1]).float()
    light, count = pictures.mean(dim=1, keepdim=True), inside.sum(dim=(1, 2, 3), keepdim=True)
    mean = (light * inside).sum(dim=(1, 2, 3), keepdim=True) / count
    contrast = ((light - mean).square() * inside).sum(dim=(1, 2, 3), keepdim=True) / count
    return _detail(pictures, inside) / contrast.sqrt().flatten()


def _blurs(faces: Tensor, band: float) -> list[Tensor]:
    """Faces, and the same more and more blurred."""
    return [_blurred(faces, blur * faces.shape[-1] / 256) for blur in BLURS]


def _sharpened(faces: Tensor, band: float) -> list[Tensor]:
    """Faces that are sharpened by an unsharp mask, from the sharpest down to the faces themselves."""
    detail = faces - _blurred(faces, band * faces.shape[-1] / 256)
    return [(faces + gain * detail).clamp(-1, 1) for gain in GAINS] + [faces]


def _choose(versions: Sequence[Tensor], inside: Tensor, wanted: Tensor, band: float) -> Tensor:
    """Mix two of several versions of faces, whose detail falls, so that each has the detail `wanted` `(B,)` if it can."""
    versions = torch.stack(list(versions))
    details = torch.stack([_detail(version, inside, band) for version in versions])
    chosen = (details > wanted).sum(dim=0).clamp(max=len(versions) - 1)  # the first that has no more
    before, rows = (chosen - 1).clamp(min=0), torch.arange(len(wanted), device=wanted.device)
    above, below = details[before, rows], details[chosen, rows]
    share = ((above - wanted) / (above - below).clamp(min=1e-6)).clamp(0, 1)[:, None, None, None]
    return versions[before, rows].lerp(versions[chosen, rows], share)


def _detail(pictures: Tensor, inside: Tensor, band: float = DETAIL) -> Tensor:
    """Mean absolute detail of the light of pictures `(B, 3, S, S)` where a mask is 1, `(B,)`."""
    light = pictures.mean(dim=1, keepdim=True)
    detail = (light - _blurred(light, band * light.shape[-1] / 256)).abs()
    return (detail * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp(min=1)


def _blurred(pictures: Tensor, deviation: float) -> Tensor:
    """Pictures `(B, C, S, S)` after a Gaussian blur; their borders are repeated."""
    if deviation == 0:
        return pictures
    radius = min(max(1, round(3 * deviation)), pictures.shape[-1] - 1)
    line = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-line.square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(pictures.shape[1], 1, 1, -1)
    padded = F.pad(pictures, [radius] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=pictures.shape[1])
    return F.conv2d(rows, kernel.mT, groups=pictures.shape[1])
