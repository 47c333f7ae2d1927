"""The identity sampler as a pipeline of its own (paper §3.2). How it draws is described in stages/identity.py."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from diffdeid.errors import NoIdentityFoundError
from diffdeid.models.lds import LDSModel
from diffdeid.pipelines.loading import SafeHubMixin
from diffdeid.pipelines.pipeline_output import LDSPipelineOutput
from diffdeid.stages.identity import ROUNDS, IdentitySampler


class LDSPipeline(SafeHubMixin, DiffusionPipeline):
    r"""Samples identities: a recogniser embedding z' and the head shape α' that goes with it.

    Args:
        lds: denoiser of standardised vectors [z ; α].
        scheduler: must not clip samples, which are standardised vectors and not pictures.

    Raises:
        TypeError: a component is of another class.
        ConfigurationError: the scheduler clips samples.
    """

    model_cpu_offload_seq = "lds"

    def __init__(self, lds: LDSModel, scheduler: SchedulerMixin):
        super().__init__()
        for name, component, base in (("lds", lds, LDSModel), ("scheduler", scheduler, SchedulerMixin)):
            if not isinstance(component, base):
                raise TypeError(f"`{name}` must be a `{base.__name__}`, got `{type(component).__name__}`.")
        IdentitySampler(lds, scheduler, lds.device)  # raises for a scheduler that clips
        self.register_modules(lds=lds, scheduler=scheduler)

    @property
    def sampler(self) -> IdentitySampler:
        """The sampler on the components as they are now."""
        return IdentitySampler(self.lds, self.scheduler, self._execution_device, self.progress_bar)

    def check_inputs(self, num_identities: int, away_from: Tensor | None, min_distance: float | None, conditions: Tensor | None):
        """Raise `ValueError` for invalid arguments."""
        if num_identities < 1:
            raise ValueError(f"`num_identities` must be at least 1, got {num_identities}.")
        if (away_from is None) != (min_distance is None):
            raise ValueError("`away_from` and `min_distance` belong together: pass both or none.")
        if away_from is not None and (away_from.ndim != 2 or away_from.shape[1] != self.lds.config.identity_dim):
            raise ValueError(f"`away_from` must be (n, {self.lds.config.identity_dim}), got {tuple(away_from.shape)}.")
        if conditions is not None and conditions.shape != (1, self.lds.condition_dim):
            raise ValueError(
                f"`conditions` must be (1, {self.lds.condition_dim}), as `lds.conditions` gives them for one face, "
                f"got {tuple(conditions.shape)}."
            )

    @torch.no_grad()
    def __call__(
        self,
        num_identities: int = 1,
        away_from: Tensor | None = None,
        min_distance: float | None = None,
        conditions: Tensor | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> LDSPipelineOutput | tuple[Tensor, Tensor]:
        """Sample identities from pure noise.

        With a deterministic scheduler (DDIM), the result is a function of the arguments, including the state of `generator`.

        Args:
            num_identities: how many to return, 1 or more.
            away_from: `(n, 128)` unit embeddings that no sampled identity may resemble.
            min_distance: smallest allowed cosine distance (1 - cosine, 0…2) to each of `away_from`; pass both or neither. Nearer
                identities are sampled again, at most `stages.identity.ROUNDS` times.
            conditions: `(1, condition_dim)` from `lds.conditions`, which all the people fit; `None` for anybody. All are sampled
                with the same attributes, see `IdentitySampler.expect`.
            num_inference_steps: denoising steps.
            generator: source of the noise; `None` for fresh randomness.
            return_dict: `False` gives the tuple `(identity, shape)`.

        Raises:
            NoIdentityFoundError: not enough identities are far enough away.
            ValueError: an argument is out of range or has the wrong shape.
        """
        # 0. check inputs
        self.check_inputs(num_identities, away_from, min_distance, conditions)

        sampler = self.sampler
        (asked,) = sampler.expect([conditions], [generator], num_inference_steps)
        identities, shapes, missing = [], [], num_identities
        for _ in range(ROUNDS):
            # 1. sample as many as are missing
            identity, shape = sampler.sample(sampler.prepare_latents(missing, generator), asked, num_inference_steps)

            # 2. refuse identities that are too near, or could not be painted well
            accepted = sampler.may_be_painted(identity, shape)
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
            raise NoIdentityFoundError(
                f"Only {num_identities - missing} of {num_identities} identities can be painted and are farther than "
                f"`min_distance={min_distance}` from all of `away_from` after {ROUNDS} rounds. Lower `min_distance`."
            )

        # 3. output
        self.maybe_free_model_hooks()
        output = LDSPipelineOutput(identity=torch.cat(identities), shape=torch.cat(shapes))
        return output if return_dict else output.to_tuple()
