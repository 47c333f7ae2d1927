"""Sampling identities that belong to nobody.

Method: DiffDeID, §3.2. Written from the paper. What differs: z and α are sampled jointly (models/lds.py), and identities too near
to given ones, or of people with glasses, are sampled again.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffdeid.errors import ConfigurationError, DiffDeIDError
from diffdeid.models.lds import LDSModel
from diffdeid.pipelines.loading import SafeHubMixin
from diffdeid.pipelines.pipeline_output import LDSPipelineOutput


def select_level(identities: Tensor, source: Tensor, level: int) -> int:
    """The index of the identity to use at a de-identification level.

    Orders the identities by cosine distance to the source and takes the one at the quantile `level / 10`: level 10 is the
    farthest, level 5 the median, level 1 among the nearest.

    Args:
        identities: `(n, 128)` unit embeddings.
        source: `(128,)` unit embedding of the face to be de-identified.
        level: 1…10.
    """
    if not 1 <= level <= 10:
        raise ValueError(f"`level` must be between 1 and 10, got {level}.")
    order = (1 - identities @ source).argsort(stable=True)
    return order[math.ceil(level * len(order) / 10) - 1].item()


class LDSPipeline(SafeHubMixin, DiffusionPipeline):
    r"""Samples identities: a recogniser embedding z' and the head shape α' that goes with it.

    Args:
        lds: denoiser of standardised vectors [z ; α].
        scheduler: must not clip samples, which are standardised vectors and not pictures.
    """

    model_cpu_offload_seq = "lds"
    max_rounds = 20  # samplings before identities far enough from `away_from` are given up

    def __init__(self, lds: LDSModel, scheduler: SchedulerMixin):
        super().__init__()
        for name, component, base in (("lds", lds, LDSModel), ("scheduler", scheduler, SchedulerMixin)):
            if not isinstance(component, base):
                raise TypeError(f"`{name}` must be a `{base.__name__}`, got `{type(component).__name__}`.")
        if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
            raise ConfigurationError(
                "`scheduler` clips samples to the range of pictures, which distorts identities. Set `clip_sample=False` and "
                "`thresholding=False`."
            )
        self.register_modules(lds=lds, scheduler=scheduler)

    def check_inputs(self, num_identities: int, away_from: Tensor | None, min_distance: float | None, attributes: Tensor | None):
        """Raise for arguments that make no sense."""
        if num_identities < 1:
            raise ValueError(f"`num_identities` must be at least 1, got {num_identities}.")
        if (away_from is None) != (min_distance is None):
            raise ValueError("`away_from` and `min_distance` belong together: pass both or none.")
        if away_from is not None and (away_from.ndim != 2 or away_from.shape[1] != self.lds.config.identity_dim):
            raise ValueError(f"`away_from` must be (n, {self.lds.config.identity_dim}), got {tuple(away_from.shape)}.")
        names = self.lds.config.attribute_names
        if attributes is not None and not (names and attributes.shape == (len(names),)):
            raise ValueError(f"`attributes` must be a number for each of {list(names)}, got {tuple(attributes.shape)}.")

    def denoise(self, latents: Tensor, num_inference_steps: int, attributes: Tensor | None = None) -> Tensor:
        """Turn noise `(n, 208)` into standardised vectors [z ; α]."""
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        latents = latents * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            # 1. predict noise
            noise_pred = self.lds(self.scheduler.scale_model_input(latents, t), t, attributes).sample
            # 2. x_t -> x_t-1
            latents = self.scheduler.step(noise_pred, t, latents).prev_sample
        return latents

    def destandardise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised vectors `(n, 208)` -> unit embeddings z `(n, 128)` and shapes α `(n, 80)`, float32."""
        vectors = latents.float() * self.lds.std.float() + self.lds.mean.float()
        identity, shape = vectors.split([self.lds.config.identity_dim, self.lds.config.shape_dim], dim=1)
        return F.normalize(identity, dim=1), shape

    @torch.no_grad()
    def __call__(
        self,
        num_identities: int = 1,
        away_from: Tensor | None = None,
        min_distance: float | None = None,
        attributes: Tensor | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> LDSPipelineOutput | tuple[Tensor, Tensor]:
        """Sample identities from pure noise.

        The result is a function of the arguments, the state of `generator` included, when the scheduler is deterministic (DDIM).

        Args:
            num_identities: how many to return.
            away_from: `(n, 128)` unit embeddings that no sampled identity may resemble.
            min_distance: smallest allowed cosine distance (1 - cosine, 0…2) to each of `away_from`. Nearer identities are
                sampled again, at most `max_rounds` times.
            attributes: `(len(attribute_names),)` numbers as `lds.attributes` gives them, which all identities shall share;
                `None`: anybody's.
            num_inference_steps: denoising steps.
            generator: source of the noise; `None` for fresh randomness.
            return_dict: `False` gives the tuple `(identity, shape)`.
        """
        # 0. check inputs
        self.check_inputs(num_identities, away_from, min_distance, attributes)
        device, sample_dim = self._execution_device, self.lds.config.identity_dim + self.lds.config.shape_dim

        identities, shapes, missing = [], [], num_identities
        for _ in range(self.max_rounds):
            # 1. sample as many as are missing
            latents = randn_tensor((missing, sample_dim), generator=generator, device=device, dtype=self.lds.dtype)
            asked = None if attributes is None else attributes.to(latents).expand(missing, -1)
            identity, shape = self.destandardise(self.denoise(latents, num_inference_steps, asked))

            # 2. refuse those that are too near, or wear glasses, of which a generated face shows ghosts
            accepted = ~self.lds.wears_glasses(identity.to(self.lds.dtype))
            if away_from is not None:
                distance = 1 - identity @ away_from.to(identity).T  # (missing, n)
                accepted &= (distance >= min_distance).all(dim=1)
            identity, shape = identity[accepted], shape[accepted]
            identities.append(identity)
            shapes.append(shape)
            missing -= len(identity)
            if missing == 0:
                break
        else:
            raise DiffDeIDError(
                f"Only {num_identities - missing} of {num_identities} identities wear no glasses and are farther than "
                f"`min_distance={min_distance}` from all of `away_from` after {self.max_rounds} rounds. Lower `min_distance`."
            )

        # 3. output
        self.maybe_free_model_hooks()
        output = LDSPipelineOutput(identity=torch.cat(identities), shape=torch.cat(shapes))
        return output if return_dict else output.to_tuple()
