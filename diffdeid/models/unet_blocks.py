"""Building blocks of the denoiser and of the texture encoder.

Written for this package after DiffDeID's description (eq. 6, texture attention; eq. 7, adaptive normalisation) and the usual
residual U-Net (Dhariwal & Nichol, https://arxiv.org/abs/2105.05233). Feature maps are `(batch, channels, height, width)`,
tokens `(batch, height * width, channels)`; both views share memory when the maps are in `torch.channels_last`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn


def check_size(image: Tensor, channels: int, multiple: int) -> None:
    """Raise unless `image` is `(batch, channels, height, width)` with sides that are multiples of `multiple`."""
    if image.ndim != 4 or image.shape[1] != channels or image.shape[2] % multiple or image.shape[3] % multiple:
        raise ValueError(
            f"Expected a tensor (batch, {channels}, height, width) with sides that are multiples of {multiple}, "
            f"got {tuple(image.shape)}."
        )


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def patch_convolution(in_channels: int, out_channels: int, patch_size: int) -> nn.Conv2d:
    """A 3×3 convolution over patches: the same function as `pixel_unshuffle(patch_size)` and a 3×3 convolution, but faster."""
    return nn.Conv2d(in_channels, out_channels, 3 * patch_size, stride=patch_size, padding=patch_size)


def to_tokens(hidden_states: Tensor) -> Tensor:
    """`(batch, channels, height, width)` -> `(batch, height * width, channels)`."""
    return hidden_states.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: torch.Size) -> Tensor:
    """The inverse of `to_tokens`; `size` is `(height, width)`."""
    return tokens.transpose(1, 2).unflatten(2, size)


class AdaptiveNorm(nn.Module):
    """Normalisation whose scale and shift come from the condition vector C (AdaIN, eq. 7).

    Statistics are taken over groups of channels; `num_groups = channels` is the paper's instance norm. Without a condition
    (`condition_dim=None`) scale and shift are learned constants: a plain `GroupNorm`.
    """

    def __init__(self, channels: int, num_groups: int, condition_dim: int | None):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, affine=condition_dim is None)
        self.modulation = None if condition_dim is None else nn.Linear(condition_dim, 2 * channels)

    def forward(self, hidden_states: Tensor, condition: Tensor | None = None) -> Tensor:
        hidden_states = self.norm(hidden_states)
        if self.modulation is None:
            return hidden_states
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, hidden_states, 1 + scale)


class ResidualBlock(nn.Module):
    """Two times adaptive norm, SiLU and 3×3 convolution, added to the input; the second convolution starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, condition_dim: int | None):
        super().__init__()
        self.norm1 = AdaptiveNorm(in_channels, num_groups, condition_dim)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaptiveNorm(out_channels, num_groups, condition_dim)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: Tensor, condition: Tensor | None = None) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_states, condition)))
        residual = self.conv2(F.silu(self.norm2(residual, condition)))
        return self.shortcut(hidden_states) + residual


