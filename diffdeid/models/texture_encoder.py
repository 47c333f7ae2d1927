"""The background branch of DiffDeID: encodes what skin, hair and light look like around the erased face.

Method: DiffDeID, §3.3, eq. (6). The key and value projections of the texture attention live here and not in the U-Net, so
that they are computed once per picture instead of once per denoising step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from torch import Tensor, nn

from diffdeid.models.modeling_utils import StrictModelMixin
from diffdeid.models.unet_blocks import DownBlock, check_size, patch_convolution, to_tokens


class TextureEncoderOutput(NamedTuple):
    """Keys and values of the texture attention, one of each per level, the finest level first.

    Attributes:
        keys: K per level, `(batch, height * width, channels)` at that level's size.
        values: V per level, shaped like its K.
    """

    keys: list[Tensor]
    values: list[Tensor]

    def pick(self, rows: Sequence[int]) -> TextureEncoderOutput:
        """The keys and values of some pictures of the batch, by their rows."""
        return TextureEncoderOutput(*([level[rows] for level in part] for part in self))

    @classmethod
    def cat(cls, outputs: Sequence[TextureEncoderOutput]) -> TextureEncoderOutput:
        """Several batches as one."""
        return cls(*([torch.cat(level) for level in zip(*part, strict=True)] for part in zip(*outputs, strict=True)))


class TextureEncoderModel(StrictModelMixin, ConfigMixin, AttentionMixin):
    r"""Encodes the masked picture into keys and values for `DiffDeIDUNet2DModel`.

    Same structure as the U-Net's encoder, without a condition vector.

    Args:
        in_channels: masked picture (3) and mask (1).
        patch_size: side in pixels of the patch that becomes one position of the finest level.
        block_out_channels: channels per level, finest first; each further level halves the resolution.
        layers_per_block: residual blocks per level.
        attention_head_dim: channels per head of the self-attention at the deepest level.
        norm_num_groups: groups of the normalisation.
        texture_channels: channels of keys and values at the deepest levels, finest first: the `block_out_channels` of the
            U-Net's last `num_texture_levels` levels.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 4,
        block_out_channels: tuple[int, ...] = (48, 96, 224),
        layers_per_block: int = 1,
        attention_head_dim: int = 32,
        norm_num_groups: int = 16,
        texture_channels: tuple[int, ...] = (96, 224),
    ):
        super().__init__()
        deepest = len(block_out_channels) - 1
        self.conv_in = patch_convolution(in_channels, block_out_channels[0], patch_size)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                in_channels=block_out_channels[max(level - 1, 0)],
                out_channels=channels,
                num_layers=layers_per_block,
                num_groups=norm_num_groups,
                head_dim=attention_head_dim if level == deepest else None,
                downsample=level > 0,
            )
            for level, channels in enumerate(block_out_channels)
        )
        encoder_channels = block_out_channels[-len(texture_channels) :]
        self.norms = nn.ModuleList(nn.GroupNorm(norm_num_groups, channels) for channels in encoder_channels)
        pairs = list(zip(encoder_channels, texture_channels, strict=True))
        self.to_keys = nn.ModuleList(nn.Linear(*pair) for pair in pairs)
        self.to_values = nn.ModuleList(nn.Linear(*pair) for pair in pairs)

    def forward(self, masked_image: Tensor) -> TextureEncoderOutput:
        """Keys and values of a batch of pictures.

        Args:
            masked_image: `(batch, 4, height, width)`, picture in [-1, 1] with the erased pixels at 0, and the mask in [-1, 1]
                (1 where the face is erased). In video the picture is the de-identified frame I_d, with nothing erased. Sides are
                multiples of 16 (`patch_size` times 2 per further level).
        """
        # 0. check inputs
        check_size(masked_image, self.config.in_channels, self.config.patch_size * 2 ** (len(self.down_blocks) - 1))

        # 1. pre-process
        hidden_states = self.conv_in(masked_image)

        # 2. down
        level_features = []
        for block in self.down_blocks:
            hidden_states = block(hidden_states)[-1]
            level_features.append(hidden_states)

        # 3. keys and values of the deepest levels
        keys, values = [], []
        texture_features = level_features[-len(self.norms) :]
        for features, norm, to_key, to_value in zip(texture_features, self.norms, self.to_keys, self.to_values, strict=True):
            tokens = to_tokens(norm(features))
            keys.append(to_key(tokens))
            values.append(to_value(tokens))
        return TextureEncoderOutput(keys, values)
