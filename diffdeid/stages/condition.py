"""Stage 4: the conditions of the denoiser: a render of the new head, and the texture around the old face."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffdeid.geometry.landmarks import LIPS_OUTER
from diffdeid.models.conditioning import exchange_shape, hide_skin_details, render_conditions
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.texture_encoder import TextureEncoderModel, TextureEncoderOutput
from diffdeid.structures import MorphableCoefficients


@dataclass(frozen=True)
class Conditions:
    """The conditions of the denoiser for a batch of new faces.

    Attributes:
        maps: spatial conditions `(B, 9, S, S)` in [-1, 1]: mask, render (3), normals (3), feature lines, openings.
        embedding: z' `(B, 128)`.
        coefficients: ρ' `(B, 261)`, packed.
        texture: K and V of the masked pictures I_m.
    """

    maps: Tensor
    embedding: Tensor
    coefficients: Tensor
    texture: TextureEncoderOutput


def render_new_heads(
    model: MorphableModel, coefficients: MorphableCoefficients, shape: Tensor, masks: Tensor, keep_mouth: bool
) -> tuple[MorphableCoefficients, Tensor]:
    """ρ' = {α', β', δ', γ, p, ω}, and the spatial conditions `(B, 9, S, S)` rendered from it.

    β' shows the expression of β on the new head (`exchange_shape`), and δ' is only the skin's tone.

    Args:
        coefficients: ρ of the faces.
        shape: α' `(B, 80)`.
        masks: `(B, 1, S, S)`, 1 where the faces are erased.
        keep_mouth: whether the mouths of the pictures stay, so that those of the new heads must be in the same place.
    """
    anchor = list(LIPS_OUTER) if keep_mouth else list(range(468))
    changed = exchange_shape(model, hide_skin_details(model, coefficients), shape, anchor)
    maps = render_conditions(model, changed, masks.shape[-1]).maps
    return changed, torch.cat([2 * masks - 1, maps], dim=1)


def encode_texture(encoder: TextureEncoderModel, images: Tensor, masks: Tensor, dtype: torch.dtype) -> TextureEncoderOutput:
    """K and V of the masked pictures I_m: images `(B, 3, S, S)` in [-1, 1], masks `(B, 1, S, S)`; every step uses them."""
    masked = torch.cat([images * (1 - masks), 2 * masks - 1], dim=1)
    keys, values = encoder(masked.to(encoder.dtype))
    return TextureEncoderOutput(*([level.to(dtype) for level in part] for part in (keys, values)))
