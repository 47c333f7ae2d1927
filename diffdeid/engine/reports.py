"""What happened to faces and people, in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np

from diffdeid.engine.consent import Kept
from diffdeid.engine.faces import StandIn
from diffdeid.structures import Covered, Face, Outcome, Replaced


@dataclass(frozen=True)
class FaceReport:
    """What happened to one face.

    Attributes:
        box: x0, y0, x1, y1 in picture pixels.
        landmarks: `(468, 3)` in picture pixels, `None` where they could not be placed.
        method: "diffusion", or the cover that hides the face: "fill", "solid", "mosaic", "blur"; "kept" where it stays on
            purpose.
        level: the level whose least distance the new identity keeps, at most the one that was asked for (and exactly that one if
            the identity was given); `None` for a cover.
        identity_distance: 1 - cosine between source and result by the recogniser, `None` for a cover.
        attempts: how many identities were tried.
        reason: why the face was covered instead of de-identified, else `None`.
        person: the name in a `Consent` of a person whose face is kept; `None` for all others, and with a `Consent` that keeps
            everybody but some people.
        margin: by how much a kept face is on the right side of the limit, 1 - cosine, else `None`.
        not_kept: why the face is not kept if there is a `Consent`, else `None`. It names a person only if the face is near
            (`consent.NEAR`) to somebody who agreed to be seen. It says the same of all other faces.
        straying: how far features of the new face are from where they were meant to be, as a share of what is allowed. If it is
            near 1, the face may look wrong. `None` if there is no new face.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    method: str
    level: int | None
    identity_distance: float | None
    attempts: int
    reason: str | None = None
    person: str | None = None
    margin: float | None = None
    not_kept: str | None = None
    straying: float | None = None

    @classmethod
    def of(cls, face: Face, outcome: Outcome | Kept, fallback: str, not_kept: str | None = None) -> FaceReport:
        """The report of an outcome; `fallback` is the cover of faces that could not be de-identified."""
        where = tuple(face.box.tolist()), face.landmarks
        if isinstance(outcome, Kept):
            return cls(*where, "kept", None, None, 0, None, outcome.person, outcome.margin)
        if isinstance(outcome, Replaced):
            new = outcome.identity.level, outcome.identity_distance, outcome.attempts
            return cls(*where, "diffusion", *new, not_kept=not_kept, straying=outcome.straying)
        return cls(*where, fallback, None, None, outcome.attempts, outcome.reason, not_kept=not_kept)


def ranges(frames: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending frame numbers as ranges, both ends included."""
    groups = groupby(enumerate(frames), lambda pair: pair[1] - pair[0])
    spans = [[frame for _, frame in group] for _, group in groups]
    return [(span[0], span[-1]) for span in spans]


@dataclass
class PersonReport:
    """What happened to one person of a video. Frames count from 0 and come as ranges, first and last one included.

    Attributes:
        number: in order of appearance, from 1.
        method: "diffusion"; for somebody who is covered throughout, the cover: "fill", "solid", "mosaic", "blur"; "kept" for
            somebody who stays on purpose.
        level: the level whose least distance the new identity keeps, at most the one asked for; `None` for a cover.
        identity_distance: the smallest 1 - cosine between source and result of all frames, `None` for a cover.
        attempts: how many identities were tried.
        reason: why the person, or the face that was covered last, had to be covered, else `None`.
        found: frames in which the face was found and rendered.
        interpolated: frames in which it was lost, and rendered between frames in which it was found.
        covered: frames in which it, or the place where it may be, was covered.
        kept: frames in which it is left as it is.
        person: the name of a kept person in a `Consent`; `None` for all others, and with a `Consent` that keeps everybody but
            some people.
        margin: by how much a kept person is on the right side of the limit, 1 - cosine, else `None`.
        not_kept: why the person is not kept, see `FaceReport`.
        nearest: the frame of the `identity_distance`, else `None`.
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
    kept: list[tuple[int, int]] = field(default_factory=list)
    person: str | None = None
    margin: float | None = None
    not_kept: str | None = None
    nearest: int | None = None

    @classmethod
    def stored(cls, values: dict[str, Any]) -> PersonReport:
        """Read a report that was stored as JSON, which has lists instead of tuples."""
        ranges = {name: [tuple(one) for one in values[name]] for name in ("found", "interpolated", "covered", "kept")}
        return cls(**values | ranges)

    def joined(self, later: PersonReport) -> PersonReport:
        """This report and a `later` one of the same person as one."""
        spans = {}
        for name in ("found", "interpolated", "covered", "kept"):
            frames = [frame for first, last in (*getattr(self, name), *getattr(later, name)) for frame in range(first, last + 1)]
            spans[name] = ranges(frames)
        seen = [(one.identity_distance, one.nearest) for one in (self, later) if one.identity_distance is not None]
        distance, nearest = min(seen, key=lambda pair: pair[0], default=(None, None))
        return replace(later, identity_distance=distance, nearest=nearest, reason=later.reason or self.reason, **spans)

    def cast(self, stand_in: StandIn | Covered) -> None:
        """Enter who stands in for the person, or why nobody does; `method` then stays the cover."""
        self.attempts = stand_in.attempts
        if isinstance(stand_in, Covered):
            self.reason = stand_in.reason
        elif self.method != "diffusion":
            self.method, self.level, self.reason = "diffusion", stand_in.identity.level, None

    def keep(self, kept: Kept) -> None:
        """Enter that the person is left as they are."""
        self.method, self.person, self.margin = "kept", kept.person, kept.margin

    def add(self, frame: int, state: Literal["found", "interpolated", "lost"], outcome: Outcome | Kept) -> None:
        """Enter how a face was seen in a frame and what became of it; call it for frames in ascending order."""
        what = {Covered: "covered", Kept: "kept"}.get(type(outcome), state)
        ranges = getattr(self, what)
        if ranges and ranges[-1][1] >= frame - 1:
            ranges[-1] = (ranges[-1][0], frame)
        else:
            ranges.append((frame, frame))
        if isinstance(outcome, Covered):
            self.reason = outcome.reason if self.method == "diffusion" or self.reason is None else self.reason
        elif isinstance(outcome, Replaced) and (self.nearest is None or outcome.identity_distance < self.identity_distance):
            self.identity_distance, self.nearest = outcome.identity_distance, frame
