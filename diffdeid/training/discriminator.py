"""A patch discriminator on the features of a frozen network, as in projected GANs (Sauer et al. 2021, arXiv:2111.01007).

The features are those that the perceptual loss computes anyway, so it costs next to nothing, and it cannot win by noise that no
picture recogniser sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Judges each place of feature maps: positive means real.

    Args:
        widths: channels of the feature maps.
        channels: hidden channels.
    """

    def __init__(self, widths: Sequence[int], channels: int = 64):
        super().__init__()
        self.register_buffer("scales", torch.zeros(len(widths)))
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(width, channels, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(channels, 1, 1)),
            )
            for width in widths
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps `(B, C, H, W)` -> judgements `(B, 1, H, W)` each; the first call settles the scales of the maps."""
        if not self.scales.any():
            self.scales.copy_(torch.stack([one.detach().float().square().mean().sqrt() for one in features]))
        return [head(one / scale) for head, one, scale in zip(self.heads, features, self.scales, strict=True)]


def _means(judged: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The mean over all maps of the means of judgements under a `(B, 1, H, W)` weight."""
    means = []
    for one in judged:
        share = F.interpolate(weight, one.shape[-2:], mode="area")
        means.append((one * share).sum() / share.sum().clamp(min=1e-6))
    return torch.stack(means).mean()


def discriminator_loss(discriminator: nn.Module, real: Sequence[Tensor], generated: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Hinge loss of the discriminator on feature maps of pictures, over the places that `weight` `(B, 1, H, W)` counts."""
    judged = discriminator([torch.cat(pair) for pair in zip(real, generated, strict=True)])
    sides = [one.chunk(2) for one in judged]
    return _means([F.relu(1 - true) for true, _ in sides], weight) + _means([F.relu(1 + made) for _, made in sides], weight)


def adversarial_loss(generated: Sequence[Tensor], weight: Tensor) -> Tensor:
    """What the generator minimises: minus the mean judgement of what it made."""
    return -_means(generated, weight)
