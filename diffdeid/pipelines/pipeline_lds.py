"""Sampling identities that belong to nobody.

Method: DiffDeID, §3.2. Written from the paper. What differs: z and α are sampled jointly (models/lds.py), of people who fit what
a result keeps of the source anyway; and identities too near to given ones, or of people with glasses, caps, fringes or heads that
nobody has, are refused. The paper chooses among many samples by their distance to the source; here a level is a lower bound of
that distance, and the first draw beyond it is taken. So the choice depends on the source by refusals only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffdeid.errors import ConfigurationError, NoIdentityFoundError
from diffdeid.models.lds import LDSModel
from diffdeid.pipelines.loading import SafeHubMixin
from diffdeid.pipelines.pipeline_output import LDSPipelineOutput
from diffdeid.structures import NewIdentity

GUIDANCE = 1.5  # 1 is off
AVERAGED = 16  # people who fit K, of whose attributes the average is taken …
DECIDED = {"female": 0.0, "child": 1.0}  # … over the majority in each of these; who has more standard deviations is a yes
DRAWS = 20  # people drawn before a bound is lowered, …
AT_ONCE = 5  # … so many at a time
VARIATION = 0.1  # standard deviations by which the attributes asked for vary more in each such round …
ATTEMPT_ROUNDS = 5  # … of which an attempt at a face counts as so many
SAMPLING_STEPS = 20  # of the denoising of an identity
LEVELS = 10
LEVEL_STEP = 1 / 30  # of the bound, from one level to the next


def least_distance(level: int, limit: float) -> float:
    """The smallest cosine distance to the source that a new identity may have at a de-identification level.

    Level 1 is the recogniser's limit itself; the bounds of higher levels rise evenly. The more people a bound refuses, the less
    those who are left fit, and the more the refusals tell.

    Args:
        level: 1…10.
        limit: `identity_limit` of the pipeline.

    >>> tuple(round(least_distance(level, 0.45), 2) for level in (1, 4, 7, 10))
    (0.45, 0.55, 0.65, 0.75)
    """
    if not 1 <= level <= LEVELS:
        raise ValueError(f"`level` must be between 1 and {LEVELS}, got {level}.")
    return limit + LEVEL_STEP * (level - 1)


def spread(attempt: int, number: int) -> float:
    """By how many standard deviations attributes vary: `number` counts rounds from 0, `attempt` attempts at a face from 1.

    >>> [round(spread(attempt, number), 1) for attempt, number in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (4, 0))]
    [0.0, 0.1, 0.2, 0.5, 0.6, 1.5]
    """
    return VARIATION * (number + ATTEMPT_ROUNDS * (attempt - 1))


class LDSPipeline(SafeHubMixin, DiffusionPipeline):
    r"""Samples identities: a recogniser embedding z' and the head shape α' that goes with it.

    Args:
        lds: denoiser of standardised vectors [z ; α].
        scheduler: must not clip samples, which are standardised vectors and not pictures.
    """

    model_cpu_offload_seq = "lds"
    max_rounds = 20  # samplings before identities that are far enough are given up

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

    def check_inputs(self, num_identities: int, away_from: Tensor | None, min_distance: float | None, conditions: Tensor | None):
        """Raise for arguments that make no sense."""
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

    def denoise(self, latents: Tensor, num_inference_steps: int, conditions: Tensor | None = None) -> Tensor:
        """Turn noise `(n, 208)` into standardised vectors [z ; α] of people who fit conditions `(n, condition_dim)`.

        Conditions are exaggerated by `GUIDANCE` (classifier-free guidance, Ho & Salimans 2022): people who fit better than most.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        latents = latents * self.scheduler.init_noise_sigma
        if conditions is not None:
            conditions = torch.cat([conditions, torch.full_like(conditions, math.nan)])
        for t in self.progress_bar(self.scheduler.timesteps):
            # 1. predict noise
            model_input = self.scheduler.scale_model_input(latents, t)
            if conditions is None:
                noise_pred = self.lds(model_input, t).sample
            else:
                fitting, anybody = self.lds(torch.cat([model_input] * 2), t, conditions).sample.chunk(2)
                noise_pred = anybody + GUIDANCE * (fitting - anybody)
            # 2. x_t -> x_t-1
            latents = self.scheduler.step(noise_pred, t, latents).prev_sample
        return latents

    def destandardise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised vectors `(n, 208)` -> unit embeddings z `(n, 128)` and shapes α `(n, 80)`, float32."""
        vectors = latents.float() * self.lds.std.float() + self.lds.mean.float()
        identity, shape = vectors.split([self.lds.config.identity_dim, self.lds.config.shape_dim], dim=1)
        return F.normalize(identity, dim=1), shape

    def prepare_latents(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Noise `(count, 208)`."""
        shape = (count, self.lds.config.identity_dim + self.lds.config.shape_dim)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.lds.dtype)

    def sample(
        self, latents: Tensor, conditions: Tensor | None, num_inference_steps: int = SAMPLING_STEPS
    ) -> tuple[Tensor, Tensor]:
        """Draw people from p(z, α | conditions), blind to everything else.

        Args:
            latents: `(n, 208)` from `prepare_latents`.
            conditions: `(1, condition_dim)` from `lds.conditions`; `None` for anybody.
            num_inference_steps: denoising steps.

        Returns:
            Unit embeddings z `(n, 128)` and shapes α `(n, 80)`, float32.
        """
        asked = None if conditions is None else conditions.to(latents.device).expand(len(latents), -1)
        return self.destandardise(self.denoise(latents, num_inference_steps, asked))

    def expect(
        self, conditions: Tensor | None, generator: torch.Generator | None, num_inference_steps: int = SAMPLING_STEPS
    ) -> Tensor | None:
        """K -> the attributes that people who fit K have on average. Conditions that are attributes stay as they are.

        Who fits K does so in all that an embedding holds, also in pose, light and the cut of the hair, and so is near to
        everybody in such a picture. So nobody of those drawn here is taken: new people are drawn who have their attributes.
        People of the minority are left out: an average of men and women, or of children and adults, would be like neither.

        Args:
            conditions: `(1, condition_dim)` from `lds.conditions`; `None` for anybody.
            generator: source of the noise; `None` for fresh randomness.
            num_inference_steps: denoising steps.
        """
        if conditions is None:
            return None
        conditions = conditions.to(self._execution_device)
        if not self.lds.config.attribute_names or self.lds.tells_attributes(conditions):
            return conditions
        fitting, _ = self.sample(self.prepare_latents(AVERAGED, generator), conditions, num_inference_steps)
        attributes = self.lds.attributes(fitting.to(self.lds.dtype)).float()
        for name, limit in DECIDED.items():
            if name in self.lds.config.attribute_names:
                yes = attributes[:, self.lds.config.attribute_names.index(name)] > limit
                attributes = attributes[yes == (2 * yes.sum() > len(yes))]
        return self.lds.conditions(attributes=attributes.mean(dim=0, keepdim=True))

    def vary(
        self, asked: Tensor | None, by: float, generator: torch.Generator | None, num_inference_steps: int = SAMPLING_STEPS
    ) -> Tensor | None:
        """Mix the attributes that conditions `(1, condition_dim)` ask for with those of anybody.

        Anybody's count `by` times, and the sum is scaled to usual attributes again. Conditions without attributes cannot vary: in
        their place nothing is asked for.
        """
        if asked is None or by == 0:
            return asked
        if not self.lds.tells_attributes(asked):
            return None
        anybody, _ = self.sample(self.prepare_latents(1, generator), None, num_inference_steps)
        others = self.lds.conditions(attributes=self.lds.attributes(anybody.to(self.lds.dtype)).to(asked)).nan_to_num()
        return (asked + by * others) / math.sqrt(1 + by**2)

    @torch.no_grad()
    def draw(
        self,
        source: Tensor,
        level: int,
        limit: float,
        conditions: Tensor | None = None,
        others: Tensor | None = None,
        num_inference_steps: int = SAMPLING_STEPS,
        generator: torch.Generator | None = None,
        attempt: int = 1,
        margin: float = 0.0,
    ) -> NewIdentity:
        """Draw somebody for a source: the first of `DRAWS` people who is beyond the level's bound.

        Which people are drawn does not depend on the source. A bound that none of them meets is lowered to the highest that one
        of them meets. Where none is even beyond the limit, others are drawn, whose attributes vary more from round to round:
        being nobody comes before fitting.

        Args:
            source: `(n, 128)` unit embeddings of the source, from all of which the level's bound is kept.
            level: 1…10.
            limit: smallest distance at all, from `source` and from `others`.
            conditions: `(1, condition_dim)` from `lds.conditions`; `None`: anybody.
            others: `(m, 128)` further people whom nobody may resemble.
            num_inference_steps: denoising steps.
            generator: source of the noise; `None` for fresh randomness.
            attempt: which attempt at a face this is; later ones begin with people who vary more.
            margin: by how much more than the limit they are away from `source`, also where the bound is lowered.

        Raises:
            NoIdentityFoundError: everybody drawn was nearer than the limit, or could not be painted.
        """
        self.check_inputs(1, source, limit, conditions)
        bounds = [least_distance(lower, limit) for lower in range(1, level + 1)]
        asked = self.expect(conditions, generator, num_inference_steps)
        for number in range(self.max_rounds):
            told = self.vary(asked, spread(attempt, number), generator, num_inference_steps)
            drawn, met = [], torch.empty(0, dtype=torch.long)  # the highest level that each of them meets, 0: none
            for latents in self.prepare_latents(DRAWS, generator).split(AT_ONCE):
                drawn.append(self.sample(latents, told, num_inference_steps))
                met = torch.cat([met, self._levels(*drawn[-1], source, bounds, others, margin)])
                if (met == level).any():
                    break
            if met.any():
                chosen = int(met.argmax())  # the first of the best
                embedding, shape = (torch.cat(parts)[chosen, None] for parts in zip(*drawn, strict=True))
                self.maybe_free_model_hooks()
                return NewIdentity(embedding, shape, int(met[chosen]))
        raise NoIdentityFoundError(
            f"None of {self.max_rounds * DRAWS} identities can be painted and is farther than {limit + margin:.2f} from the "
            "source. Lower `identity_limit`."
        )

    def may_be_painted(self, embeddings: Tensor, shapes: Tensor) -> Tensor:
        """Which people `(n, 128)` and `(n, 80)` have a usual head and nothing in front of the face, `(n,)` bool."""
        dtype = self.lds.dtype
        return ~self.lds.leaves_ghosts(embeddings.to(dtype)) & self.lds.is_usual(shapes.to(dtype))

    def _levels(
        self, embeddings: Tensor, shapes: Tensor, source: Tensor, bounds: list[float], others: Tensor | None, margin: float
    ) -> Tensor:
        """The highest level whose bound each person meets, `(n,)` on the CPU; 0 for those who must not be taken."""
        usable = self.may_be_painted(embeddings, shapes)
        if others is not None:
            usable &= (1 - embeddings @ others.to(embeddings).T >= bounds[0]).all(dim=1)
        distances = (1 - embeddings @ source.to(embeddings).T).amin(dim=1, keepdim=True)
        usable &= distances[:, 0] >= bounds[0] + margin
        return (usable * (distances >= distances.new_tensor(bounds)).sum(dim=1)).cpu()

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

        The result is a function of the arguments, the state of `generator` included, when the scheduler is deterministic (DDIM).

        Args:
            num_identities: how many to return.
            away_from: `(n, 128)` unit embeddings that no sampled identity may resemble.
            min_distance: smallest allowed cosine distance (1 - cosine, 0…2) to each of `away_from`. Nearer identities are
                sampled again, at most `max_rounds` times.
            conditions: `(1, condition_dim)` from `lds.conditions`, what all the people shall fit; `None`: anybody. All are asked
                for with the same attributes, see `expect`.
            num_inference_steps: denoising steps.
            generator: source of the noise; `None` for fresh randomness.
            return_dict: `False` gives the tuple `(identity, shape)`.
        """
        # 0. check inputs
        self.check_inputs(num_identities, away_from, min_distance, conditions)

        asked = self.expect(conditions, generator, num_inference_steps)
        identities, shapes, missing = [], [], num_identities
        for _ in range(self.max_rounds):
            # 1. sample as many as are missing
            identity, shape = self.sample(self.prepare_latents(missing, generator), asked, num_inference_steps)

            # 2. refuse those that are too near, or could not be painted well
            accepted = self.may_be_painted(identity, shape)
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
                f"`min_distance={min_distance}` from all of `away_from` after {self.max_rounds} rounds. Lower `min_distance`."
            )

        # 3. output
        self.maybe_free_model_hooks()
        output = LDSPipelineOutput(identity=torch.cat(identities), shape=torch.cat(shapes))
        return output if return_dict else output.to_tuple()
