"""The face recogniser: gives the identity embedding z_id, and judges every result.

dlib's `dlib_face_recognition_resnet_model_v1` (Davis King, 99.38 % on LFW; weights CC0, dlib is Boost licensed) as a
differentiable torch module. Its per-channel affine layers are folded into the convolutions by
`scripts/convert_third_party.py`. The mean is ours: the raw descriptors of all people point in roughly the same direction, so
cosines tell people apart only after the mean face is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  (diffusers looks for the name `ModelMixin` in this module)
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.models.modeling_utils import StrictModelMixin


@dataclass
class FaceRecognitionOutput(BaseOutput):
    """Identity of a batch of faces.

    Attributes:
        descriptor: `(B, 128)`, dlib's own numbers; two photos of one person lie nearer than 0.6 (Euclidean).
        embedding: `(B, 128)`, z_id: the descriptor minus the mean face, scaled to unit length.
    """

    descriptor: Tensor
    embedding: Tensor | None = None  # never `None`; accelerate's hooks build outputs from one argument, a dict


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; when downsampling, both paths halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, downsample: bool):
        super().__init__()
        self.downsample = downsample
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2 if downsample else 1, padding=0 if downsample else 1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.conv1(x).relu())
        if self.downsample:
            x = F.avg_pool2d(x, 2)
            # dlib adds tensors of unequal size: the smaller is padded with zeros at the right, the bottom and in channels
            h = F.pad(h, (0, x.shape[3] - h.shape[3], 0, x.shape[2] - h.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, h.shape[1] - x.shape[1]))
        return (h + x).relu()


class FaceRecognitionModel(StrictModelMixin, ConfigMixin):
    """Aligned 150-pixel face chips -> identity embeddings. Differentiable.

    Args:
        block_out_channels: channels of each stage (released: 32, 64, 128, 256, 256); all stages but the first downsample.
        layers_per_block: residual blocks in each stage (released: 3, 4, 3, 3, 1).
        embedding_dim: length of the descriptor (released: 128).
    """

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (32, 64, 128, 256, 256),
        layers_per_block: tuple[int, ...] = (3, 4, 3, 3, 1),
        embedding_dim: int = 128,
    ):
        super().__init__()
        channels = block_out_channels[0]
        self.stem = nn.Conv2d(3, channels, 7, stride=2)
        self.blocks = nn.ModuleList()
        for stage, (out_channels, num_layers) in enumerate(zip(block_out_channels, layers_per_block, strict=True)):
            for layer in range(num_layers):
                self.blocks.append(ResidualBlock(channels, out_channels, downsample=stage > 0 and layer == 0))
                channels = out_channels
        self.descriptor = nn.Linear(channels, embedding_dim, bias=False)
        self.register_buffer("mean", torch.zeros(embedding_dim))  # mean descriptor over many people

    def forward(self, chips: Tensor, return_dict: bool = True) -> FaceRecognitionOutput | tuple[Tensor, Tensor]:
        """Embed faces.

        Args:
            chips: `(B, 3, 150, 150)` RGB in [-1, 1], aligned by `geometry.align.chip_matrix`.
            return_dict: `False` gives the tuple `(descriptor, embedding)`.
        """
        # dlib: (0…255 minus the mean colour) / 256
        colour = chips.new_tensor([122.782, 117.001, 104.298]).view(3, 1, 1)
        x = ((chips + 1) * 127.5 - colour) / 256
        x = F.max_pool2d(self.stem(x).relu(), 3, stride=2)
        for block in self.blocks:
            x = block(x)
        descriptor = self.descriptor(x.mean(dim=(2, 3)))
        output = FaceRecognitionOutput(descriptor, F.normalize(descriptor - self.mean, dim=-1))
        return output if return_dict else output.to_tuple()
