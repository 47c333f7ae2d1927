"""The people of a video: whose track is whose, and who stands in for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.engine.faces import Engine, StandIn, guarded
from diffdeid.engine.frames import Appearance
from diffdeid.errors import DiffDeIDError
from diffdeid.options import VideoOptions
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Covered, Face, FaceBatch, FaceJob
from diffdeid.temporal.filter import TemporalFilter
from diffdeid.temporal.spool import Spool
from diffdeid.temporal.track import Sighting, State, Track, likeness

EARLY = 2.0  # seconds of a track, not counting those in which a head looks aside, in which its best view is looked for
ASIDE = 0.01  # least `frontality` of a view that shows more than a head that looks aside
BETTER = 1.1  # by which factor a view must be better to take the place of the best one
REMEMBERED, REMEMBERED_TRACKS = 32, 4  # people of a stream who are known again and kept apart, and tracks of each

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Person:
    """Somebody in the video, and who stands in for them in every frame.

    Attributes:
        number: in order of appearance, from 1.
        tracks: where they are.
        embedding: `(1, 128)` mean of their z_id.
        stand_in: who takes their place, or why nobody can.
    """

    number: int
    tracks: list[Track]
    embedding: Tensor | None = None
    stand_in: StandIn | Covered = Covered("no frame shows the face well enough")


@dataclass(frozen=True)
class Presence:
    """Somebody in a frame.

    Attributes:
        person: who it is.
        state: how the face was seen.
        face: with smoothed landmarks.
        entry: its appearance, or why it is covered.
    """

    person: Person
    state: State
    face: Face
    entry: Appearance | Covered


class People:
    """Who is who in a video.

    Args:
        engine: finds those who stand in.
        options: of the video.
        seed: of all randomness.
        rate: frames a second.
    """

    def __init__(self, engine: Engine, options: VideoOptions, seed: int, rate: float):
        self.engine, self.options, self.seed, self.rate = engine, options, seed, rate
        self.everybody: list[Person] = []
        self._filters: dict[Track, TemporalFilter] = {}  # of the tracks of the last frame
        self._owners: dict[Track, Person] = {}
        self._qualities: dict[Track, float] = {}  # how well the best early view of a track shows somebody
        self._looks: dict[Track, int] = {}  # frames of a track that show more than a head that looks aside
        self._views: dict[Track, int] = {}  # those that have not served yet, by their numbers in the spool
        self._spool = Spool()
        self._ended: set[Track] = set()
        self._count = 0

    def look(self, picture: np.ndarray, tracks: Sequence[Track]) -> None:
        """Keep the best early views of tracks whose faces were found in a frame."""
        for track in tracks:
            owner, best, looks = self._owners.get(track), self._qualities.get(track), self._looks.get(track, 0)
            settled = best is not None and looks >= EARLY * self.rate
            if track.last.landmarks is None or settled or (owner is not None and isinstance(owner.stand_in, StandIn)):
                continue
            quality = view_quality(track.last.landmarks)
            self._looks[track] = looks + (frontality(track.last.landmarks) > ASIDE)
            if best is None or quality > BETTER * best:
                job = FaceJob(picture, track.last, [one.last for one in tracks])
                try:
                    view = self.engine.reconstruct([job], self.options)
                    self._drop_view(track)
                    self._views[track] = self._spool.store(view)
                    self._qualities[track] = quality
                except Exception as error:  # another frame may do, and without one the person is covered
                    logger.warning("A view of a face cannot be used: %s: %s", type(error).__name__, error)

    def _drop_view(self, track: Track) -> None:
        if track in self._views:
            self._spool.release(self._views.pop(track))

    def owner(self, track: Track) -> Person:
        """Whose track it is: somebody known who looks alike and is not in the same frames, else somebody new."""
        if track not in self._owners:
            alike = {
                person: likeness(track.embeddings, [one for other in person.tracks for one in other.embeddings])
                for person in self.everybody
                if not any(track.meets(other) for other in person.tracks)
            }
            person = max(alike, key=alike.get, default=None)
            if person is None or alike[person] < 1 - self.engine.identity_limit:
                self._count += 1
                person = Person(self._count, [])
                self.everybody.append(person)
            person.tracks.append(track)
            self._owners[track] = person
        person = self._owners[track]
        if track in self._views:
            view = self._spool.load(self._views[track])
            self._drop_view(track)
            if isinstance(person.stand_in, Covered):
                self._cast(person, view)
        return person

    def _cast(self, person: Person, view: FaceBatch) -> None:
        """Find who stands in for a person, and does not look like anybody else of the video or their stand-ins."""
        embeddings = [one for track in person.tracks for one in track.embeddings]  # none of somebody who only looks aside
        seen = torch.from_numpy(np.stack(embeddings)).to(view.embedding) if embeddings else view.embedding
        person.embedding = F.normalize(seen.mean(0, keepdim=True), dim=1)
        others = [one for one in self.everybody if isinstance(one.stand_in, StandIn) and one is not person]
        taken = [part for other in others for part in (other.embedding, other.stand_in.identity.embedding)]
        known = torch.cat([person.embedding, seen]), torch.cat(taken) if taken else None

        def find(views: Sequence[FaceBatch]) -> list[StandIn | Covered]:
            return [self.engine.cast(one, *known, self.options, self.seed + person.number) for one in views]

        (person.stand_in,) = guarded(find, [view])

    def present(self, frame: int, tracks: Sequence[Track]) -> list[Presence]:
        """Whose faces are in a frame, and what is to be done with them.

        Raises:
            DiffDeIDError: a face was lost there, and `on_miss` is "error".
        """
        found, filters = [], {}  # filters see covers too: a face does not flash up between them
        for track in tracks:
            person, sighting = self.owner(track), track.smoothed(frame)
            reason = self._why_covered(person, sighting, frame)
            if reason is None or track in self._filters:
                filters[track] = self._filters.get(track) or TemporalFilter(self.rate)
            if reason is None:
                seen, doubt = sighting.state == "found", sighting.face.doubt
                entry = Appearance(person.stand_in, person.embedding, seen, doubt, frame, filters[track])
            else:
                entry = Covered(reason)
            found.append(Presence(person, sighting.state, sighting.face, entry))
        self._filters = filters
        return found

    def refuse_gaps(self, tracks: Sequence[Track]) -> None:
        """Raise `DiffDeIDError` where a face was lost in any frame so far and `on_miss` is "error"."""
        frames = [frame for track in tracks for frame in track.frames("interpolated")]
        if frames and self.options.on_miss == "error":
            raise _lost(min(frames))

    def _why_covered(self, person: Person, sighting: Sighting, frame: int) -> str | None:
        if sighting.state == "interpolated" and self.options.on_miss == "error":
            raise _lost(frame)
        reason = why_covered(sighting.face, self.options.min_face)
        if reason is None and sighting.state == "interpolated" and self.options.on_miss == "cover":
            return "lost for a moment"
        return person.stand_in.reason if reason is None and isinstance(person.stand_in, Covered) else reason

    def begin_anew(self) -> None:
        """Forget what the last frame looked like."""
        self._filters.clear()

    def forget(self, tracks: Sequence[Track]) -> None:
        """Drop what is known of tracks that have ended long ago: all but the last people, and of each all but the last tracks."""
        self._ended.update(tracks)
        for track in tracks:
            self._qualities.pop(track, None)
            self._looks.pop(track, None)
            self._drop_view(track)
        for person in self.everybody:
            person.tracks[:] = [track for track in person.tracks if track not in self._ended] + [
                track for track in person.tracks if track in self._ended
            ][-REMEMBERED_TRACKS:]
        gone = [person for person in self.everybody if self._ended.issuperset(person.tracks)]
        gone.sort(key=lambda person: max(track.last_frame for track in person.tracks))
        for person in gone[: max(len(self.everybody) - REMEMBERED, 0)]:
            self.everybody.remove(person)
        kept = {track for person in self.everybody for track in person.tracks}
        self._owners = {track: person for track, person in self._owners.items() if track in kept}
        self._ended &= kept


def _lost(frame: int) -> DiffDeIDError:
    return DiffDeIDError(f"A face was lost in frame {frame} (`on_miss='error'`). Let it be interpolated or covered.")


def view_quality(landmarks: np.ndarray) -> float:
    """How well a view of `(468, 3)` landmarks in the picture shows who somebody is: large, and seen from the front."""
    width, height = (np.hypot(*(landmarks[one] - landmarks[other])[:2]) for one, other in ((454, 234), (152, 10)))
    return float(min(max(width, height), 200) * frontality(landmarks))


def frontality(landmarks: np.ndarray) -> float:
    """How frontally a face with `(468, 3)` landmarks is seen, 1 at best; .06 where the tip of the nose lies before a cheek."""
    nose, *cheeks = landmarks[[1, 234, 454], :2]
    across = cheeks[1] - cheeks[0]
    place = (nose - cheeks[0]) @ across / max(across @ across, 1e-6)  # of the nose on the way from cheek to cheek
    sides = sorted([place, 1 - place])
    return float(((1 + sides[0] / sides[1]) / 2) ** 4)
