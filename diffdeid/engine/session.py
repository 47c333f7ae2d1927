"""A video on its way through the engine, frame by frame, wherever its frames come from and go to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch

from diffdeid.engine.faces import Engine
from diffdeid.engine.frames import FrameJob, render
from diffdeid.engine.people import People, Person, Presence
from diffdeid.engine.reports import PersonReport
from diffdeid.options import VideoOptions
from diffdeid.temporal.tracker import FaceTracker


@dataclass
class Session:
    """What was found out about a video so far.

    Attributes:
        engine: at work.
        options: of the video.
        tracker: where faces are.
        people: who they are, and who stands in for them.
        reports: what happened, by the number of the person.
    """

    engine: Engine
    options: VideoOptions
    tracker: FaceTracker
    people: People
    reports: dict[int, PersonReport] = field(default_factory=dict)

    def report(self, person: Person) -> PersonReport:
        """The report of a person, which says who stands in for them by now."""
        report = self.reports.setdefault(person.number, PersonReport(person.number, self.options.fallback))
        report.cast(person.stand_in)
        return report

    @torch.no_grad()
    def analyse(self, picture: np.ndarray) -> None:
        """Follow the faces into the next frame, uint8 `(H, W, 3)`, and keep their best early views."""
        self.people.look(picture, self.tracker.update(picture))

    @torch.no_grad()
    def render(self, groups: Iterable[list[tuple[int, np.ndarray]]]) -> Iterator[list[np.ndarray]]:
        """Groups of frames that were analysed and follow each other, numbers and pictures -> the frames with new faces."""
        planned: deque[list[tuple[int, list[Presence]]]] = deque()

        def jobs() -> Iterator[list[FrameJob]]:
            for group in groups:
                seen = [(frame, self.people.present(frame, self.tracker.at(frame))) for frame, _ in group]
                planned.append(seen)
                yield [FrameJob(picture, [(one.face, one.entry) for one in faces])
                       for (_, picture), (_, faces) in zip(group, seen, strict=True)]  # fmt: skip

        with closing(render(self.engine, jobs(), self.options)) as rendered:
            for frames in rendered:
                for (frame, faces), (_, outcomes) in zip(planned.popleft(), frames, strict=True):
                    for one, outcome in zip(faces, outcomes, strict=True):
                        self.report(one.person).add(frame, one.state, outcome)
                yield [picture for picture, _ in frames]
