"""The network of the latent diffusion over identities (LDS).

Method: DiffDeID, §3.2: diffusion over standardised identity vectors. Written from the paper. What differs: one joint model over
[z_id ; α] instead of two, so that the sampled recogniser embedding and the sampled head shape belong to one person.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  diffusers looks for `ModelMixin` in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from diffdeid.models.modeling_utils import StrictModelMixin


@dataclass
class LDSOutput(BaseOutput):
    """Output of `LDSModel`.

    Attributes:
        sample: `(batch, identity_dim + shape_dim)` predicted noise.
    """

    sample: Tensor


class LDSBlock(nn.Module):
    """Residual block of an MLP that knows time and attributes; its second layer starts at zero."""

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
    r"""Predicts the noise in a standardised joint identity vector x = ([z ; α] - mean) / std.

    Args:
        identity_dim: numbers in the identity embedding z_id.
        shape_dim: numbers in the head shape α, standard deviations.
        hidden_dim: width of the network.
        num_layers: residual blocks.
        attribute_names: what of a person can be asked for: sex, age, descent.

    Buffers:
        mean, std: `(identity_dim + shape_dim,)`, statistics of the training faces in the units of z and α. They travel with
            the weights; `LDSPipeline` applies them.
        attribute_directions, attribute_offsets: `(len(attribute_names), identity_dim)` and `(len(attribute_names),)`, see
            `attributes`.
        glasses_direction, glasses_limit: `(identity_dim,)` and a number, see `wears_glasses`.
    """

    @register_to_config
    def __init__(
        self,
        identity_dim: int = 128,
        shape_dim: int = 80,
        hidden_dim: int = 512,
        num_layers: int = 4,
        attribute_names: tuple[str, ...] = (),
    ):
        super().__init__()
        sample_dim = identity_dim + shape_dim
        self.register_buffer("mean", torch.zeros(sample_dim))
        self.register_buffer("std", torch.ones(sample_dim))
        self.register_buffer("attribute_directions", torch.zeros(len(attribute_names), identity_dim))
        self.register_buffer("attribute_offsets", torch.zeros(len(attribute_names)))
        self.register_buffer("glasses_direction", torch.zeros(identity_dim))
        self.register_buffer("glasses_limit", torch.zeros(()))
        self.attribute_embedding = nn.Linear(len(attribute_names), hidden_dim) if attribute_names else None
        self.time_features = Timesteps(hidden_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = nn.Linear(hidden_dim, hidden_dim)
        self.linear_in = nn.Linear(sample_dim, hidden_dim)
        self.blocks = nn.ModuleList(LDSBlock(hidden_dim) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.linear_out = nn.Linear(hidden_dim, sample_dim)

    def attributes(self, identity: Tensor) -> Tensor:
        """What a recogniser's embedding tells of a person, `(n, 128)` -> `(n, len(attribute_names))` in standard deviations."""
        return identity @ self.attribute_directions.T + self.attribute_offsets

    def wears_glasses(self, identity: Tensor) -> Tensor:
        """Whether people with these embeddings `(n, 128)` seem to wear glasses, `(n,)` bool; nobody does until it is learned."""
        return identity @ self.glasses_direction > self.glasses_limit

    def forward(
        self, sample: Tensor, timestep: Tensor | float, attributes: Tensor | None = None, return_dict: bool = True
    ) -> LDSOutput | tuple[Tensor]:
        """Predict the noise.

        Args:
            sample: `(batch, identity_dim + shape_dim)`, noisy standardised vectors.
            timestep: one number, or `(batch,)`, 0…999.
            attributes: `(batch, len(attribute_names))` of the people asked for; a row of NaN, or `None`, asks for anybody.
            return_dict: `False` gives a tuple.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        condition = self.time_embedding(self.time_features(timesteps).to(sample.dtype))
        if attributes is not None:
            asked = ~attributes.isnan().any(dim=1, keepdim=True)
            condition = condition + asked * self.attribute_embedding(attributes.nan_to_num())
        condition = F.silu(condition)
        hidden_states = self.linear_in(sample)
        for block in self.blocks:
            hidden_states = block(hidden_states, condition)
        noise_pred = self.linear_out(self.norm_out(hidden_states))

        if not return_dict:
            return (noise_pred,)
        return LDSOutput(sample=noise_pred)
