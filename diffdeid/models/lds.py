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
    """Residual block of an MLP that knows the time; its second layer starts at zero."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, hidden_dim)
        self.time = nn.Linear(hidden_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, hidden_dim)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, hidden_states: Tensor, time: Tensor) -> Tensor:
        residual = self.linear1(self.norm(hidden_states)) + self.time(time)
        return hidden_states + self.linear2(F.silu(residual))


class LDSModel(StrictModelMixin, ConfigMixin):
    r"""Predicts the noise in a standardised joint identity vector x = ([z ; α] - mean) / std.

    Parameters:
        identity_dim (`int`, defaults to 128): numbers in the identity embedding z_id.
        shape_dim (`int`, defaults to 80): numbers in the head shape α, standard deviations.
        hidden_dim (`int`, defaults to 512): width of the network.
        num_layers (`int`, defaults to 4): residual blocks.

    Buffers:
        mean, std: `(identity_dim + shape_dim,)`, statistics of the training faces in the units of z and α. They travel with
            the weights; `LDSPipeline` applies them.
    """

    @register_to_config
    def __init__(self, identity_dim: int = 128, shape_dim: int = 80, hidden_dim: int = 512, num_layers: int = 4):
        super().__init__()
        sample_dim = identity_dim + shape_dim
        self.register_buffer("mean", torch.zeros(sample_dim))
        self.register_buffer("std", torch.ones(sample_dim))
        self.time_features = Timesteps(hidden_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = nn.Linear(hidden_dim, hidden_dim)
        self.linear_in = nn.Linear(sample_dim, hidden_dim)
        self.blocks = nn.ModuleList(LDSBlock(hidden_dim) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.linear_out = nn.Linear(hidden_dim, sample_dim)

    def forward(self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True) -> LDSOutput | tuple[Tensor]:
        """Predict the noise.

        Args:
            sample: `(batch, identity_dim + shape_dim)`, noisy standardised vectors.
            timestep: one number, or `(batch,)`, 0…999.
            return_dict: `False` gives a tuple.
        """
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        time = F.silu(self.time_embedding(self.time_features(timesteps).to(sample.dtype)))
        hidden_states = self.linear_in(sample)
        for block in self.blocks:
            hidden_states = block(hidden_states, time)
        noise_pred = self.linear_out(self.norm_out(hidden_states))

        if not return_dict:
            return (noise_pred,)
        return LDSOutput(sample=noise_pred)
