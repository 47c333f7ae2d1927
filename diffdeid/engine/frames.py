"""Replace the known people in the frames of a video by their stand-ins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffdeid.engine.faces import Engine, StandIn, guarded, judged, split
from diffdeid.models.texture_encoder import TextureEncoderOutput
from diffdeid.options import DeidentifyOptions, VideoOptions
from diffdeid.stages.components import BROKEN, Painted, finite
from diffdeid.stages.compose import compose
from diffdeid.stages.verify import STRAYING, turned_away
from diffdeid.structures import Covered, Face, MorphableCoefficients, NewIdentity, Outcome, Replaced
from diffdeid.temporal.filter import TemporalFilter

FRAME_STRAYING = 1.5 * STRAYING  # frames are smoothed, cannot be painted again, and covers flicker
UNPROVEN = "it had to be covered in frames shortly before"


@dataclass(frozen=True)
class Appearance:
    """A face of a frame that a stand-in replaces.

    Attributes:
        stand_in: who takes its place.
        embedding: `(1, 128)` mean z_id of the person over all frames.
        seen: whether the face was found in the frame; if so, the result is compared with it too. Otherwise something may hide it.
        doubt: `Face.doubt` of the face; features may stray farther by it.
        frame: the number of the frame.
        temporal_filter: makes the face fit the frame before.
    """

    stand_in: StandIn
    embedding: Tensor
    seen: bool
    doubt: float
    frame: int
    temporal_filter: TemporalFilter


@dataclass(frozen=True)
class FrameJob:
    """A frame, and for each of its faces (with smoothed landmarks) an appearance, or the reason why it is covered."""

    picture: np.ndarray
    faces: Sequence[tuple[Face, Appearance | Covered]]


def render(
    engine: Engine, groups: Iterable[Sequence[FrameJob]], options: VideoOptions
) -> Iterator[list[tuple[np.ndarray, list[Outcome]]]]:
    """Groups of consecutive frames -> the frames with new faces, and an outcome for each face.

    A second thread finishes painted faces, which is in part work for the CPU, while the networks paint the next batch, which may
    belong to the next group.
    """
    with ThreadPoolExecutor(1) as finisher:
        waiting: Future | None = None
        for group in groups:
            begun = _begin(engine, group, options, finisher)
            if waiting is not None:
                yield waiting.result()
            waiting = begun
        if waiting is not None:
            yield waiting.result()


def _begin(engine: Engine, group: Sequence[FrameJob], options: VideoOptions, finisher: ThreadPoolExecutor) -> Future:
    """Paint the faces of some frames; the future gives the finished frames."""
    faces = {(frame, face): entry for frame, job in enumerate(group) for face, (_, entry) in enumerate(job.faces)}
    outcomes = {place: entry for place, entry in faces.items() if isinstance(entry, Covered)}
    finished: list[tuple[Sequence, Future]] = []

    def paint(places: Sequence[tuple[int, int]]) -> list[Painted | Covered]:
        batch = [(group[frame].picture, *group[frame].faces[face]) for frame, face in places]
        return _paint_frames(engine, batch, options)

    def lay() -> list[tuple[np.ndarray, list[Outcome]]]:
        for places, job in finished:
            outcomes.update(zip(places, job.result(), strict=True))
        return [_laid(job, [outcomes[frame, face] for face in range(len(job.faces))], options)
                for frame, job in enumerate(group)]  # fmt: skip

    for places in split([place for place in faces if place not in outcomes], engine.batch_size):
        painted = guarded(paint, places)
        if finished:
            finished[-1][1].result()  # only one batch waits: a crowd takes no more memory than a face
        finished.append((places, finisher.submit(_finish_frames, engine, [faces[place] for place in places], painted)))
    return finisher.submit(lay)


def _paint_frames(
    engine: Engine, batch: Sequence[tuple[np.ndarray, Face, Appearance]], options: VideoOptions
) -> list[Painted | Covered]:
    """A new face for each appearance of a batch, or a cover where the face is turned away.

    The α fitted to a frame absorbs a part of every movement, above all of the mouth. So the rendered α' moves with it: the
    difference from the reference is added. The condition vector C keeps α' itself, because there it says who it is.
    """
    pictures, faces, appearances = zip(*batch, strict=True)
    roles = [appearance.stand_in for appearance in appearances]
    reference = MorphableCoefficients.unpack(torch.cat([role.coefficients.pack() for role in roles]))
    source = engine.follow(pictures, faces, reference, options)
    turned = turned_away(source.coefficients.pose)
    shown = [row for row, problem in enumerate(turned) if problem is None]
    if not shown:
        return [Covered(problem) for problem in turned]
    roles, reference, source = [roles[row] for row in shown], reference.pick(shown), source.pick(shown)
    people = NewIdentity.cat([role.identity for role in roles], source.embedding)
    moved = people.shape + source.coefficients.shape - reference.shape
    texture = TextureEncoderOutput.cat([role.texture for role in roles])
    latents = torch.cat([role.noise for role in roles])
    painted = iter(engine.paint(source, people, texture, latents, options, shown=moved))
    return [next(painted) if problem is None else Covered(problem) for problem in turned]


@torch.no_grad()  # of the caller holds in its own thread only
def _finish_frames(engine: Engine, appearances: Sequence[Appearance], painted: Sequence[Painted | Covered]) -> list[Outcome]:
    """Register, filter, verify. Filters remember the frames before, so none may see a frame twice, or a broken face."""
    painted = guarded(_refuse_broken, painted)
    registered = guarded(lambda some: list(zip(some, engine.register(some), strict=True)), painted)
    steadied = [
        one if isinstance(one, Covered) else guarded(partial(_steady, appearance), [one])[0]
        for appearance, one in zip(appearances, registered, strict=True)
    ]
    pairs = [
        one if isinstance(one, Covered) else (appearance, *one) for appearance, one in zip(appearances, steadied, strict=True)
    ]
    outcomes = guarded(partial(_verify, engine), pairs)
    return [_settled(appearance, outcome) for appearance, outcome in zip(appearances, outcomes, strict=True)]


def _refuse_broken(painted: Sequence[Painted]) -> list[Painted | Covered]:
    sound = finite([one.face for one in painted])
    return [one if fine else Covered(BROKEN) for one, fine in zip(painted, sound, strict=True)]


def _steady(appearance: Appearance, pairs: Sequence[tuple[Painted, Tensor]]) -> list[tuple[Painted, Tensor]]:
    return [(one, appearance.temporal_filter(appearance.frame, face, one.source)) for one, face in pairs]


def _verify(engine: Engine, steadied: Sequence[tuple[Appearance, Painted, Tensor]]) -> list[Outcome]:
    appearances, painted, faces = zip(*steadied, strict=True)
    against = [
        torch.cat([one.source.embedding, appearance.embedding]) if appearance.seen else appearance.embedding
        for appearance, one in zip(appearances, painted, strict=True)
    ]
    doubts = [appearance.doubt for appearance in appearances]
    attempts = engine.verify(painted, faces, against, FRAME_STRAYING, doubts)
    return [
        judged(attempt, one.source.crops[0], appearance.stand_in.identity, appearance.stand_in.attempts)
        for attempt, one, appearance in zip(attempts, painted, appearances, strict=True)
    ]


def _settled(appearance: Appearance, outcome: Outcome) -> Outcome:
    shown = appearance.temporal_filter.shows(appearance.frame, isinstance(outcome, Replaced))
    return outcome if shown or isinstance(outcome, Covered) else Covered(UNPROVEN, outcome.attempts)


def _laid(job: FrameJob, outcomes: list[Outcome], options: DeidentifyOptions) -> tuple[np.ndarray, list[Outcome]]:
    faces = [face for face, _ in job.faces]
    return compose(job.picture, zip(faces, outcomes, strict=True), options.fallback, options.cover_scale), outcomes
