"""What happened to faces and people, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from diffdeid.engine.faces import StandIn
from diffdeid.structures import Covered, Face, Outcome, Replaced


@dataclass(frozen=True)
class FaceReport:
    """What happened to one face.

    Attributes:
        box: x0, y0, x1, y1 in picture pixels.
        landmarks: `(468, 3)` in picture pixels, `None` where they could not be placed.
        method: "diffusion", or the cover that hides the face: "fill", "solid", "mosaic", "blur".
        level: the level whose bound the new identity keeps, at most the one asked for (which it is where an identity was given);
            `None` for a cover.
        identity_distance: 1 - cosine between source and result by the recogniser, `None` for a cover.
        attempts: identities tried.
        reason: why the face was covered instead of de-identified, else `None`.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    method: str
    level: int | None
    identity_distance: float | None
    attempts: int
    reason: str | None = None

    @classmethod
    def of(cls, face: Face, outcome: Outcome, fallback: str) -> FaceReport:
        """What the outcome says, for a face that is covered by `fallback` if it had to be."""
        where = tuple(face.box.tolist()), face.landmarks
        if isinstance(outcome, Replaced):
            return cls(*where, "diffusion", outcome.identity.level, outcome.identity_distance, outcome.attempts)
        return cls(*where, fallback, None, None, outcome.attempts, outcome.reason)


@dataclass
class PersonReport:
    """What happened to one person of a video. Frames count from 0 and come as ranges, first and last one included.

    Attributes:
        number: in order of appearance, from 1.
        method: "diffusion", or, for somebody who is covered throughout, the cover: "fill", "solid", "mosaic", "blur".
        level: the level whose bound the new identity keeps, at most the one asked for; `None` for a cover.
        identity_distance: the smallest 1 - cosine between source and result of all frames, `None` for a cover.
        attempts: identities tried.
        reason: why the person, or the last face that was, had to be covered, else `None`.
        found: frames in which the face was found and rendered.
        interpolated: frames in which it was lost, and rendered between frames in which it was found.
        covered: frames in which it, or the place where it may be, was covered.
    """

    number: int
    method: str
    level: int | None = None
    identity_distance: float | None = None
    attempts: int = 0
    reason: str | None = None
    found: list[tuple[int, int]] = field(default_factory=list)
    interpolated: list[tuple[int, int]] = field(default_factory=list)
    covered: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def stored(cls, values: dict[str, Any]) -> PersonReport:
        """A report that was kept as JSON, which knows no tuples."""
        ranges = {name: [tuple(one) for one in values[name]] for name in ("found", "interpolated", "covered")}
        return cls(**values | ranges)

    def cast(self, stand_in: StandIn | Covered) -> None:
        """Enter who stands in for the person, or why nobody does, which leaves `method` at the cover."""
        self.attempts = stand_in.attempts
        if isinstance(stand_in, Covered):
            self.reason = stand_in.reason
        elif self.method != "diffusion":
            self.method, self.level, self.reason = "diffusion", stand_in.identity.level, None

    def add(self, frame: int, state: Literal["found", "interpolated", "lost"], outcome: Outcome) -> None:
        """Enter how a face was seen in a frame and what became of it; frames come in their order."""
        ranges = self.covered if isinstance(outcome, Covered) else getattr(self, state)
        if ranges and ranges[-1][1] >= frame - 1:
            ranges[-1] = (ranges[-1][0], frame)
        else:
            ranges.append((frame, frame))
        if isinstance(outcome, Covered):
            self.reason = outcome.reason if self.method == "diffusion" or self.reason is None else self.reason
        else:
            self.identity_distance = min(outcome.identity_distance, self.identity_distance or outcome.identity_distance)