class AttentionProcessor:
    """softmax(QKᵀ / √d) V, by the backend that diffusers' `set_attention_backend` chose (torch's own unless told otherwise)."""

    _attention_backend = None  # diffusers sets it
    _parallel_config = None

    def __call__(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Tokens `(batch, n, channels)` and twice `(batch, m, channels)` -> `(batch, n, channels)`, in heads of `head_dim`."""
        heads = (tokens.unflatten(2, (-1, attention.head_dim)) for tokens in (query, key, value))
        return dispatch_attention_fn(*heads, backend=self._attention_backend, parallel_config=self._parallel_config).flatten(2)


class Attention(nn.Module, AttentionModuleMixin):
    """Base of the attentions here: holds a processor that can be exchanged, as everywhere in diffusers."""

    _default_processor_cls = AttentionProcessor
    _available_processors = [AttentionProcessor]
    _supports_qkv_fusion = False  # projections that could be fused are one layer already

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.set_processor(AttentionProcessor())


class SelfAttention(Attention):
    """Attention of a feature map to itself, added to it; the output projection starts at zero."""

    def __init__(self, channels: int, num_groups: int, head_dim: int):
        super().__init__(head_dim)
        self.norm = nn.GroupNorm(num_groups, channels)
        self.to_query_key_value = nn.Linear(channels, 3 * channels)
        self.to_out = zero_init(nn.Linear(channels, channels))

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = self.to_query_key_value(to_tokens(self.norm(hidden_states))).chunk(3, dim=2)
        attended = self.to_out(self.processor(self, query, key, value))
        return hidden_states + to_map(attended, hidden_states.shape[2:])


class TextureAttention(Attention):
    """F̂ = τ · softmax(QKᵀ) V + F, eq. (6).

    Q comes from the U-Net's features F_n; K and V come from `TextureEncoderModel`. τ is one number per channel (the paper: one
    per layer), zero at the start, so that each channel finds its own sign and an untrained texture changes nothing. F is F_n;
    the paper's formula has the texture features (`residual="texture"`: V), which throws the noise features away.
    """

    def __init__(self, channels: int, num_groups: int, head_dim: int, residual: Literal["noise", "texture"] = "noise"):
        super().__init__(head_dim)
        self.residual = residual
        self.norm = nn.GroupNorm(num_groups, channels)
        self.to_query = nn.Linear(channels, channels)
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden_states: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self.to_query(to_tokens(self.norm(hidden_states)))
        attended = self.tau.to(hidden_states.dtype) * self.processor(self, query, key, value)
        if self.residual == "texture":
            return to_map(value + attended, hidden_states.shape[2:])
        return hidden_states + to_map(attended, hidden_states.shape[2:])


class DownBlock(nn.Module):
    """One encoder level: halve the resolution (unless `downsample=False`), then `num_layers` residual blocks.

    `head_dim` adds self-attention after each residual block; `None` leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        num_groups: int,
        condition_dim: int | None = None,
        head_dim: int | None = None,
        downsample: bool = True,
    ):
        super().__init__()
        self.downsample = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1) if downsample else nn.Identity()
        self.resnets = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels, num_groups, condition_dim)
            for i in range(num_layers)
        )
        self.attentions = nn.ModuleList(
            nn.Identity() if head_dim is None else SelfAttention(out_channels, num_groups, head_dim) for _ in range(num_layers)
        )

    def forward(self, hidden_states: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """The level's features, its entry first: `1 + num_layers` maps of one size."""
        features = [self.downsample(hidden_states)]
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            features.append(attention(resnet(features[-1], condition)))
        return features


class MidBlock(nn.Module):
    """Residual block, self-attention, residual block."""

    def __init__(self, channels: int, num_groups: int, condition_dim: int, head_dim: int):
        super().__init__()
        self.resnet1 = ResidualBlock(channels, channels, num_groups, condition_dim)
        self.attention = SelfAttention(channels, num_groups, head_dim)
        self.resnet2 = ResidualBlock(channels, channels, num_groups, condition_dim)

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        hidden_states = self.attention(self.resnet1(hidden_states, condition))
        return self.resnet2(hidden_states, condition)


class UpBlock(nn.Module):
    """One decoder level: double the resolution (unless `upsample=False`), then one residual block per encoder feature.

    Args:
        entry_channels: channels of the encoder level's entry; its other `num_layers` features have `out_channels`.
        head_dim: self-attention after each residual block, `None` for none.
    """

    def __init__(
        self,
        in_channels: int,
        entry_channels: int,
        out_channels: int,
        num_layers: int,
        num_groups: int,
        condition_dim: int,
        head_dim: int | None = None,
        upsample: bool = True,
    ):
        super().__init__()
        self.upsample = nn.Identity()
        if upsample:
            self.upsample = nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        skip_channels = [out_channels] * num_layers + [entry_channels]
        self.resnets = nn.ModuleList(
            ResidualBlock(out_channels + skip, out_channels, num_groups, condition_dim) for skip in skip_channels
        )
        self.attentions = nn.ModuleList(
            nn.Identity() if head_dim is None else SelfAttention(out_channels, num_groups, head_dim) for _ in skip_channels
        )

    def forward(self, hidden_states: Tensor, features: list[Tensor], condition: Tensor) -> Tensor:
        """Decode one level; `features` is what the encoder level of the same size returned."""
        hidden_states = self.upsample(hidden_states)
        for resnet, attention, skip in zip(self.resnets, self.attentions, reversed(features), strict=True):
            hidden_states = attention(resnet(torch.cat([hidden_states, skip], dim=1), condition))
        return hidden_states
