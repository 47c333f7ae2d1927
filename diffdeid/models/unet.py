"""The denoiser ε_θ(Z_t ⊕ I'_3d, E_t(I_m), C) of DiffDeID.

Method: DiffDeID, §3.3, eq. (6) and (7). Written from the paper, with three differences. The network works on patches of 4×4
pixels (64×64 positions instead of 256×256), which costs a fiftieth and keeps the deepest map at 16×16. It takes normals, feature
lines and openings of eyes and mouth besides the render. A last convolution at full resolution hides the grid of the patches.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from diffdeid.models.modeling_utils import StrictModelMixin
from diffdeid.models.texture_encoder import TextureEncoderOutput
from diffdeid.models.unet_blocks import (
    AdaptiveNorm,
    DownBlock,
    MidBlock,
    TextureAttention,
    UpBlock,
    check_size,
    patch_convolution,
    zero_init,
)


class DiffDeIDUNet2DModel(StrictModelMixin, ConfigMixin, AttentionMixin):
    r"""Denoises a face crop given the geometry, identity and surroundings of the face.

    The scheduler's `prediction_type` says what is predicted (x0, noise or velocity); the released weights predict x0.

    Args:
        sample_size: side in pixels of the crops that the weights were trained for. Other multiples of 16 work too.
        in_channels: channels of the noisy picture.
        condition_channels: channels of the spatial conditions (docs/conventions.md).
        out_channels: channels of the prediction.
        patch_size: side in pixels of the patch that becomes one position of the finest level.
        block_out_channels: channels per level, finest first; each further level halves the resolution: 64×64, 32×32, 16×16 for
            256 pixels.
        layers_per_block: residual blocks per encoder level; decoder levels have one more.
        head_channels: channels at full resolution before the last convolution.
        attention_head_dim: channels per head of all attention.
        norm_num_groups: groups of the normalisation.
        identity_dim: numbers in the identity embedding z_id.
        coefficient_dim: numbers in the coefficients ρ.
        condition_dim: width of the condition vector C.
        num_texture_levels: deepest levels that attend to the texture encoder.
        texture_residual: what the texture attention adds to, see `TextureAttention`.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        condition_channels: int = 9,
        out_channels: int = 3,
        patch_size: int = 4,
        block_out_channels: tuple[int, ...] = (48, 96, 224),
        layers_per_block: int = 1,
        head_channels: int = 8,
        attention_head_dim: int = 32,
        norm_num_groups: int = 16,
        identity_dim: int = 128,
        coefficient_dim: int = 261,
        condition_dim: int = 384,
        num_texture_levels: int = 2,
        texture_residual: Literal["noise", "texture"] = "noise",
    ):
        super().__init__()
        finest, deepest = block_out_channels[0], len(block_out_channels) - 1

        # condition vector
        self.time_features = Timesteps(condition_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = nn.Linear(condition_dim, condition_dim)
        self.coefficient_embedding = nn.Linear(coefficient_dim, condition_dim)
        self.identity_embedding = nn.Linear(identity_dim, condition_dim, bias=False)  # zeros stay "no identity"
        self.video_embedding = nn.Parameter(torch.zeros(condition_dim))

        # encoder
        self.conv_in = patch_convolution(in_channels + condition_channels, finest, patch_size)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                in_channels=block_out_channels[max(level - 1, 0)],
                out_channels=channels,
                num_layers=layers_per_block,
                num_groups=norm_num_groups,
                condition_dim=condition_dim,
                head_dim=attention_head_dim if level == deepest else None,
                downsample=level > 0,
            )
            for level, channels in enumerate(block_out_channels)
        )
        self.texture_attentions = nn.ModuleList(
            TextureAttention(channels, norm_num_groups, attention_head_dim, texture_residual)
            for channels in block_out_channels[len(block_out_channels) - num_texture_levels :]
        )

        # decoder
        self.mid_block = MidBlock(block_out_channels[-1], norm_num_groups, condition_dim, attention_head_dim)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                in_channels=block_out_channels[min(level + 1, deepest)],
                entry_channels=block_out_channels[max(level - 1, 0)],
                out_channels=block_out_channels[level],
                num_layers=layers_per_block,
                num_groups=norm_num_groups,
                condition_dim=condition_dim,
                head_dim=attention_head_dim if level == deepest else None,
                upsample=level < deepest,
            )
            for level in reversed(range(len(block_out_channels)))
        )

        # head
        self.norm_out = AdaptiveNorm(finest, norm_num_groups, condition_dim)
        self.conv_patch = nn.Conv2d(finest, head_channels * patch_size**2, 3, padding=1)
        self.conv_out = zero_init(nn.Conv2d(head_channels, out_channels, 3, padding=1))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        spatial_conditions: Tensor,
        identity: Tensor,
        coefficients: Tensor,
        texture: TextureEncoderOutput,
        video: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict x0, noise or velocity, as the scheduler's `prediction_type` says.

        Args:
            sample: `(batch, 3, height, width)`, [-1, 1]: noisy inside the mask, the picture outside. Sides are multiples of 16
                (`patch_size` times 2 per further level).
            timestep: one number, or `(batch,)`, 0…999.
            spatial_conditions: `(batch, 9, height, width)`, [-1, 1]; see docs/conventions.md.
            identity: `(batch, 128)` unit embeddings z_id; a row of zeros means no identity (guidance). Ignored in video rows.
            coefficients: `(batch, 261)`, ρ as `MorphableCoefficients.pack` gives it. All groups are of order 1.
            texture: what `TextureEncoderModel` returned for pictures of the same size: the masked picture I_m, or, in video, the
                de-identified frame I_d that says what the person looks like.
            video: `(batch,)` bool, rows in video mode, where I_d stands for z_id: C = linear(ρ̂) + linear(t). `None`: none.
            return_dict: `False` gives a tuple.

        Returns:
            `UNet2DOutput` with `sample` of the shape of the input `sample`.

        Raises:
            ValueError: shapes do not fit together.
        """
        # 0. check inputs
        check_size(sample, self.config.in_channels, self.config.patch_size * 2 ** (len(self.down_blocks) - 1))
        if spatial_conditions.shape[2:] != sample.shape[2:]:
            raise ValueError(
                f"`spatial_conditions` has size {tuple(spatial_conditions.shape[2:])} but `sample` has {tuple(sample.shape[2:])}."
            )
        first_texture_level = len(self.down_blocks) - len(self.texture_attentions)
        texture_channels = list(self.config.block_out_channels[first_texture_level:])
        if [key.shape[2] for key in texture.keys] != texture_channels:
            raise ValueError(
                f"`texture` has keys of {[key.shape[2] for key in texture.keys]} channels but the U-Net attends with "
                f"{texture_channels} (`texture_encoder.config.texture_channels`). Use the two models of one release."
            )

        # 1. condition vector, C = linear(z_id) + linear(ρ) + linear(t); √d brings the numbers of a unit vector to order 1
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        condition = self.time_embedding(self.time_features(timesteps).to(sample.dtype))
        condition = condition + self.coefficient_embedding(coefficients)
        embedded = self.identity_embedding(identity * math.sqrt(self.config.identity_dim))
        if video is not None:
            embedded = torch.where(video[:, None], self.video_embedding, embedded)
        condition = condition + embedded
        condition = F.silu(condition)

        # 2. pre-process
        hidden_states = torch.cat([sample, spatial_conditions], dim=1)
        hidden_states = self.conv_in(hidden_states.contiguous(memory_format=torch.channels_last))  # a fifth faster on CPUs

        # 3. down, with texture attention at the deepest levels
        level_features = []
        for level, block in enumerate(self.down_blocks):
            features = block(hidden_states, condition)
            if level >= first_texture_level:
                index = level - first_texture_level
                features[-1] = self.texture_attentions[index](features[-1], texture.keys[index], texture.values[index])
            level_features.append(features)
            hidden_states = features[-1]

        # 4. mid
        hidden_states = self.mid_block(hidden_states, condition)

        # 5. up
        for block in self.up_blocks:
            hidden_states = block(hidden_states, level_features.pop(), condition)

        # 6. head: patches to pixels, then one convolution across their borders
        hidden_states = self.conv_patch(F.silu(self.norm_out(hidden_states, condition)))
        hidden_states = F.silu(F.pixel_shuffle(hidden_states, self.config.patch_size))
        prediction = self.conv_out(hidden_states)

        if not return_dict:
            return (prediction,)
        return UNet2DOutput(sample=prediction)
