"""One video in the engine, frame by frame. It does not matter where frames come from and go to: files, streams or cameras."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch

from diffdeid.engine.consent import Kept
from diffdeid.engine.corrections import Corrections
from diffdeid.engine.faces import Engine
from diffdeid.engine.frames import FrameJob, render
from diffdeid.engine.people import People, Person, Presence
from diffdeid.engine.reports import PersonReport
from diffdeid.engine.written import VEILS, Known
from diffdeid.geometry.pixels import on_host
from diffdeid.options import VideoOptions
from diffdeid.structures import Face
from diffdeid.temporal.track import Track
from diffdeid.temporal.tracker import FaceTracker


@dataclass
class Session:
    """What is known about a video so far.

    Attributes:
        engine: runs the stages.
        options: of the video.
        tracker: where faces are.
        people: who they are, and who stands in for them.
        reports: what happened, by the number of the person.
        corrections: of somebody who looked the video over, if there are any.
    """

    engine: Engine
    options: VideoOptions
    tracker: FaceTracker
    people: People
    reports: dict[int, PersonReport] = field(default_factory=dict)
    corrections: Corrections | None = None

    def report(self, person: Person) -> PersonReport:
        """The report of a person, updated with their stand-in or with why they are kept."""
        report = self.reports.setdefault(person.number, PersonReport(person.number, self.options.fallback))
        report.cast(person.stand_in) if person.kept is None else report.keep(person.kept)
        report.not_kept = person.not_kept
        return report

    @torch.no_grad()
    def analyse(self, picture: np.ndarray) -> None:
        """Follow the faces into the next frame, uint8 `(H, W, 3)`, and keep their best early views."""
        found = self.tracker.update(picture)
        if self.corrections is not None:
            found = found + self.corrections.draw(picture)
        self.people.look(picture, found)
        if self.people.watch is not None:
            self.people.watch.look(self.tracker.num_frames - 1, picture, found, self.tracker.seen)

    def cast(self) -> list[Person]:
        """Everybody in a video all of whose frames were analysed, each with somebody who stands in for them.

        Raises:
            DiffDeIDError: a face was lost for a moment, and `on_miss` is "error".
            ValueError: the corrections belong to another analysis.
        """
        if self.corrections is not None:
            self.corrections.apply()
        self.people.refuse_gaps(self.tracker.tracks)
        people = dict.fromkeys(self.people.owner(track) for track in self.tracker.tracks)
        return [person for person in people if any(map(len, person.tracks))]  # the corrections removed all tracks of the others

    def begin_anew(self) -> None:
        """Forget the last frame and all reports: a new pass begins."""
        self.people.begin_anew()
        self.reports.clear()

    def digest(self, frames: Sequence[int]) -> str:
        """A hash of all that decides what the result shows in consecutive frames, if nothing is remembered of those before."""
        said = hashlib.blake2b(repr(frames).encode(), digest_size=16)
        for frame in frames:
            for one in self.people.present(frame, self.tracker.at(frame)):
                said.update(one.summary())
        self.people.begin_anew()
        return said.hexdigest()

    def known(self, frame: int) -> list[Known]:
        """The faces of an analysed frame, for the check of the written file."""
        struck_out = [] if self.corrections is None else self.corrections.deleted.get(frame, [])
        known = [self._known(track, frame) for track in self.tracker.at(frame)]
        return known + [Known(Face(box), stays=True) for box in struck_out]

    def _known(self, track: Track, frame: int) -> Known:
        person, face = self.people.owner(track), track[frame].face
        if self.people.stays(track, frame):
            return Known(face, stays=True)
        covered = self.reports[person.number].covered if person.number in self.reports else []
        veiled = self.options.fallback in VEILS and any(first <= frame <= last for first, last in covered)
        return Known(face, veiled=veiled, embedding=None if person.embedding is None else on_host(person.embedding[0]))

    @torch.no_grad()
    def render(self, groups: Iterable[list[tuple[int, np.ndarray]]]) -> Iterator[list[np.ndarray]]:
        """Groups of consecutive analysed frames, as numbers and pictures -> the frames with new faces."""
        planned: deque[list[tuple[int, list[Presence]]]] = deque()

        def jobs() -> Iterator[list[FrameJob]]:
            for group in groups:
                seen = [(frame, self.people.present(frame, self.tracker.at(frame))) for frame, _ in group]
                planned.append(seen)
                yield [FrameJob(picture, [(one.face, one.entry) for one in faces if not isinstance(one.entry, Kept)])
                       for (_, picture), (_, faces) in zip(group, seen, strict=True)]  # fmt: skip

        with closing(render(self.engine, jobs(), self.options)) as rendered:
            for frames in rendered:
                for (frame, faces), (_, outcomes) in zip(planned.popleft(), frames, strict=True):
                    changed = iter(outcomes)
                    for one in faces:
                        outcome = one.entry if isinstance(one.entry, Kept) else next(changed)
                        self.report(one.person).add(frame, one.state, outcome)
                yield [picture for picture, _ in frames]
