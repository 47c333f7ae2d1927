"""De-identify faces in batches: draw new people, paint and check them, and try again for those that fail."""

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

MAX_ATTEMPTS = 6  # at a face, before it is covered; of 60 faces one needed five
CPU_BATCH = 4  # faces in a batch; 8 are hardly faster, and fragment the memory
GPU_BATCH, GPU_BYTES = 64, 256 * 2**20  # most faces in a batch, and the memory that each may take
# A stand-in's z' and its painted reference must be farther from the person than the limit, because frames differ from it:
MARGIN, MARGIN_SEEN = 0.15, 0.2  # by so much …
CASTS = 3  # … and this many people are tried at each attempt until one is

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StandIn:
    """A new person, ready to stand in for somebody in every frame of a video.

    Attributes:
        identity: z' and α'.
        coefficients: ρ of the reference. All frames get its δ and γ; their α is taken as a difference from its α.
        texture: keys K and values V of the de-identified reference I_d.
        noise: `(1, 3, S, S)`, from which all frames start.
        attempts: how many people were tried.
    """

    identity: NewIdentity
    coefficients: MorphableCoefficients
    texture: TextureEncoderOutput
    noise: Tensor
    attempts: int


class Engine(Components):
    """The components of a pipeline, and the loops that run the stages on them."""

    @property
    def batch_size(self) -> int:
        """How many faces share a batch; on a GPU as many as its free memory allows."""
        if self.device.type != "cuda":
            return CPU_BATCH
        free, _ = torch.cuda.mem_get_info(self.device)
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)  # held by torch, but free
        fitting = min(max(int(free // 2 // GPU_BYTES), 1), GPU_BATCH)
        return 1 << fitting.bit_length() - 1  # a power of two: rounding differs between sizes, so use few of them

    @property
    def mixed_batch_size(self) -> int:
        """Faces of a batch whose results should not depend on one another: of different files, and of a list that is corrected.

        On a CPU each is alone: batches gain less there, and so results stay bit-identical. On a GPU they differ by roundings.
        """
        return self.batch_size if self.device.type == "cuda" else 1

    @torch.no_grad()
    def deidentify(self, jobs: Sequence[FaceJob], options: DeidentifyOptions) -> Iterator[list[Outcome]]:
        """De-identify faces, which may come from different pictures: for each of them an outcome for each of its seeds."""

        def run(part: Sequence[FaceJob]) -> list[list[Outcome]]:
            batch = self.reconstruct(part, options, may_refine=True)
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
        """Draw new people for a batch, paint and check them, and try again for those that fail."""
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
                except NoIdentityFoundError as error:  # hundreds were refused; another attempt would hardly find anybody
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
        """The source of a face and one attempt at it, even a failed one, for pictures of the stages."""
        source, (people, noise) = self.reconstruct([job], options, may_refine=True), face_generators(job.seeds[0])
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
        """Paint `people` in place of the faces of a batch, from noise of one generator each, and finish and check them."""
        together, latents = NewIdentity.cat(people, batch.embedding), self.prepare_latents(noises)
        return self.finish(self.paint(batch, together, texture, latents, options), against)

    def cast(
        self, view: FaceBatch, seen: Tensor, others: Tensor | None, options: DeidentifyOptions, seed: int
    ) -> StandIn | Covered:
        """Find a stand-in for a person: z', α' and the de-identified reference I_d.

        A frame in which the two are nearer to each other than the limit is covered. So the stand-in must differ by more, and if
        nobody's reference does by `MARGIN_SEEN`, the best of all who were tried is taken.

        Args:
            view: the best early view of the person, a batch of one.
            seen: `(n, 128)`, all embeddings of the person, their mean first.
            others: `(m, 128)`, people whom the stand-in may not resemble, or `None`.
            options: of the video.
            seed: of this person's randomness.

        Returns:
            The stand-in, or why the person has to be covered.
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
            except NoIdentityFoundError as error:  # hundreds were refused; another attempt would hardly find anybody
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
    """The outcome of the `number`-th attempt: a new face, or a cover if it has a problem."""
    if attempt.problem is not None:
        return Covered(attempt.problem, number)
    where = attempt.patch, attempt.opacity, len(attempt.patch) / len(crop.image) * crop.matrix
    return Replaced(*where, attempt.identity_distance, identity, number, attempt.straying)


def split(items: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def guarded(
    run: Callable[[Sequence], list], items: Sequence, cover: Callable[[object, str], object] = lambda _, reason: Covered(reason)
) -> list:
    """Run all items together; if that fails, each alone; and give `cover(item, reason)` for an item that fails alone.

    Items that are `Covered` already are passed through.
    """
    open_ones = [item for item in items if not isinstance(item, Covered)]
    if len(open_ones) < len(items):
        done = iter(guarded(run, open_ones, cover) if open_ones else [])
        return [item if isinstance(item, Covered) else next(done) for item in items]
    try:
        return run(items)
    except ConfigurationError:
        raise
    except Exception as error:  # fail closed: no error may let a face through as it was
        if len(items) > 1:
            return [done for item in items for done in guarded(run, [item], cover)]
        logger.warning("A face is covered: %s: %s", type(error).__name__, error, exc_info=logger.isEnabledFor(logging.DEBUG))
        return [cover(items[0], f"something went wrong with it ({type(error).__name__}: {error})")]
