"""De-identify pictures with all their faces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffdeid.engine.faces import Engine
from diffdeid.options import DeidentifyOptions
from diffdeid.stages.compose import compose
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Covered, Face, FaceJob, NewIdentity, Outcome


@dataclass(frozen=True)
class PictureJob:
    """A picture that is to be de-identified. Its faces are named by their index in `faces`.

    Attributes:
        picture: `(H, W, 3)` uint8 RGB.
        faces: all of its faces.
        seeds: one for each candidate, see `draw_seeds`.
        coefficients: ρ `(1, 261)` of faces for which it is known.
        identities: the new identities of faces for which they are chosen already.
        staying: faces that are left as they are.
    """

    picture: np.ndarray
    faces: Sequence[Face]
    seeds: Sequence[int]
    coefficients: Mapping[int, Tensor] = field(default_factory=dict)
    identities: Mapping[int, NewIdentity] = field(default_factory=dict)
    staying: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        picture: np.ndarray,
        faces: Sequence[Face],
        seeds: Sequence[int],
        options: DeidentifyOptions,
        coefficients: Tensor | None = None,
        identity: tuple[Tensor, Tensor] | None = None,
    ) -> PictureJob:
        """A job with `coefficients` ρ `(F, 261)` and `identity` z' `(F, 128)`, α' `(F, 80)` of the F faces with landmarks.

        Raises:
            ValueError: there are not as many rows as faces with landmarks.
        """
        usable = [number for number, face in enumerate(faces) if why_covered(face, options.min_face) is None]
        for name, rows in (("coefficients", coefficients), ("identity", None if identity is None else identity[0])):
            if rows is not None and len(rows) != len(usable):
                raise ValueError(f"`{name}` must have a row for each of the {len(usable)} faces with landmarks, got {len(rows)}.")
        known = {} if coefficients is None else dict(zip(usable, coefficients.split(1), strict=True))
        people = {}
        if identity is not None:
            pairs = zip(*(part.split(1) for part in identity), strict=True)
            people = {number: NewIdentity(*pair, options.level) for number, pair in zip(usable, pairs, strict=True)}
        return cls(picture, faces, seeds, known, people)


def draw_seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """Draw `count` seeds, one for each candidate; from fresh randomness without a generator."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()


def seed_of(seed: int, number: int, candidate: int = 0) -> int:
    """The seed of one face of a picture or person of a video, from the seed of the result. Other faces ignore `candidate`."""
    return seed + number + (candidate << 21)  # numbers are smaller, see `face_lists.MOST`


@torch.no_grad()
def deidentify_pictures(
    engine: Engine, jobs: Sequence[PictureJob], options: DeidentifyOptions
) -> Iterator[list[tuple[np.ndarray, dict[int, Outcome]]]]:
    """De-identify pictures; their faces share batches.

    Returns:
        For each picture, and each of its seeds, the result and what became of its faces.
    """
    problems = [
        {number: why_covered(face, options.min_face) for number, face in enumerate(job.faces) if number not in job.staying}
        for job in jobs
    ]
    faces = [
        FaceJob(
            job.picture, job.faces[number], job.faces, [seed_of(seed, number) for seed in job.seeds],
            job.coefficients.get(number), job.identities.get(number),
        )
        for job, its_problems in zip(jobs, problems, strict=True)
        for number, problem in its_problems.items()
        if problem is None
    ]  # fmt: skip
    made = engine.deidentify(faces, options)
    for job, its_problems in zip(jobs, problems, strict=True):
        outcomes = {
            number: next(made) if problem is None else [Covered(problem)] * len(job.seeds)
            for number, problem in its_problems.items()
        }
        yield [
            _candidate(job, {number: each[candidate] for number, each in outcomes.items()}, options)
            for candidate in range(len(job.seeds))
        ]


def _candidate(
    job: PictureJob, outcomes: dict[int, Outcome], options: DeidentifyOptions
) -> tuple[np.ndarray, dict[int, Outcome]]:
    faces = [(job.faces[number], outcome) for number, outcome in outcomes.items()]
    return compose(job.picture, faces, options.fallback, options.cover_scale), outcomes
