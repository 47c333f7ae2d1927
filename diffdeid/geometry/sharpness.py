"""The sharpness of generated faces.

Networks paint fine detail with too little contrast. In a blurred picture, or out of focus, a face must still not be sharper than
the one it replaces.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.pixels import on_host

BLURS = (0.0, 1.0, 1.5, 2.25, 3.4, 5.0)  # standard deviations in 256ths of a crop
DETAIL = 1.5  # in the same units; what a blur by this removes from a picture is its detail, unless a call says otherwise
GAIN = 0.75  # of detail, which networks paint with .5 to .8 of the contrast that photos have
RIM = 24 / 256  # crop sizes; the gain rises from 0 at the edge of what is erased to its full value there, or jaws would get halos
INSIDE = 8 / 256  # crop sizes; detail is measured at least this far inside the outline of the face


def sharpen(faces: Tensor, depths: Tensor) -> Tensor:
    """Sharpen generated faces `(B, 3, S, S)` in [-1, 1] by an unsharp mask.

    The gain is the same for all. So only `soften`, which comes afterwards, makes a result depend on the erased face: on how much
    detail it has. `depths` is as for `soften`.
    """
    size = depths.shape[-1]
    gain = GAIN * (depths / (RIM * size)).clamp(0, 1)
    return (faces + gain * (faces - _blurred(faces, DETAIL * size / 256))).clamp(-1, 1)


def soften(faces: Tensor, sources: Tensor, depths: Tensor, band: float = DETAIL) -> Tensor:
    """Blur generated faces that show more detail than their sources; others stay bit-identical.

    The erased face is read only for how much detail it has.

    Args:
        faces: `(B, 3, S, S)` in [-1, 1], the generated crops.
        sources: `(B, 3, S, S)` in [-1, 1], crops of the pictures.
        depths: `(B, 1, S, S)`, `signed_distance` of what is erased.
        band: what a blur by this many 256ths of a crop removes from a picture is its detail.
    """
    size = depths.shape[-1]
    inside = (depths > INSIDE * size).float()
    wanted = _detail(sources, inside, band)
    rows = np.flatnonzero(on_host(_detail(faces, inside, band) > wanted)).tolist()
    if not rows:
        return faces
    softened = faces.clone()
    softened[rows] = _as_detailed(faces[rows], inside[rows], wanted[rows], size, band)
    return softened


def relative_detail(pictures: Tensor, depths: Tensor) -> Tensor:
    """The detail of faces in pictures `(B, 3, S, S)`, `(B,)` in parts of the contrast of the face; 0.08 or more is sharp.

    `depths` is as for `soften`.
    """
    inside = (depths > INSIDE * depths.shape[-1]).float()
    light, count = pictures.mean(dim=1, keepdim=True), inside.sum(dim=(1, 2, 3), keepdim=True)
    mean = (light * inside).sum(dim=(1, 2, 3), keepdim=True) / count
    contrast = ((light - mean).square() * inside).sum(dim=(1, 2, 3), keepdim=True) / count
    return _detail(pictures, inside) / contrast.sqrt().flatten()


def _as_detailed(faces: Tensor, inside: Tensor, wanted: Tensor, size: int, band: float) -> Tensor:
    """Blur faces until they have the detail `wanted` `(B,)`, by an amount between two of `BLURS`."""
    versions = torch.stack([_blurred(faces, blur * size / 256) for blur in BLURS])
    details = torch.stack([_detail(version, inside, band) for version in versions])  # (len(BLURS), B)
    chosen = (details > wanted).sum(dim=0).clamp(max=len(BLURS) - 1)  # the first that has no more; details fall
    before, rows = (chosen - 1).clamp(min=0), torch.arange(len(faces), device=faces.device)
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
