"""One face through the frames of a video: where it was seen, where it is filled in, and its path smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffdeid.structures import Face
from diffdeid.temporal.spool import Spool

SMOOTHING = 0.11  # seconds on either side that are smoothed over
EMBEDDED = 0.2  # seconds between embedded faces of a track; more in long tracks
ASTRAY = 0.01  # face sizes (at least a pixel); a smoothed face that is farther from the seen one is not trusted
MAX_EMBEDDINGS = 32  # of a track

State = Literal["found", "interpolated", "lost"]


@dataclass(frozen=True)
class Sighting:
    """A face of a track in one frame.

    Attributes:
        face: with landmarks and irises, or with neither if they are not known.
        state: "found" in the picture; "interpolated" between frames in which it was found; "lost" at the ends of a track, where
            the face may be near its box.
    """

    face: Face
    state: State


class Track:
    """A face of one person that was followed without interruption.

    Args:
        number: in order of appearance.
        spool: keeps its faces.
        rate: frames a second.
        score: detector score, 0…1, when the track began.

    Attributes:
        embeddings: unit vectors `(d,)` of the source face, spread over the track.
        last: the face as it was found last, in the frame `last_frame`.
        assured_frame: the last frame in which the detector or the attention mesh saw the face, and not only the head mesh.
    """

    def __init__(self, number: int, spool: Spool, rate: float = 25, score: float = 1.0):
        self.number, self.score = number, score
        self.embeddings: list[np.ndarray] = []
        self._spool = spool
        self._sightings: dict[int, tuple[int, State]] = {}
        self._window = smoothing_window(rate)
        self._stride, self._seen = max(1, round(EMBEDDED * rate)), 0
        self.last: Face | None = None
        self.last_frame = self.assured_frame = -1

    def __len__(self) -> int:
        return len(self._sightings)

    def __contains__(self, frame: int) -> bool:
        return frame in self._sightings

    def __getitem__(self, frame: int) -> Sighting:
        number, state = self._sightings[frame]
        return Sighting(self._spool.load(number), state)

    def meets(self, other: Track) -> bool:
        """Whether both were found in the same frame, so that they are two people."""
        return any(self.found_in(frame) and other.found_in(frame) for frame in self._sightings.keys() & other._sightings.keys())

    def found_in(self, frame: int) -> bool:
        """Whether the face was seen in a frame."""
        return frame in self and self._sightings[frame][1] == "found"

    def frames(self, state: State | None = None) -> list[int]:
        """The frames in which the face is, or in which it has this state, in ascending order."""
        return sorted(frame for frame, (_, its_state) in self._sightings.items() if state in (None, its_state))

    def put(self, frame: int, face: Face, state: State) -> None:
        """Record where the face is in a frame, in place of what was recorded before."""
        if frame in self._sightings:
            self._spool.release(self._sightings[frame][0])
        kept = Face(face.box, landmarks=face.landmarks, iris=face.iris, doubt=face.doubt)
        self._sightings[frame] = self._spool.store(kept), state
        if state == "found" and frame > self.last_frame:
            self.last, self.last_frame = face, frame

    def forget(self, before: int) -> None:
        """Drop all frames before one."""
        self.drop([frame for frame in self._sightings if frame < before])

    def drop(self, frames: Iterable[int]) -> None:
        """Drop these frames, all of which must have a sighting."""
        for frame in frames:
            self._spool.release(self._sightings.pop(frame)[0])

    def wants_embedding(self) -> bool:
        """Whether the face just found should be embedded."""
        self._seen += 1
        return (self._seen - 1) % self._stride == 0

    def add_embedding(self, embedding: np.ndarray) -> None:
        self.embeddings.append(embedding)
        if len(self.embeddings) > MAX_EMBEDDINGS:
            self.embeddings, self._stride = self.embeddings[::2], 2 * self._stride

    def likeness(self, embedding: np.ndarray) -> float:
        """Cosine of an embedding to those of the track: the mean of the three largest, -1 if there are none."""
        return likeness(self.embeddings, [embedding])

    def interpolated(self, frame: int, before: int, after: int) -> Face:
        """The face between two frames in which it was found, interpolated linearly."""
        first, second, share = self[before].face, self[after].face, (frame - before) / (after - before)
        box = (1 - share) * first.box + share * second.box
        if first.landmarks is None or second.landmarks is None:
            return Face(box)
        landmarks = (1 - share) * first.landmarks + share * second.landmarks
        iris = (1 - share) * first.iris + share * second.iris
        return Face(box, landmarks=landmarks, iris=iris, doubt=max(first.doubt, second.doubt))

    def smoothed(self, frame: int) -> Sighting:
        """The face with landmarks that do not tremble and do not lag: a parabola through those of the frames around.

        Method: local regression (Savitzky and Golay 1964) with Gaussian weights. As in the paper (§3.4), a window of frames
        describes the one in the middle; smooth landmarks give smooth coefficients. Where a face moves in jerks (repeated frames,
        shaken cameras), the parabola is far from it, and the face stays where it is seen.
        """
        sighting = self[frame]
        if sighting.face.landmarks is None:
            return sighting
        faces = {0: sighting.face}
        for direction in (-1, 1):
            for distance in range(1, self._window + 1):
                neighbour = frame + direction * distance
                face = self[neighbour].face if neighbour in self else None
                if face is None or face.landmarks is None:
                    break
                faces[direction * distance] = face
        weights = _regression(np.array(list(faces)), self._window)
        seen = {name: getattr(sighting.face, name) for name in ("landmarks", "iris")}
        smoothed = {
            name: np.tensordot(weights, np.stack([getattr(face, name) for face in faces.values()]), axes=1) for name in seen
        }
        size = np.ptp(seen["landmarks"][:, :2], axis=0).mean()
        astray = np.hypot(*(smoothed["landmarks"] - seen["landmarks"])[:, :2].mean(0))
        trust = np.exp(-np.square(astray / max(ASTRAY * size, 1)))
        parts = {name: np.float32(seen[name] + trust * (smoothed[name] - seen[name])) for name in seen}
        doubt = max(sighting.face.doubt, float(weights @ [face.doubt for face in faces.values()]))  # or masks jump
        return Sighting(Face(sighting.face.box, doubt=doubt, **parts), sighting.state)


def smoothing_window(rate: float) -> int:
    """How many frames on either side are smoothed over."""
    return max(1, round(SMOOTHING * rate))


def _regression(distances: np.ndarray, window: int) -> np.ndarray:
    """Weights `(n,)` of values at distances in frames, which give the value at 0 of a parabola fitted to them."""
    weights = np.exp(-0.5 * (distances / (window / 2 + 0.25)) ** 2)
    degree = 2 if len(distances) > 3 else 0
    powers = distances[:, None] ** np.arange(degree + 1)
    return np.linalg.solve((powers.T * weights) @ powers, powers.T * weights)[0]


def likeness(embeddings: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """Cosine of two people: the mean of the three most similar pairs of embeddings; -1 if there are none."""
    if not (len(embeddings) and len(others)):
        return -1.0
    return float(np.sort((np.array(embeddings) @ np.array(others).T).ravel())[-3:].mean())
