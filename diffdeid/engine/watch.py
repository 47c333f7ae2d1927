"""Who stays as they are in a video: decided for whole tracks, from a look at every face of every frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffdeid.engine.consent import (
    DOUBTED,
    FAILED,
    HIDDEN,
    MOST_HIDDEN,
    SHARED,
    SURELY_THEM,
    Consent,
    Kept,
    Verdict,
    is_shared,
    look,
    why_unclear,
)
from diffdeid.engine.faces import Engine
from diffdeid.errors import ConfigurationError
from diffdeid.structures import Face
from diffdeid.temporal.track import Track

TRUSTED = 1.0  # seconds before and after a frame that shows clearly who it is, in which the face of a track is trusted without it
IN_PART = "it looks like {} in some frames, but not in all"

logger = logging.getLogger(__name__)


@dataclass
class Trail:
    """What was seen of a track.

    Attributes:
        total: the sum of the embeddings of its clear views, and in the end their mean.
        clear: the frames of these views.
        near: the people whom single clear views surely show.
        denied: the people whom views speak against: those whom it cannot be ("keep"), or whom it may be ("only").
        unclear: why the latest view that is not clear is not.
        closed: why the track does not stay, if no other view can change that.
    """

    total: np.ndarray | None = None
    clear: set[int] = field(default_factory=set)
    near: set[str] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    unclear: str | None = None
    closed: str | None = None


class Watch:
    """Looks at the faces of a video.

    A track stays if the mean of its clear views is surely somebody who stays, and no single view contradicts that: a track may
    have passed from one face to another. `look` takes the frames in their order; `verdict` and `trusts` answer after the last.

    Args:
        engine: looks.
        consent: who stays.
        rate: frames a second.
        min_face: see `DeidentifyOptions`.
    """

    def __init__(self, engine: Engine, consent: Consent, rate: float, min_face: float):
        self.engine, self.consent, self.min_face = engine, consent, min_face
        self.reach = max(1, round(TRUSTED * rate))
        self._trails: dict[Track, Trail] = {}
        self._verdicts: dict[Track, Verdict] | None = None

    def look(self, frame: int, picture: np.ndarray, tracks: Sequence[Track], seen: Sequence[Face]) -> None:
        """Look at the faces of tracks that were found in a frame; `seen` is what looked like a face to the detector."""
        faces = [track.last for track in tracks]
        for track in tracks:
            trail = self._trails.setdefault(track, Trail())
            try:
                unclear = why_unclear(track.last, self.min_face)
                trail.unclear = unclear or trail.unclear
                if trail.closed is None and unclear is None:
                    self._look(frame, picture, track.last, trail)
                    if is_shared(track.last, seen, faces):
                        trail.closed = SHARED
            except ConfigurationError:
                raise
            except Exception as error:  # whatever it is: whoever is in doubt is de-identified
                logger.warning("A face is de-identified: %s: %s", type(error).__name__, error)
                trail.closed = FAILED

    def _look(self, frame: int, picture: np.ndarray, face: Face, trail: Trail) -> None:
        (embedding,), (hidden,) = look(self.engine, [picture], [face])
        keeps, limit = self.consent.mode == "keep", self.engine.identity_limit
        if not hidden <= MOST_HIDDEN:
            trail.unclear = HIDDEN
            if keeps:  # a face behind a hand looks like somebody else
                return
        for name, distance in self.consent.distances(embedding).items():
            if not (distance <= limit if keeps else distance >= limit):
                trail.denied.add(name)
            elif keeps and distance <= SURELY_THEM:
                trail.near.add(name)
        if trail.denied == set(self.consent.people) if keeps else trail.denied:
            trail.closed = DOUBTED if hidden <= MOST_HIDDEN else HIDDEN  # every hidden face gets the same reason
        if hidden <= MOST_HIDDEN:
            trail.clear.add(frame)
            trail.total = embedding if trail.total is None else trail.total + embedding

    def verdict(self, track: Track) -> Verdict:
        """Whether a track stays, or why it does not."""
        if self._verdicts is None:
            self._verdicts = self._settle()
        return self._verdicts.get(track, DOUBTED)

    def _settle(self) -> dict[Track, Verdict]:
        means = {track: trail.total / np.linalg.norm(trail.total) for track, trail in self._trails.items() if trail.clear}
        verdicts: dict[Track, Verdict] = {}
        for track, trail in self._trails.items():
            verdict = self.consent.judge(means[track]) if track in means else trail.closed or trail.unclear or DOUBTED
            if isinstance(verdict, Kept) and verdict.person in trail.denied:
                verdict = IN_PART.format(verdict.person)
            elif verdict == DOUBTED and trail.near:
                verdict = IN_PART.format(min(trail.near))
            elif isinstance(verdict, Kept) and trail.closed is not None:
                verdict = trail.closed
            elif isinstance(verdict, Kept):
                together = {other: mean for other, mean in means.items() if other is track or track.meets(other)}
                verdict = self.consent.without_rivals({track: verdict}, together)[track]
            verdicts[track] = verdict
        return verdicts

    def trusts(self, track: Track, frame: int) -> bool:
        """Whether the face of a track that stays is known well enough in a frame to stay there.

        It is if the track has no gap between the frame and a clear view at most `TRUSTED` seconds before or after. In a gap the
        face is not seen; there, the faces at the ends of the gap must be known like that.
        """
        if track.found_in(frame):
            return self._is_near_clear_view(track, frame)
        ways = (range(frame, frame + step * self.reach, step) for step in (-1, 1))
        ends = [next((other for other in way if track.found_in(other)), None) for way in ways]
        return all(self._is_near_clear_view(track, end) for end in ends if end is not None) and ends != [None, None]

    def _is_near_clear_view(self, track: Track, frame: int) -> bool:
        clear = self._trails[track].clear
        for step in (-1, 1):
            for other in range(frame, frame + step * (self.reach + 1), step):
                if not track.found_in(other):
                    break
                if other in clear:
                    return True
        return False
