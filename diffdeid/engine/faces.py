"""Faces in batches: new people, painted and checked, again and again for those that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffdeid.errors import ConfigurationError, NoIdentityFoundError
from diffdeid.geometry.pixels import to_tensor
from diffdeid.models.texture_encoder import TextureEncoderOutput
from diffdeid.options import DeidentifyOptions
from diffdeid.stages.components import Components
from diffdeid.stages.denoise import CallbackError
from diffdeid.stages.identity import face_generators
from diffdeid.structures import (
    Attempt,
    Covered,
    FaceBatch,
    FaceCrop,
    FaceJob,
    MorphableCoefficients,
    NewIdentity,
    Outcome,
    Replaced,
)

MAX_ATTEMPTS = 4  # at a face, before it is covered
CPU_BATCH = 4  # faces that networks are shown at once; 8 are hardly faster, and what they leave free is in ever smaller pieces
GPU_BATCH, GPU_BYTES = 64, 256 * 2**20  # at most, and memory that each may take
MARGIN, MARGIN_SEEN = 0.15, 0.2  # how far beyond the limit z' and the reference of a video are, for frames differ from it …
CASTS = 4  # … and how many people are tried at each attempt until one is

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StandIn:
    """Somebody who does not exist, ready to stand for a person in every frame of a video.

    Attributes:
        identity: z' and α'.
        coefficients: ρ of the reference, whose δ and γ all frames get, and from whose α theirs is counted.
        texture: K and V of the de-identified reference I_d.
        noise: `(1, 3, S, S)`, from which all frames start.
        attempts: people tried.
    """

    identity: NewIdentity
    coefficients: MorphableCoefficients
    texture: TextureEncoderOutput
    noise: Tensor
    attempts: int


class Engine(Components):
    """The components of a pipeline at work."""

    @property
    def batch_size(self) -> int:
        """Faces that the networks are shown at once."""
        if self.device.type != "cuda":
            return CPU_BATCH
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)  # torch keeps what it had
        fitting = min(max(int(free // 2 // GPU_BYTES), 1), GPU_BATCH)
        return 1 << fitting.bit_length() - 1  # of few sizes, for results differ by roundings from one to the next

    @torch.no_grad()
    def deidentify(self, jobs: Sequence[FaceJob], options: DeidentifyOptions) -> Iterator[list[Outcome]]:
        """De-identify faces of any pictures: for each of them an outcome for each of its seeds."""

        def run(part: Sequence[FaceJob]) -> list[list[Outcome]]:
            batch = self.reconstruct(part, options)
            rows = [(row, seed) for row, job in enumerate(part) for seed in job.seeds]
            outcomes: list[list[Outcome]] = [[] for _ in part]
            for some in split(rows, self.batch_size):
                faces, seeds = batch.pick([row for row, _ in some]), [seed for _, seed in some]
                made = self._attempts(faces, seeds, [part[row].identity for row, _ in some], options)
                for (row, _), outcome in zip(some, made, strict=True):
                    outcomes[row].append(outcome)
            return outcomes

        for part in split(jobs, self.batch_size):
            try:
                yield from guarded(run, part, lambda job, reason: [Covered(reason)] * len(job.seeds))
            except CallbackError as error:
                raise error.__cause__ from None

    def _attempts(
        self,
        batch: FaceBatch,
        seeds: Sequence[int],
        chosen: Sequence[NewIdentity | None],
        options: DeidentifyOptions,
    ) -> list[Outcome]:
        """New people, painted and checked, again and again for those that fail."""
        generators = [face_generators(seed) for seed in seeds]
        refused = self.refuse(batch, options.keep_mouth)
        outcomes: list[Outcome] = [Covered(problem or "nothing was tried") for problem in refused]
        given_up = {row for row, problem in enumerate(refused) if problem is not None}
        wanted = [one is None and row not in given_up for row, one in enumerate(chosen)]
        castings = self.castings(batch, [people for people, _ in generators], options, wanted)
        texture = self.encode_texture(batch.images, batch.masks)
        for number in range(1, MAX_ATTEMPTS + 1):
            drawn: dict[int, NewIdentity] = {}
            for row in [row for row, one in enumerate(outcomes) if isinstance(one, Covered) and row not in given_up]:
                own = batch.embedding[row, None]
                try:
                    drawn[row] = chosen[row] or castings[row].draw(own, options.level, self.identity_limit, attempt=number)
                except NoIdentityFoundError as error:  # hundreds were refused; further attempts would hardly find anybody
                    outcomes[row] = Covered(str(error), number)
                    given_up.add(row)
            if not drawn:
                break
            rows = list(drawn)
            against, noises = batch.embedding[rows].split(1), [generators[row][1] for row in rows]
            made = self.attempt(batch.pick(rows), list(drawn.values()), texture.pick(rows), noises, against, options)
            for row, attempt in zip(rows, made, strict=True):
                outcomes[row] = judged(attempt, batch.crops[row], drawn[row], number)
        return outcomes

    @torch.no_grad()
    def try_once(self, job: FaceJob, options: DeidentifyOptions) -> tuple[FaceBatch, Attempt]:
        """One attempt at a face, whatever becomes of it, and the face as it was seen: for those who want to look inside."""
        source, (people, noise) = self.reconstruct([job], options), face_generators(job.seeds[0])
        (casting,) = self.castings(source, [people], options, [True])
        person = casting.draw(source.embedding, options.level, self.identity_limit)
        texture = self.encode_texture(source.images, source.masks)
        return source, *self.attempt(source, [person], texture, [noise], [source.embedding], options)

    def attempt(
        self,
        batch: FaceBatch,
        people: Sequence[NewIdentity],
        texture: TextureEncoderOutput,
        noises: Sequence[torch.Generator],
        against: Sequence[Tensor],
        options: DeidentifyOptions,
    ) -> list[Attempt]:
        """Paint people in the place of the faces of a batch, from noise of one generator each, and finish them."""
        together, latents = NewIdentity.cat(people, batch.embedding), self.prepare_latents(noises)
        return self.finish(self.paint(batch, together, texture, latents, options), against)

    def cast(
        self, view: FaceBatch, seen: Tensor, others: Tensor | None, options: DeidentifyOptions, seed: int
    ) -> StandIn | Covered:
        """Find somebody who does not exist for a person: z', α' and the de-identified reference I_d.

        A frame in which they are nearer to each other than the limit is covered. So they are asked to differ by more, and where
        nobody in the reference does by `MARGIN_SEEN`, the best of all who were tried is taken.

        Args:
            view: the best early view of the person, a batch of one.
            seen: `(n, 128)`, all embeddings of the person, their mean first.
            others: `(m, 128)`, people whom nobody may resemble.
            seed: of this person's randomness.
        """
        (problem,) = self.refuse(view, keep_mouth=True)  # the mouth moves from frame to frame
        if problem is not None:
            return Covered(problem)
        people, noise = face_generators(seed)
        against = torch.cat([view.embedding, seen])
        texture = self.encode_texture(view.images, view.masks)
        best: tuple[NewIdentity, Attempt] | None = None
        problem = "nothing was tried"
        (casting,) = self.castings(replace(view, embedding=seen[:1]), [people], options, [True])
        for number in range(1, CASTS * MAX_ATTEMPTS + 1):
            try:
                drawn = casting.draw(against, options.level, self.identity_limit, others, (number - 1) // CASTS + 1, MARGIN)
            except NoIdentityFoundError as error:  # hundreds were refused; further attempts would hardly find anybody
                problem = str(error)
                break
            (attempt,) = self.attempt(view, [drawn], texture, [noise], [against], options)
            problem = attempt.problem or problem
            if attempt.problem is None and (best is None or attempt.identity_distance > best[1].identity_distance):
                best = drawn, attempt
            if best is not None and best[1].identity_distance >= self.identity_limit + MARGIN_SEEN:
                break
        if best is None:
            return Covered(problem, number)
        identity, attempt = NewIdentity.cat([best[0]], view.embedding), best[1]
        reference = to_tensor([attempt.result], self.device)
        texture = self.encode_texture(reference, torch.zeros_like(view.masks))
        return StandIn(identity, view.coefficients, texture, self.prepare_latents([noise]), number)


def judged(attempt: Attempt, crop: FaceCrop, identity: NewIdentity, number: int) -> Outcome:
    """What becomes of an attempt, the `number`-th."""
    if attempt.problem is not None:
        return Covered(attempt.problem, number)
    return Replaced(attempt.patch, attempt.opacity, crop.matrix, attempt.identity_distance, identity, number)


def split(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def guarded(
    run: Callable[[Sequence], list], items: Sequence, cover: Callable[[object, str], object] = lambda _, reason: Covered(reason)
) -> list:
    """`run` of all items; of each alone if that fails; and `cover` of an item and the reason where it fails alone.

    Items that are `Covered` stay so.
    """
    open_ones = [item for item in items if not isinstance(item, Covered)]
    if len(open_ones) < len(items):
        done = iter(guarded(run, open_ones, cover) if open_ones else [])
        return [item if isinstance(item, Covered) else next(done) for item in items]
    try:
        return run(items)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever it is: the face must not leave as it came
        if len(items) > 1:
            return [done for item in items for done in guarded(run, [item], cover)]
        logger.warning("A face is covered: %s: %s", type(error).__name__, error, exc_info=logger.isEnabledFor(logging.DEBUG))
        return [cover(items[0], f"something went wrong with it ({type(error).__name__}: {error})")]
