"""The network of the latent diffusion over identities (LDS).

Method: DiffDeID, §3.2: diffusion over standardised identity vectors. Written from the paper, with two differences. One joint
model over [z_id ; α] replaces two, so that the sampled embedding and head shape belong to one person. And it can be conditioned
on K, which a result keeps of the source anyway: the context vector of the surroundings, expression β, pose p, light γ and the
tone of the skin. The new person then fits these: p(z, α | K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.geometry.pixels import on_host
from diffdeid.models.modeling_utils import StrictModelMixin
from diffdeid.structures import MorphableCoefficients


@dataclass
class LDSOutput(BaseOutput):
    """Output of `LDSModel`.

    Attributes:
        sample: `(batch, identity_dim + shape_dim)` predicted noise.
    """

    sample: Tensor


class LDSBlock(nn.Module):
    """Residual block of an MLP that is given time and conditions; its second layer starts at zero."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, hidden_dim)
        self.condition = nn.Linear(hidden_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, hidden_dim)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, hidden_states: Tensor, condition: Tensor) -> Tensor:
        residual = self.linear1(self.norm(hidden_states)) + self.condition(condition)
        return hidden_states + self.linear2(F.silu(residual))


class LDSModel(StrictModelMixin, ConfigMixin):
    r"""Predicts the noise in a standardised joint identity vector x = ([z ; α] - mean) / std, under conditions on the person.

    Args:
        identity_dim: numbers in the identity embedding z_id.
        shape_dim: numbers in the head shape α, which are standard deviations.
        hidden_dim: width of the network.
        num_layers: residual blocks.
        context_dim: numbers in the context vector of `ContextEncoderModel`.
        tone_dim: how many of the first numbers of δ are the tone of the skin.
        attribute_names: attributes that an embedding tells of a person: sex, age, descent, beard, smile.
        ghost_names: things in front of faces that leave ghosts in generated ones: glasses, hair or a cap over the forehead.

    Buffers:
        mean, std: `(identity_dim + shape_dim,)`, statistics of the training faces in the units of z and α. They are stored with
            the weights; `LDSPipeline` applies them.
        condition_mean, condition_std: `(condition_dim,)`, the same for the conditions.
        attribute_directions, attribute_offsets: `(len(attribute_names), identity_dim)` and `(len(attribute_names),)`, see
            `attributes`.
        ghost_directions, ghost_limits: `(len(ghost_names), identity_dim)` and `(len(ghost_names),)`, see `leaves_ghosts`.
        shape_limit: `()`, see `is_usual`.
    """

    @register_to_config
    def __init__(
        self,
        identity_dim: int = 128,
        shape_dim: int = 80,
        hidden_dim: int = 512,
        num_layers: int = 4,
        context_dim: int = 128,
        tone_dim: int = 3,
        attribute_names: tuple[str, ...] = (),
        ghost_names: tuple[str, ...] = (),
    ):
        super().__init__()
        sample_dim, (_, expression_dim, _, illumination_dim, pose_dim, _) = identity_dim + shape_dim, MorphableCoefficients.SIZES
        self.condition_sizes = (context_dim, expression_dim, pose_dim, illumination_dim, tone_dim, len(attribute_names))
        self.condition_dim = sum(self.condition_sizes)
        self.register_buffer("mean", torch.zeros(sample_dim))
        self.register_buffer("std", torch.ones(sample_dim))
        self.register_buffer("condition_mean", torch.zeros(self.condition_dim))
        self.register_buffer("condition_std", torch.ones(self.condition_dim))
        self.register_buffer("attribute_directions", torch.zeros(len(attribute_names), identity_dim))
        self.register_buffer("attribute_offsets", torch.zeros(len(attribute_names)))
        self.register_buffer("ghost_directions", torch.zeros(len(ghost_names), identity_dim))
        self.register_buffer("ghost_limits", torch.zeros(len(ghost_names)))
        self.register_buffer("shape_limit", torch.tensor(math.inf))
        self.condition_embedding = nn.Linear(self.condition_dim + len(self.condition_sizes), hidden_dim)
        self.time_features = Timesteps(hidden_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = nn.Linear(hidden_dim, hidden_dim)
        self.linear_in = nn.Linear(sample_dim, hidden_dim)
        self.blocks = nn.ModuleList(LDSBlock(hidden_dim) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.linear_out = nn.Linear(hidden_dim, sample_dim)

    def attributes(self, identity: Tensor) -> Tensor:
        """The attributes that embeddings z `(n, 128)` tell, `(n, len(attribute_names))` in standard deviations."""
        return identity @ self.attribute_directions.T + self.attribute_offsets

    def leaves_ghosts(self, identity: Tensor) -> Tensor:
        """Whether people with these embeddings `(n, 128)` seem to wear something in front of the face, `(n,)` bool.

        It would be painted only as far as the erased region reaches, and look like a ghost.
        """
        return (identity @ self.ghost_directions.T > self.ghost_limits).any(dim=1)

    def is_usual(self, shape: Tensor) -> Tensor:
        """Whether head shapes `(n, 80)` are no more unusual than those of most people, `(n,)` bool.

        Fits to faces that are seen from the side give shapes that nobody has, and the network learned these as well. With the
        initial limit, infinity, all shapes are usual.
        """
        identity_dim = self.config.identity_dim
        standardised = (shape - self.mean[identity_dim:]) / self.std[identity_dim:]
        return standardised.square().mean(dim=1).sqrt() <= self.shape_limit

    def conditions(
        self,
        context: Tensor | None = None,
        coefficients: MorphableCoefficients | None = None,
        attributes: Tensor | None = None,
    ) -> Tensor:
        """Conditions on n people for `forward`: `(n, condition_dim)`, NaN where nothing is known.

        Args:
            context: `(n, context_dim)` of the surroundings.
            coefficients: ρ, of which only expression β, pose p, light γ and the tone of the skin are used.
            attributes: `(n, len(attribute_names))` as `attributes` gives them.
        """
        parts: list[Tensor | None] = [context, None, None, None, None, attributes]
        if coefficients is not None:
            tone = coefficients.albedo[:, : self.config.tone_dim]
            parts[1:5] = coefficients.expression, coefficients.pose, coefficients.illumination, tone
        known = next((part for part in parts if part is not None), self.condition_mean[None, :0])
        unknown = [known.new_full((len(known), size), math.nan) for size in self.condition_sizes]
        return torch.cat([gap if part is None else part.to(known) for part, gap in zip(parts, unknown, strict=True)], dim=1)

    def tells_attributes(self, conditions: Tensor) -> bool:
        """Whether conditions `(n, condition_dim)` hold attributes, which then replace K."""
        return bool(self.config.attribute_names) and not on_host(conditions[:, -self.condition_sizes[-1] :].isnan().any())

    def forward(
        self, sample: Tensor, timestep: Tensor | float, conditions: Tensor | None = None, return_dict: bool = True
    ) -> LDSOutput | tuple[Tensor]:
        """Predict the noise.

        Args:
            sample: `(batch, identity_dim + shape_dim)`, noisy standardised vectors.
            timestep: one number, or `(batch,)`, 0…999.
            conditions: `(batch, condition_dim)`, see `conditions`. A group of them that holds a NaN counts as unknown; `None`:
                nothing is known.
            return_dict: `False` gives a tuple.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        condition = self.time_embedding(self.time_features(timesteps).to(sample.dtype))
        if conditions is None:
            conditions = sample.new_full((len(sample), self.condition_dim), math.nan)
        groups = ((conditions - self.condition_mean) / self.condition_std).to(sample.dtype).split(self.condition_sizes, dim=1)
        known = torch.stack([~group.isnan().any(dim=1) for group in groups], dim=1).to(sample.dtype)
        given = [group.nan_to_num() * flag for group, flag in zip(groups, known.split(1, dim=1), strict=True)]
        condition = F.silu(condition + self.condition_embedding(torch.cat([*given, known], dim=1)))
        hidden_states = self.linear_in(sample)
        for block in self.blocks:
            hidden_states = block(hidden_states, condition)
        noise_pred = self.linear_out(self.norm_out(hidden_states))

        if not return_dict:
            return (noise_pred,)
        return LDSOutput(sample=noise_pred)
