"""Stage 4: what the denoiser is told: the new head, rendered, and what skin, hair and light look like around the old one."""

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
    """What the denoiser is told of a batch of new faces.

    Attributes:
        maps: spatial conditions `(B, 9, S, S)` in [-1, 1]: mask, render (3), normals (3), feature lines, eye map.
        embedding: z' `(B, 128)`.
        coefficients: ρ' `(B, 261)`, packed.
        texture: K and V of the pictures around.
    """

    maps: Tensor
    embedding: Tensor
    coefficients: Tensor
    texture: TextureEncoderOutput


def render_new_heads(
    model: MorphableModel, coefficients: MorphableCoefficients, shape: Tensor, masks: Tensor, keep_mouth: bool
) -> tuple[MorphableCoefficients, Tensor]:
    """ρ' = {α', β, δ', γ, p, ω} and the spatial conditions `(B, 9, S, S)` rendered from it; δ' is the skin's tone alone.

    Args:
        coefficients: ρ of the faces.
        shape: α' `(B, 80)`.
        masks: `(B, 1, S, S)`, 1 where they are erased.
        keep_mouth: the new heads keep the place of the mouths.
    """
    anchor = list(LIPS_OUTER) if keep_mouth else list(range(468))
    changed = exchange_shape(model, hide_skin_details(model, coefficients), shape, anchor)
    maps = render_conditions(model, changed, masks.shape[-1]).maps
    return changed, torch.cat([2 * masks - 1, maps], dim=1)


def encode_texture(encoder: TextureEncoderModel, images: Tensor, masks: Tensor, dtype: torch.dtype) -> TextureEncoderOutput:
    """K and V of the masked pictures I_m: images `(B, 3, S, S)`, masks `(B, 1, S, S)`. Once a picture, used in every step."""
    masked = torch.cat([images * (1 - masks), 2 * masks - 1], dim=1)
    keys, values = encoder(masked.to(encoder.dtype))
    return TextureEncoderOutput(*([level.to(dtype) for level in part] for part in (keys, values)))
