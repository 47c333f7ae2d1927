"""The trunk of a ResNet (He et al. 2015, arXiv:1512.03385) with bottlenecks, which halve their maps in the 3×3 convolution.

Tensors have the names of the ResNet of `transformers`, so that weights made with it load. That library itself would add 140 MB to
every install, and 2 seconds to each start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

REDUCTION = 4  # of the channels inside of a bottleneck


class NormalisedConvolution(nn.Module):
    """A convolution without bias, then batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        return self.normalization(self.convolution(maps))


class Bottleneck(nn.Module):
    """A residual block of three convolutions, of which the middle one sees fewer channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        inner, changes = out_channels // REDUCTION, in_channels != out_channels or stride != 1
        self.shortcut = NormalisedConvolution(in_channels, out_channels, 1, stride) if changes else nn.Identity()
        self.layer = nn.ModuleList(
            [
                NormalisedConvolution(in_channels, inner, 1),
                NormalisedConvolution(inner, inner, 3, stride),
                NormalisedConvolution(inner, out_channels, 1),
            ]
        )

    def forward(self, maps: Tensor) -> Tensor:
        first, middle, last = self.layer
        return F.relu(last(F.relu(middle(F.relu(first(maps))))) + self.shortcut(maps))


class ResNetTrunk(nn.Module):
    """Pictures `(B, 3, H, W)` -> pooled features `(B, hidden_sizes[-1])`.

    Args:
        stem_channels: of the first convolution.
        hidden_sizes: channels of the stages, `(256, 512, 1024, 2048)` for ResNet-50.
        depths: blocks of the stages, `(3, 4, 6, 3)` for ResNet-50.
    """

    def __init__(self, stem_channels: int, hidden_sizes: Sequence[int], depths: Sequence[int]):
        super().__init__()
        self.embedder = nn.ModuleDict({"embedder": NormalisedConvolution(3, stem_channels, 7, 2)})
        stages, channels = nn.ModuleList(), stem_channels
        for number, (size, depth) in enumerate(zip(hidden_sizes, depths, strict=True)):
            blocks = [Bottleneck(channels, size, 1 if number == 0 else 2)]
            blocks += [Bottleneck(size, size, 1) for _ in range(depth - 1)]
            stages.append(nn.ModuleDict({"layers": nn.Sequential(*blocks)}))
            channels = size
        self.encoder = nn.ModuleDict({"stages": stages})

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.embedder["embedder"](images)), 3, 2, 1)
        for stage in self.encoder["stages"]:
            maps = stage["layers"](maps)
        return F.adaptive_avg_pool2d(maps, 1).flatten(1)
