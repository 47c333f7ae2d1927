"""The people of a video: which tracks are whose, and who stands in for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.engine.consent import Kept
from diffdeid.engine.faces import Engine, StandIn, guarded
from diffdeid.engine.frames import Appearance
from diffdeid.engine.pictures import seed_of
from diffdeid.engine.watch import Watch
from diffdeid.errors import DiffDeIDError
from diffdeid.geometry.landmarks import frontality
from diffdeid.geometry.pixels import on_host
from diffdeid.options import VideoOptions
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Covered, Face, FaceBatch, FaceJob
from diffdeid.temporal.filter import TemporalFilter
from diffdeid.temporal.spool import Spool
from diffdeid.temporal.track import Sighting, State, Track, likeness

EARLY = 2.0  # seconds of a track in which its best view is looked for; those in which a head looks aside do not count
ASIDE = 0.01  # least `frontality` of a view that shows more than a head that looks aside
BETTER = 1.1  # by which factor a view must be better to take the place of the best one
DOUBTFUL = "not seen clearly enough, or for too long, to stay"
REMEMBERED, REMEMBERED_TRACKS = 32, 4  # people of a stream who are known again and kept apart, and tracks of each

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Person:
    """A person of the video, and who stands in for them in every frame.

    Attributes:
        number: in order of appearance, from 1.
        tracks: where they are.
        embedding: `(1, 128)` mean of their z_id.
        stand_in: who takes their place, or why nobody can.
        candidate: which of the new people that can be drawn for them, from 0.
        kept: why they are left as they are, `None` when they are not.
        not_kept: why they are not, as their longest track tells, if anybody was to be left.
    """

    number: int
    tracks: list[Track]
    embedding: Tensor | None = None
    stand_in: StandIn | Covered = Covered("no frame shows the face well enough")
    candidate: int = 0
    kept: Kept | None = None
    not_kept: str | None = None


@dataclass(frozen=True)
class Presence:
    """A person in a frame.

    Attributes:
        person: who it is.
        state: how the face was seen.
        face: with smoothed landmarks.
        entry: how the face is replaced, why it is covered, or why it is left as it is.
    """

    person: Person
    state: State
    face: Face
    entry: Appearance | Covered | Kept

    def summary(self) -> bytes:
        """All that decides how the face is shown, apart from the picture and the seed of the video."""
        who, face, role = self.person, self.face, self.entry
        reason = role.reason if isinstance(role, Covered) else None
        said = [repr((who.number, who.candidate, self.state, face.doubt, reason, isinstance(role, Kept))).encode()]
        said += [part.tobytes() for part in (face.box, face.landmarks, face.iris) if part is not None]
        if isinstance(role, Appearance):
            cast = role.stand_in
            seen = [role.embedding, cast.identity.embedding, cast.identity.shape, cast.coefficients.pack()]
            said += [on_host(part.float()).tobytes() for part in seen]
        return b"".join(said)


class People:
    """The people of a video.

    Args:
        engine: finds stand-ins.
        options: of the video.
        seed: of all randomness.
        rate: frames a second.
        watch: tells who is left as they are; nobody is without one.
    """

    def __init__(self, engine: Engine, options: VideoOptions, seed: int, rate: float, watch: Watch | None = None):
        self.engine, self.options, self.seed, self.rate, self.watch = engine, options, seed, rate, watch
        self.everybody: list[Person] = []
        self._filters: dict[Track, TemporalFilter] = {}  # of the tracks of the last frame
        self._owners: dict[Track, Person] = {}
        self._qualities: dict[Track, float] = {}  # how well the best early view of a track shows somebody
        self._looks: dict[Track, int] = {}  # frames of a track that show more than a head that looks aside
        self._views: dict[Track, int] = {}  # views that no stand-in was found by yet: their numbers in the spool
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
                except Exception as error:  # another frame may work; without any, the person is covered
                    logger.warning("A view of a face cannot be used: %s: %s", type(error).__name__, error)

    def _drop_view(self, track: Track) -> None:
        if track in self._views:
            self._spool.release(self._views.pop(track))

    def assign(self, track: Track, number: int) -> Person:
        """Fix whose track it is, instead of letting `belongs` decide; gives that person."""
        person = next((one for one in self.everybody if one.number == number), None)
        if person is None:
            person = Person(number, [])
            self.everybody.append(person)
            self._count = max(self._count, number)
        person.tracks.append(track)
        self._owners[track] = person
        return person

    def belongs(self, track: Track) -> Person:
        """Whose track it is: a known person who looks alike and is not in the same frames, else somebody new.

        A person who is left as they are never shares tracks with one who is not.
        """
        if track not in self._owners:
            verdict = None if self.watch is None else self.watch.verdict(track)
            kept = verdict if isinstance(verdict, Kept) else None
            person = self._known(track, kept)
            if person is None:
                self._count += 1
                person = Person(self._count, [], kept=kept)
                self.everybody.append(person)
            elif kept is not None:
                person.kept = min(kept, person.kept, key=lambda one: one.margin)
            if isinstance(verdict, str) and len(track) > max(map(len, person.tracks), default=0):
                person.not_kept = verdict
            person.tracks.append(track)
            self._owners[track] = person
        return self._owners[track]

    def owner(self, track: Track) -> Person:
        """Whose track it is, with a stand-in as soon as a track shows the person well enough."""
        person = self.belongs(track)
        if track in self._views:
            view = self._spool.load(self._views[track])
            self._drop_view(track)
            if isinstance(person.stand_in, Covered) and (person.kept is None or self.watch is None):
                self._cast(person, view)  # with a list also those who are kept, so that keeping one changes nobody else
        return person

    def _known(self, track: Track, kept: Kept | None) -> Person | None:
        """Whose track it is among the known people, if any: with a name by consent, the person of that name."""
        like = [person for person in self.everybody if (person.kept is None) == (kept is None)]
        if kept is not None and kept.person is not None:
            return next((person for person in like if person.kept.person == kept.person), None)
        alike = {
            person: likeness(track.embeddings, [one for other in person.tracks for one in other.embeddings])
            for person in like
            if not any(track.meets(other) for other in person.tracks)
        }
        person = max(alike, key=alike.get, default=None)
        return None if person is None or alike[person] < 1 - self.engine.identity_limit else person

    def _cast(self, person: Person, view: FaceBatch) -> None:
        """Find a stand-in who does not look like anybody else of the video, nor like their stand-ins."""
        embeddings = [one for track in person.tracks for one in track.embeddings]  # there are none if the person only looks aside
        seen = torch.from_numpy(np.stack(embeddings)).to(view.embedding) if embeddings else view.embedding
        person.embedding = F.normalize(seen.mean(0, keepdim=True), dim=1)
        others = [one for one in self.everybody if isinstance(one.stand_in, StandIn) and one is not person]
        taken = [part for other in others for part in (other.embedding, other.stand_in.identity.embedding)]
        staying = [one for other in self.everybody if other.kept for track in other.tracks for one in track.embeddings]
        taken += [torch.from_numpy(np.stack(staying)).to(view.embedding)] if staying and self.watch is not None else []
        known = torch.cat([person.embedding, seen]), torch.cat(taken) if taken else None
        seed = seed_of(self.seed, person.number, person.candidate)

        def find(views: Sequence[FaceBatch]) -> list[StandIn | Covered]:
            return [self.engine.cast(one, *known, self.options, seed) for one in views]

        (person.stand_in,) = guarded(find, [view])

    def present(self, frame: int, tracks: Sequence[Track]) -> list[Presence]:
        """Whose faces are in a frame, and what is to be done with them.

        Raises:
            DiffDeIDError: a face was lost there, and `on_miss` is "error".
        """
        found, filters = [], {}  # filters see covered frames too, so that no face flashes up between covers
        for track in tracks:
            person, sighting = self.owner(track), track.smoothed(frame)
            if person.kept is not None:
                entry = person.kept if self.stays(track, frame) else Covered(DOUBTFUL)
                found.append(Presence(person, sighting.state, sighting.face, entry))
                continue
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

    def stays(self, track: Track, frame: int) -> bool:
        """Whether the face of a track is left as it is in a frame; without a watch, the list of faces has said so."""
        return self.owner(track).kept is not None and (self.watch is None or self.watch.trusts(track, frame))

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
        """Forget the last frame: the next one does not follow it."""
        self._filters.clear()

    def forget(self, tracks: Sequence[Track]) -> None:
        """Drop what is known of tracks that ended long ago; only the latest people, and the latest tracks of each, stay known."""
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
    return DiffDeIDError(f"A face was lost in frame {frame}. To go on there, set `on_miss` to 'interpolate' or 'cover'.")


def view_quality(landmarks: np.ndarray) -> float:
    """How well a face with `(468, 3)` landmarks shows who it is: the larger and the more frontal, the better."""
    width, height = (np.hypot(*(landmarks[one] - landmarks[other])[:2]) for one, other in ((454, 234), (152, 10)))
    return float(min(max(width, height), 200) * frontality(landmarks))
