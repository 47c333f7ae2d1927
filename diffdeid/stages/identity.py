"""Stage 3: draw new identities, of people who do not exist.

Method: DiffDeID, §3.2. Written from the paper, with three differences. z and α are sampled jointly (models/lds.py), for people
who fit what a result keeps of the source anyway. Identities are refused that are too near to given ones, or that have glasses,
caps, fringes or unusual heads. The paper chooses among many samples by their distance to the source; here a level is a lower
bound of that distance, and the first draw beyond it is taken. So the choice depends on the source only by refusals.
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

GUIDANCE = 1.5  # of the LDS; 1 is off
AVERAGED = 16  # people who fit K, over whose attributes the mean is taken …
DECIDED = {"female": 0.0, "child": 1.0}  # … but only over the majority in these; above so many standard deviations means yes
DRAWS = 20  # people drawn in a round, before a bound is lowered, …
AT_ONCE = 5  # … in batches of so many
ROUNDS = 20  # most rounds, before the search for identities that are far enough is given up
VARIATION = 0.1  # standard deviations by which the wanted attributes vary more in each round …
ATTEMPT_ROUNDS = 3  # … and a new attempt at a face varies them as much as so many rounds
SAMPLING_STEPS = 10  # of the denoising of an identity
LEVELS = 10
LEVEL_STEP = 1 / 30  # of the cosine distance, from one level to the next


def least_distance(level: int, limit: float) -> float:
    """The smallest cosine distance to the source that a new identity may have at a de-identification level.

    Level 1 is the recogniser's limit itself; the bounds of higher levels rise evenly. The more people a bound refuses, the worse
    the remaining ones fit, and the more the refusals tell about the source.

    Args:
        level: 1…10; other values raise `ValueError`.
        limit: `identity_limit` of the pipeline.

    >>> tuple(round(least_distance(level, 0.45), 2) for level in (1, 4, 7, 10))
    (0.45, 0.55, 0.65, 0.75)
    """
    if not 1 <= level <= LEVELS:
        raise ValueError(f"`level` must be between 1 and {LEVELS}, got {level}.")
    return limit + LEVEL_STEP * (level - 1)


def spread(attempt: int, number: int) -> float:
    """How many standard deviations attributes vary in round `number`, from 0, of attempt `attempt` at a face, from 1.

    >>> [round(spread(attempt, number), 1) for attempt, number in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (6, 0))]
    [0.0, 0.1, 0.2, 0.3, 0.4, 1.5]
    """
    return VARIATION * (number + ATTEMPT_ROUNDS * (attempt - 1))


def face_generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """The generators of one face, for its new people and for its noise, so that no face depends on its neighbours."""
    seeds = on_host(torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)))
    people, noise = (torch.Generator().manual_seed(int(one)) for one in seeds)
    return people, noise


def conditions_of(lds: LDSModel, batch: FaceBatch, attributes: Literal["context", "any", "source"]) -> list[Tensor] | list[None]:
    """The sampler's conditions for each face of a batch: `(1, condition_dim)`, or `None` for anybody.

    Except with "source", they hold nothing of the erased faces.
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
        device: where it runs.
        progress: wraps the time steps, for progress bars.

    Raises:
        ConfigurationError: the scheduler clips samples.
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
        """Noise `(count, identity_dim + shape_dim)`, which is `(count, 208)` in the released model."""
        shape = (count, self.lds.config.identity_dim + self.lds.config.shape_dim)
        return randn_tensor(shape, generator=generator, device=self.device, dtype=self.lds.dtype)

    def denoise(self, latents: Tensor, num_inference_steps: int, conditions: Tensor | None = None) -> Tensor:
        """Turn noise `(n, 208)` into standardised vectors [z ; α] of people who fit conditions `(n, condition_dim)`.

        `GUIDANCE` exaggerates the conditions (classifier-free guidance, Ho & Salimans 2022), so people fit better than most.
        """
        scheduler = copy(self.scheduler)  # it remembers its last steps, and another thread may be sampling
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
            conditions: `(1, condition_dim)` from `lds.conditions`, or `(n, condition_dim)`; `None` for anybody.
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
        """Turn K of each face into the mean attributes of people who fit it. Conditions that are attributes stay as they are.

        A person drawn from K fits it in everything that an embedding holds, including pose, light and the cut of the hair, and
        so is near to everybody in such a picture. Therefore these people serve for their mean attributes only, and others are
        drawn with these. The minority is left out: a mean of men and women, or of children and adults, would be like neither.

        Args:
            conditions: `(1, condition_dim)` each, from `lds.conditions`; `None` for anybody.
            generators: sources of the noise, one for each face; `None` for fresh randomness.
            num_inference_steps: denoising steps.

        Returns:
            Conditions with attributes `(1, condition_dim)`, or `None` for anybody.
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
        """The mean attributes of the majority among drawn people `(n, len(attribute_names))`, as conditions."""
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
        """Mix the attributes in conditions `(1, condition_dim)` with those of a random person.

        The random person's are weighted by `by`, and the sum is scaled back to the usual spread. Conditions without attributes
        cannot vary; in their place, anybody is drawn (`None`).
        """
        if asked is None or by == 0:
            return asked
        if not self.lds.tells_attributes(asked):
            return None
        anybody, _ = self.sample(self.prepare_latents(1, generator), None, num_inference_steps)
        others = self.lds.conditions(attributes=self.lds.attributes(anybody.to(self.lds.dtype)).to(asked)).nan_to_num()
        return (asked + by * others) / math.sqrt(1 + by**2)

    def may_be_painted(self, embeddings: Tensor, shapes: Tensor) -> Tensor:
        """Which people, z `(n, 128)` and α `(n, 80)`, have a usual head and nothing in front of the face, `(n,)` bool."""
        dtype = self.lds.dtype
        return ~self.lds.leaves_ghosts(embeddings.to(dtype)) & self.lds.is_usual(shapes.to(dtype))


class Casting:
    """Finds new people for one face, attempt after attempt.

    The people that it draws depend only on the wanted attributes and the generator. An attacker who knows both draws the same
    people (`evaluation.attacks.replay`), so only this class may decide on the order of draws.

    Args:
        sampler: draws people.
        asked: the wanted attributes, `(1, condition_dim)` from `IdentitySampler.expect`; `None` for anybody.
        generator: source of the noise; nothing else may use it.
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
        """Draw the `DRAWS` people of a round, `AT_ONCE` at a time: embeddings `(n, 128)` and shapes `(n, 80)`."""
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
        """Draw somebody for a source: the first of `DRAWS` people who keeps the level's least distance.

        Which people are drawn does not depend on the source. If none of them keeps the distance, the level is lowered to the
        highest one that somebody meets. If none even keeps the limit, others are drawn, whose attributes vary more from round to
        round: it matters more that a person does not exist than that the person fits.

        Args:
            source: `(n, 128)` unit embeddings of the source; the distance is kept from all of them.
            level: 1…10.
            limit: smallest accepted cosine distance at all, from `source` and from `others`.
            others: `(m, 128)` more people whom nobody may resemble.
            attempt: number of the attempt at a face, from 1; later ones begin with people who vary more.
            margin: how much farther than the limit people must be from `source`, even with a lowered level.

        Raises:
            NoIdentityFoundError: everybody drawn was nearer than the limit, or could not be painted.
        """
        bounds = [least_distance(lower, limit) for lower in range(1, level + 1)]
        for number in range(ROUNDS):
            drawn, met = [], []  # people, and the highest level that each of them meets, 0 for none
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
        """The highest level whose least distance each person keeps, `(n,)`; 0 for those who must not be taken."""
        usable = self.sampler.may_be_painted(embeddings, shapes)
        if others is not None:
            usable &= (1 - embeddings @ others.to(embeddings).T >= bounds[0]).all(dim=1)
        distances = (1 - embeddings @ source.to(embeddings).T).amin(dim=1, keepdim=True)
        usable &= distances[:, 0] >= bounds[0] + margin
        return usable * (distances >= distances.new_tensor(bounds)).sum(dim=1)
