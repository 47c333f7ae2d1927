"""The refiner: a generated face of 256 pixels -> the same face with 512, for faces that are large in their picture.

Network: the compact SRVGG of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833; weights `realesr-general-x4v3`, BSD-3) with 14 of
its layers. It works at half of the face's resolution, on cells of 2×2 pixels, so it costs as little as the original does for a
quarter of the pixels. Unlike the original, it is told where the face is and how its head is shaded. It only adds detail: the same
to red, green and blue, and about zero on average over `CELL` pixels. So colours stay, and no pattern of colour can appear.
Training: training/train_refiner.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.models.modeling_utils import StrictModelMixin

SCALE = 2  # how many times larger the output is
CELL = 32  # pixels of the output over which nothing is added on average


@dataclass
class RefinerOutput(BaseOutput):
    """Output of `RefinerModel`.

    Attributes:
        sample: `(batch, 3, 2 * height, 2 * width)`, about [-1, 1].
    """

    sample: Tensor


class RefinerModel(StrictModelMixin, ConfigMixin):
    r"""Doubles the resolution of generated faces.

    Args:
        channels: channels of all layers.
        num_layers: convolutions between the first and the last.
    """

    @register_to_config
    def __init__(self, channels: int = 64, num_layers: int = 14):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(4 * (3 + 3 + 1), channels, 3, padding=1), nn.PReLU(channels)]
        for _ in range(num_layers):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, (2 * SCALE) ** 2, 3, padding=1))

    def forward(self, faces: Tensor, renders: Tensor, masks: Tensor, return_dict: bool = True) -> RefinerOutput | tuple[Tensor]:
        """Refine.

        Args:
            faces: `(batch, 3, height, width)` in [-1, 1], generated crops; sides are even.
            renders: `(batch, 3, height, width)` in [-1, 1], renders I'_3d of the new heads.
            masks: `(batch, 1, height, width)`, 1 where the faces were erased, else 0.
            return_dict: `False` gives a tuple.
        """
        cells = F.pixel_unshuffle(torch.cat([faces, renders, 2 * masks - 1], dim=1), 2)
        cells = cells.to(self.dtype, memory_format=torch.channels_last)
        detail = F.pixel_shuffle(self.body(cells), 2 * SCALE).to(faces.dtype)  # colours keep the precision of the faces
        size = detail.shape[-2:]
        smooth = F.avg_pool2d(detail, CELL, ceil_mode=True, count_include_pad=False)
        detail = detail - F.interpolate(smooth, size=size, mode="bilinear", align_corners=False)
        sample = F.interpolate(faces, size=size, mode="bicubic", align_corners=False) + detail
        return RefinerOutput(sample=sample) if return_dict else (sample,)
