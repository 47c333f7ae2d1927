"""The blocks of EfficientNet-Lite (Tan & Le 2019, arXiv:1905.11946), batch normalisation folded into the convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

LITE0 = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Convolution(nn.Module):
    """A convolution with TensorFlow's "same" padding, followed by ReLU6 if `activate`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        missing = [max((side - 1) // stride * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        x = self.conv(F.pad(x, [part for total in missing for part in (total // 2, total - total // 2)]))
        return x.clamp(0, 6) if self.activate else x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, convolve each channel, project; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, outputs, 1, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(self.depthwise(self.expand(x)))
        return x + projected if x.shape == projected.shape else projected


def inverted_residuals(channels: int, stages: Sequence[Sequence[int]]) -> list[InvertedResidual]:
    """The blocks of all `stages` (see `LITE0`) in order, for an input of so many channels."""
    blocks = []
    for repeats, kernel, stride, expansion, outputs in stages:
        for repeat in range(repeats):
            blocks.append(InvertedResidual(channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
            channels = outputs
    return blocks
