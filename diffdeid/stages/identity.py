"""Stage 3: draw new people who belong to nobody.

Method: DiffDeID, §3.2. Written from the paper. What differs: z and α are sampled jointly (models/lds.py), of people who fit what
a result keeps of the source anyway; and identities too near to given ones, or of people with glasses, caps, fringes or heads that
nobody has, are refused. The paper chooses among many samples by their distance to the source; here a level is a lower bound of
that distance, and the first draw beyond it is taken. So the choice depends on the source by refusals only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffdeid.errors import ConfigurationError, NoIdentityFoundError
from diffdeid.geometry.pixels import on_host
from diffdeid.models.lds import LDSModel
from diffdeid.structures import FaceBatch, NewIdentity

GUIDANCE = 1.5  # 1 is off
AVERAGED = 16  # people who fit K, of whose attributes the average is taken …
DECIDED = {"female": 0.0, "child": 1.0}  # … over the majority in each of these; who has more standard deviations is a yes
DRAWS = 20  # people drawn before a bound is lowered, …
AT_ONCE = 5  # … so many at a time
ROUNDS = 20  # of so many draws, before identities that are far enough are given up
VARIATION = 0.1  # standard deviations by which the attributes asked for vary more in each such round …
ATTEMPT_ROUNDS = 5  # … of which an attempt at a face counts as so many
SAMPLING_STEPS = 10  # of the denoising of an identity
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


def face_generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """The randomness of one face: of the people that are drawn for it, and of its noise. So no face depends on its neighbours."""
    seeds = on_host(torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)))
    people, noise = (torch.Generator().manual_seed(int(one)) for one in seeds)
    return people, noise


def conditions_of(lds: LDSModel, batch: FaceBatch, attributes: Literal["context", "any", "source"]) -> list[Tensor] | list[None]:
    """What the sampler is told of each face of a batch: `(1, condition_dim)`, or `None` for anybody.

    But for "source", nothing of the erased faces is in it.
    """
    if attributes == "any":
        return [None] * len(batch)
    if attributes == "source":
        told = lds.conditions(attributes=lds.attributes(batch.embedding.to(lds.dtype)).float())
    else:
        told = lds.conditions(batch.context, batch.coefficients)
    return list(told.split(1))


class IdentitySampler:
    """Draws people from the latent diffusion model.

    Args:
        lds: denoiser of standardised vectors [z ; α].
        scheduler: must not clip samples, which are standardised vectors and not pictures.
        device: where it works.
        progress: wraps the time steps, for bars.
    """

    def __init__(
        self,
        lds: LDSModel,
        scheduler: SchedulerMixin,
        device: torch.device,
        progress: Callable[[Iterable], Iterable] = iter,
    ):
        if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
            raise ConfigurationError(
                "`scheduler` clips samples to the range of pictures, which distorts identities. Set `clip_sample=False` and "
                "`thresholding=False`."
            )
        self.lds, self.scheduler, self.device, self.progress = lds, scheduler, device, progress

    def prepare_latents(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Noise `(count, 208)`."""
        shape = (count, self.lds.config.identity_dim + self.lds.config.shape_dim)
        return randn_tensor(shape, generator=generator, device=self.device, dtype=self.lds.dtype)

    def denoise(self, latents: Tensor, num_inference_steps: int, conditions: Tensor | None = None) -> Tensor:
        """Turn noise `(n, 208)` into standardised vectors [z ; α] of people who fit conditions `(n, condition_dim)`.

        Conditions are exaggerated by `GUIDANCE` (classifier-free guidance, Ho & Salimans 2022): people who fit better than most.
        """
        scheduler = copy(self.scheduler)  # it remembers its last steps, and somebody else may be drawing
        scheduler.set_timesteps(num_inference_steps, device=latents.device)
        latents = latents * scheduler.init_noise_sigma
        if conditions is not None:
            conditions = torch.cat([conditions, torch.full_like(conditions, math.nan)])
        for t in self.progress(scheduler.timesteps):
            # 1. predict noise
            model_input = scheduler.scale_model_input(latents, t)
            if conditions is None:
                noise_pred = self.lds(model_input, t).sample
            else:
                fitting, anybody = self.lds(torch.cat([model_input] * 2), t, conditions).sample.chunk(2)
                noise_pred = anybody + GUIDANCE * (fitting - anybody)
            # 2. x_t -> x_t-1
            latents = scheduler.step(noise_pred, t, latents).prev_sample
        return latents

    def destandardise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised vectors `(n, 208)` -> unit embeddings z `(n, 128)` and shapes α `(n, 80)`, float32."""
        vectors = latents.float() * self.lds.std.float() + self.lds.mean.float()
        embedding, shape = vectors.split([self.lds.config.identity_dim, self.lds.config.shape_dim], dim=1)
        return F.normalize(embedding, dim=1), shape

    def sample(
        self, latents: Tensor, conditions: Tensor | None, num_inference_steps: int = SAMPLING_STEPS
    ) -> tuple[Tensor, Tensor]:
        """Draw people from p(z, α | conditions), blind to everything else.

        Args:
            latents: `(n, 208)` from `prepare_latents`.
            conditions: `(1, condition_dim)` from `lds.conditions`, or one for each of them; `None` for anybody.
            num_inference_steps: denoising steps.

        Returns:
            Unit embeddings z `(n, 128)` and shapes α `(n, 80)`, float32.
        """
        asked = None if conditions is None else conditions.to(latents.device).expand(len(latents), -1)
        return self.destandardise(self.denoise(latents, num_inference_steps, asked))

    def expect(
        self,
        conditions: Sequence[Tensor | None],
        generators: Sequence[torch.Generator | None],
        num_inference_steps: int = SAMPLING_STEPS,
    ) -> list[Tensor | None]:
        """K of each face -> the attributes that people who fit it have on average. Conditions that are attributes stay.

        Who fits K does so in all that an embedding holds, also in pose, light and the cut of the hair, and so is near to
        everybody in such a picture. So nobody of those drawn here is taken: new people are drawn who have their attributes.
        People of the minority are left out: an average of men and women, or of children and adults, would be like neither.

        Args:
            conditions: `(1, condition_dim)` each, from `lds.conditions`; `None` for anybody.
            generators: sources of the noise, one a face; `None` for fresh randomness.
            num_inference_steps: denoising steps.
        """
        asked = [None if one is None else one.to(self.device) for one in conditions]
        if not self.lds.config.attribute_names:
            return asked
        vague = [row for row, one in enumerate(asked) if one is not None and not self.lds.tells_attributes(one)]
        if vague:
            latents = torch.cat([self.prepare_latents(AVERAGED, generators[row]) for row in vague])
            told = torch.cat([asked[row] for row in vague]).repeat_interleave(AVERAGED, dim=0)
            fitting, _ = self.sample(latents, told, num_inference_steps)
            attributes = self.lds.attributes(fitting.to(self.lds.dtype)).float()
            for row, drawn in zip(vague, attributes.split(AVERAGED), strict=True):
                asked[row] = self._majority(drawn)
        return asked

    def _majority(self, attributes: Tensor) -> Tensor:
        """The mean attributes of those drawn `(n, len(attribute_names))` who are as most of them are, as conditions."""
        counted = torch.ones_like(attributes[:, 0], dtype=torch.bool)
        for name, limit in DECIDED.items():
            if name in self.lds.config.attribute_names:
                yes = attributes[:, self.lds.config.attribute_names.index(name)] > limit
                counted &= yes == (2 * (yes & counted).sum() > counted.sum())
        mean = (attributes * counted[:, None]).sum(dim=0, keepdim=True) / counted.sum()
        return self.lds.conditions(attributes=mean)

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

    def may_be_painted(self, embeddings: Tensor, shapes: Tensor) -> Tensor:
        """Which people `(n, 128)` and `(n, 80)` have a usual head and nothing in front of the face, `(n,)` bool."""
        dtype = self.lds.dtype
        return ~self.lds.leaves_ghosts(embeddings.to(dtype)) & self.lds.is_usual(shapes.to(dtype))


class Casting:
    """Finds new people for one face, attempt after attempt.

    Whom it meets depends on what is asked for and the generator alone. An attacker who knows both meets the same people
    (`evaluation.attacks.replay`), so this class is the only home of that order.

    Args:
        sampler: draws them.
        asked: the attributes that it asks for, `(1, condition_dim)` from `IdentitySampler.expect`; `None` for anybody.
        generator: source of the noise, of which nobody else may take any.
        num_inference_steps: denoising steps of the sampler.
    """

    def __init__(
        self,
        sampler: IdentitySampler,
        asked: Tensor | None,
        generator: torch.Generator | None,
        num_inference_steps: int = SAMPLING_STEPS,
    ):
        self.sampler, self.asked, self.generator = sampler, asked, generator
        self.num_inference_steps = num_inference_steps

    def meet(self, attempt: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The `DRAWS` people of a round, `AT_ONCE` at a time: embeddings `(n, 128)` and shapes `(n, 80)`."""
        sampler, steps = self.sampler, self.num_inference_steps
        told = sampler.vary(self.asked, spread(attempt, number), self.generator, steps)
        for latents in sampler.prepare_latents(DRAWS, self.generator).split(AT_ONCE):
            yield sampler.sample(latents, told, steps)

    @torch.no_grad()
    def draw(
        self,
        source: Tensor,
        level: int,
        limit: float,
        others: Tensor | None = None,
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
            others: `(m, 128)` further people whom nobody may resemble.
            attempt: which attempt at a face this is; later ones begin with people who vary more.
            margin: by how much more than the limit they are away from `source`, also where the bound is lowered.

        Raises:
            NoIdentityFoundError: everybody drawn was nearer than the limit, or could not be painted.
        """
        bounds = [least_distance(lower, limit) for lower in range(1, level + 1)]
        for number in range(ROUNDS):
            drawn, met = [], []  # the highest level that each of them meets, 0: none
            for people in self.meet(attempt, number):
                drawn.append(people)
                met += on_host(self._levels(*people, source, bounds, others, margin)).tolist()
                if level in met:
                    break
            if any(met):
                chosen = met.index(max(met))  # the first of the best
                embedding, shape = (torch.cat(parts)[chosen, None] for parts in zip(*drawn, strict=True))
                return NewIdentity(embedding, shape, met[chosen])
        raise NoIdentityFoundError(
            f"None of {ROUNDS * DRAWS} identities can be painted and is farther than {limit + margin:.2f} from the "
            "source. Lower `identity_limit`."
        )

    def _levels(
        self, embeddings: Tensor, shapes: Tensor, source: Tensor, bounds: list[float], others: Tensor | None, margin: float
    ) -> Tensor:
        """The highest level whose bound each person meets, `(n,)`; 0 for those who must not be taken."""
        usable = self.sampler.may_be_painted(embeddings, shapes)
        if others is not None:
            usable &= (1 - embeddings @ others.to(embeddings).T >= bounds[0]).all(dim=1)
        distances = (1 - embeddings @ source.to(embeddings).T).amin(dim=1, keepdim=True)
        usable &= distances[:, 0] >= bounds[0] + margin
        return usable * (distances >= distances.new_tensor(bounds)).sum(dim=1)
