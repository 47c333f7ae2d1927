"""Faces of a video -> tracks: which face is whose from frame to frame, with no frame missed.

Every frame is searched at a low threshold, every few frames thoroughly. Between detections landmarks follow each face from where
it was: those of the attention mesh, and of heads that turn away more and more those of the head mesh, which sees things that are
no heads as well, so that the detector must agree from time to time. A new face is followed backwards as well, for detectors see
faces later than people do. A face that is lost and found again within a second was there in between; where it is not found
again, its place is held for a moment.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np

from diffdeid.geometry.boxes import intersection_over_union, part_inside
from diffdeid.geometry.faces import is_known, merge, whole_box
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.structures import Face
from diffdeid.temporal.spool import Spool
from diffdeid.temporal.track import State, Track, smoothing_window

WEAK_SCORE = 0.2  # of a detection that counts where a face is expected
SAME_FACE = 0.5  # intersection over union of two faces followed onto one
ITS_BOX = 0.3  # intersection over union of a detection and the known face whose box it gives
NEAR, NEARER = 0.6, 1.25  # face sizes that a lost face may have moved, and by how many more in each second that it is lost
ALIKE, VERY_ALIKE = 0.3, 0.55  # cosines: not somebody else; one person (1 - `identity_limit` of the released pipeline)
GAP, FLASH, HOLD, LOOKBACK = 1.0, 0.3, 0.2, 0.4  # seconds: bridged, bridged over cuts, held at the ends, followed backwards
THOROUGH = 0.4  # seconds from one thorough search to the next; as long the head mesh is believed without the detector
# degrees between face and camera over which the head mesh takes the place of the attention mesh; the second is `EXACT_TURN` of
# `stages/verify.py`, where results are judged: both belong together, but what follows faces knows nothing of stages
TURNED = 40.0, 55.0
SLIGHT_DOUBT = 0.02  # heights of the face; with more, or past `TURNED`, an embedding says little about who somebody is
MOST_DOUBT = 0.05  # heights of the face, of a head that is expected; with more the head mesh knows nothing
INSIDE = 0.5  # of the box of a made-up face that lies in the box of the head that it was made up of
APART = 0.12  # face sizes from mesh to mesh; of 83 faces of all kinds one of 33 pixels exceeds it, and made-up faces do by far
RATES = (1.0, 240.0)  # frames a second that are believed; files claim anything
RECENT_BYTES = 256 * 2**20  # of frames that are kept to look back
CUT, CUT_RATIO = 0.1, 3.0  # mean change of a thumbnail, 0…1, at a cut, and in parts of the usual change


class FaceTracker:
    """Follows the faces of a video. Feed it the frames in their order; afterwards, `at` says who is where.

    Args:
        analyser: finds faces and places landmarks.
        embed: picture, landmarks `(468, 3)` -> unit vector of the face.
        rate: frames a second.
        threshold: lowest detector score of a new face; the `detection_threshold` of the analyser when `None`.

    Attributes:
        tracks: all, in order of appearance.
        num_frames: how many were fed.
        cuts: frames that begin another scene.
        seen: what looked like a face to the detector in the last frame, before it was told whose it is.
    """

    def __init__(
        self,
        analyser: FaceAnalyserModel,
        embed: Callable[[np.ndarray, np.ndarray], np.ndarray],
        rate: float,
        threshold: float | None = None,
    ):
        self.analyser, self.embed, self.rate = analyser, embed, float(np.clip(rate, *RATES))
        self.threshold = analyser.config.detection_threshold if threshold is None else threshold
        spans = (GAP, FLASH, HOLD, LOOKBACK, THOROUGH)
        self.gap, self.flash, self.hold, self.lookback, self.thorough = (max(1, round(span * self.rate)) for span in spans)
        self.tracks: list[Track] = []
        self.num_frames, self._begun = 0, 0
        self.cuts: list[int] = []
        self.seen: list[Face] = []
        self._active: list[Track] = []
        self._coasting: dict[Track, np.ndarray] = {}  # where faces are guessed that are lost
        self._present: dict[int, list[Track]] = defaultdict(list)
        self._recent: deque[np.ndarray] = deque()
        self._thumbnail: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=25)
        self._spool = Spool()

    def at(self, frame: int) -> list[Track]:
        """The tracks that have a sighting in a frame."""
        return self._present.get(frame, [])

    def drawn(self, number: int) -> Track:
        """An empty track for a face that somebody draws by hand. Until it is added, nothing here knows of it."""
        return Track(number, self._spool, self.rate)

    def enter(self, track: Track, picture: np.ndarray, face: Face) -> None:
        """Put a face of the frame that was fed last into such a track."""
        track.put(self.num_frames - 1, face, "found")
        if track.wants_embedding() and (embedding := self._embedded(picture, face)[1]) is not None:
            track.add_embedding(embedding)

    def add(self, track: Track) -> None:
        """Take such a track up among the others, when all frames were fed."""
        self.tracks.append(track)
        for frame in track.frames():
            self._present[frame].append(track)

    def drop(self, track: Track, frames: Collection[int]) -> None:
        """Strike frames of a track out in which there is no face, when all were fed."""
        track.drop(frames)
        for frame in frames:
            self._present[frame].remove(track)

    def forget(self, before: int) -> list[Track]:
        """Drop what is known of the frames before one, for videos without an end; gives the tracks that are dropped with them."""
        kept = before - max(self.gap, smoothing_window(self.rate)) - 1  # what later frames are bridged and smoothed with
        for frame in [frame for frame in self._present if frame < kept]:
            for track in self._present.pop(frame):
                track.forget(kept)
        ended = [track for track in self.tracks if len(track) == 0 and track not in self._active]
        self.tracks = [track for track in self.tracks if track not in ended]
        self.cuts = self.cuts[-1:]
        return ended

    def update(self, picture: np.ndarray) -> list[Track]:
        """Take in the next frame, uint8 `(H, W, 3)`; gives the tracks whose face was found in it."""
        frame, self.num_frames = self.num_frames, self.num_frames + 1
        cut = self._is_cut(picture)
        if cut:
            self.cuts.append(frame)
            self._recent.clear()

        # 1. follow known faces
        followed = {} if cut else self._follow(picture, [track for track in self._active if track.last_frame == frame - 1], frame)
        missed = [track for track in self._active if track.last.landmarks is not None and track not in followed]

        # 2. detect
        detections = self.analyser.glance(picture, min(WEAK_SCORE, self.threshold))
        if cut or frame % self.thorough == 0 or any(frame - track.last_frame <= self.hold for track in missed):
            thorough = self.analyser.detect(picture, self.threshold)
            detections = thorough + [weak for weak in detections if not is_known(weak, thorough)]

        self.seen = [face for face in detections if face.score >= self.threshold]

        # 3. known faces take the boxes of the detector, which reach farther than landmarks
        for track, face in followed.items():
            overlap = {intersection_over_union(other.box, face.box): other.box for other in detections}
            best = max(overlap, default=0)
            if best > ITS_BOX or face.presence > 0:
                track.assured_frame = frame
            self._found(track, frame, picture, replace(face, box=overlap[best] if best > ITS_BOX else face.box))

        # 4. other detections are lost faces or new ones
        known = list(followed.values())
        looked = [self._looked_at(picture, face, known) for face in detections if not is_known(face, known)]
        strangers = [self._embedded(picture, face) for face in merge(looked) if not is_known(face, known)]  # by landmarks
        for track, face, embedding in self._reclaim(strangers, frame, followed):
            before, track.assured_frame = track.last_frame, frame
            self._found(track, frame, picture, face, embedding)
            for between in range(before + 1, frame):
                self._put(track, between, track.interpolated(between, before, frame), "interpolated")
            strangers = [other for other in strangers if other[0] is not face]
        for face, embedding in strangers:
            found = [track.last for track in self._active if track.last_frame == frame]
            if self._is_sure(face, found) or (
                face.score >= self.threshold and self.analyser.confirmed(picture, [face], self.threshold)
            ):
                self._begin(frame, picture, face, embedding)

        # 5. hold the place of lost faces
        for track in [track for track in self._active if track.last_frame < frame]:
            was_cut = self._was_cut(track)
            if frame - track.last_frame > (self.flash if was_cut else self.gap):
                self._active.remove(track)
                self._coasting.pop(track, None)
            elif not was_cut:
                self._coast(track, frame, picture)
        self._recent.append(picture)
        while len(self._recent) > min(self.lookback, max(1, RECENT_BYTES // picture.nbytes)):
            self._recent.popleft()
        return [track for track in self._active if track.last_frame == frame]

    def _is_sure(self, face: Face, known: list[Face]) -> bool:
        """Whether the attention mesh alone is enough to believe that a detection is a face, one more than those known.

        It is sure of some whose landmarks the head mesh contradicts. They may be real, and are covered, but for those that lie in
        a known head: that is what they were made up of.
        """
        if face.landmarks is not None:
            return face.doubt == 0
        return face.presence >= self.analyser.config.presence_threshold and all(
            part_inside(face.box, whole_box(other)) < INSIDE for other in known
        )

    def _is_cut(self, picture: np.ndarray) -> bool:
        thumbnail = cv2.resize(picture, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        previous, self._thumbnail = self._thumbnail, thumbnail
        if previous is None:
            return True
        change = float(np.abs(thumbnail - previous).mean())
        usual = np.median(self._changes) if self._changes else 0.0
        self._changes.append(change)
        return change > max(CUT, CUT_RATIO * usual)

    def _follow(self, picture: np.ndarray, tracks: list[Track], frame: int) -> dict[Track, Face]:
        """The faces of tracks that are still about where they were."""
        placed = [track for track in tracks if track.last.landmarks is not None]
        assured = [frame - track.assured_frame <= self.thorough for track in placed]
        faces = self._find_again(picture, [track.last.landmarks for track in placed], assured)
        followed = {track: face for track, face in zip(placed, faces, strict=True) if face.landmarks is not None}
        for one, other in combinations(list(followed), 2):  # where two cross, both end up on the one in front
            if one in followed and other in followed:
                if intersection_over_union(followed[one].box, followed[other].box) > SAME_FACE:
                    del followed[self._hidden(picture, followed, one, other)]
        return followed

    def _hidden(self, picture: np.ndarray, followed: dict[Track, Face], one: Track, other: Track) -> Track:
        """Which of two tracks that were followed onto one face is behind: who is less alike, or else who jumped farther."""
        _, embedding = self._embedded(picture, min(followed[one], followed[other], key=lambda face: face.doubt))
        if embedding is not None and one.embeddings and other.embeddings:
            return min(one, other, key=lambda track: track.likeness(embedding))
        return min(one, other, key=lambda track: intersection_over_union(followed[track].box, whole_box(track.last)))

    def _find_again(self, picture: np.ndarray, landmarks: list[np.ndarray], assured: list[bool]) -> list[Face]:
        """The faces that are about where landmarks `(468, 3)` are; those of heads that turn away by the head mesh, too.

        Where no face is `assured`, the head mesh alone is not believed, but it is asked whether the attention mesh makes one up.
        Both meshes differ by some hundredths of a face, and where heads are turned the attention mesh comes and goes. So the one
        gives way to the other as heads turn, and nothing jumps.
        """
        faces = self.analyser.find_again([picture] * len(landmarks), landmarks)
        shares = [1.0 if face.landmarks is None else max(map(_rough_share, (before, face.landmarks)))
                  for before, face in zip(landmarks, faces, strict=True)]  # fmt: skip
        asked = [row for row, share in enumerate(shares) if share > 0 and (assured[row] or faces[row].landmarks is not None)]
        heads = self._heads(picture, [landmarks[row] for row in asked])
        for row, head in zip(asked, heads, strict=True):
            faces[row] = _uncontradicted(faces[row], head, landmarks[row])
            if head.landmarks is not None and faces[row].landmarks is not None:
                faces[row] = _between(faces[row], head, shares[row])
            elif head.landmarks is not None and assured[row]:
                faces[row] = head
        return faces

    def _heads(self, picture: np.ndarray, landmarks: list[np.ndarray]) -> list[Face]:
        """What the head mesh sees where heads with landmarks `(468, 3)` are expected; nothing where it knows too little."""
        heads = self.analyser.find_in_any_pose([picture] * len(landmarks), landmarks, MOST_DOUBT)
        return [head if head.doubt <= MOST_DOUBT else Face(head.box) for head in heads]

    def _looked_at(self, picture: np.ndarray, face: Face, known: list[Face]) -> Face:
        """A detected face with the landmarks that a mesh sees, unless they may be made up of a known head in profile.

        Its presence is that of what the attention mesh sees clearly, and 0 else.
        """
        (face,) = self.analyser(picture, [face], any_pose=True)
        if face.landmarks is None or face.doubt > 0:
            return replace(face, presence=0.0)
        (head,) = self._heads(picture, [face.landmarks])
        if head.landmarks is None and any(other.doubt > 0 and intersection_over_union(face.box, other.box) for other in known):
            return _unplaced(face)
        return _uncontradicted(face, head)

    def _embedded(self, picture: np.ndarray, face: Face) -> tuple[Face, np.ndarray | None]:
        """A face and its embedding, if that says who it is."""
        says_who = face.landmarks is not None and face.doubt < SLIGHT_DOUBT and _rough_share(face.landmarks) < 1
        return face, self.embed(picture, face.landmarks) if says_who else None

    def _reclaim(
        self, strangers: list[tuple[Face, np.ndarray | None]], frame: int, followed: dict[Track, Face]
    ) -> list[tuple[Track, Face, np.ndarray | None]]:
        """Which of the faces found belong to tracks that had lost theirs: best matches first, each track and face once."""
        matches = []
        for track in self._active:
            if track in followed:
                continue
            expected = self._coasting.get(track, track.last.box)
            for index, (face, embedding) in enumerate(strangers):
                size = max(*(expected[2:] - expected[:2]), 1)
                distance = np.hypot(*((face.box[:2] + face.box[2:] - expected[:2] - expected[2:]) / 2)) / size
                ratio = max(face.box[2:] - face.box[:2]) / size
                near = distance < NEAR + NEARER / self.rate * (frame - track.last_frame) and 0.5 < ratio < 2
                alike = None if embedding is None or not track.embeddings else track.likeness(embedding)
                if self._was_cut(track):  # the same face at the same place: a flash
                    if near and alike is not None and alike > VERY_ALIKE:
                        matches.append((alike, track.number, index, track))
                elif near and (alike is None or alike > ALIKE):
                    matches.append((1 - distance + (alike or 0), track.number, index, track))
                elif alike is not None and alike > VERY_ALIKE:
                    matches.append((alike - 1, track.number, index, track))
        chosen, tracks, faces = [], set(), set()
        for _, _, index, track in sorted(matches, key=lambda match: match[:3], reverse=True):
            if track not in tracks and index not in faces:
                chosen.append((track, *strangers[index]))
                tracks.add(track)
                faces.add(index)
        return chosen

    def _found(self, track: Track, frame: int, picture: np.ndarray, face: Face, embedding: np.ndarray | None = None) -> None:
        self._put(track, frame, face, "found")
        self._coasting.pop(track, None)
        if face.landmarks is not None and track.wants_embedding() and embedding is None:
            _, embedding = self._embedded(picture, face)
        if embedding is not None:
            track.add_embedding(embedding)

    def _begin(self, frame: int, picture: np.ndarray, face: Face, embedding: np.ndarray | None) -> None:
        """A new track, followed backwards to where it began."""
        track = Track(self._begun, self._spool, self.rate, float(face.score))
        self._begun += 1
        self.tracks.append(track)
        self._active.append(track)
        track.assured_frame = frame
        self._found(track, frame, picture, face, embedding)
        earliest = frame
        for earlier in reversed(self._recent) if face.landmarks is not None else ():
            (face,) = self._find_again(earlier, [face.landmarks], [True])
            others = [other[earliest - 1].face for other in self.at(earliest - 1)]
            if face.landmarks is None or is_known(face, others):
                break
            earliest -= 1
            self._put(track, earliest, face, "found")
        first = Face(whole_box(track[earliest].face))
        for before in range(max(self.cuts[-1], earliest - self.hold), earliest):
            self._put(track, before, first, "lost")

    def _coast(self, track: Track, frame: int, picture: np.ndarray) -> None:
        """Guess where a lost face is, by the motion of the picture about it, and keep the place covered for a while.

        Where only the head mesh still saw it, which was believed no longer, it may well be there: that place is kept for longer.
        """
        box = self._coasting.get(track, whole_box(track.last))
        self._coasting[track] = box = box + np.tile(_motion(self._recent[-1], picture, box), 2)
        disbelieved = track.last_frame - track.assured_frame >= self.thorough
        if frame - track.last_frame <= (self.gap if disbelieved else self.hold):
            self._put(track, frame, Face(box.astype(np.float32)), "lost")

    def _was_cut(self, track: Track) -> bool:
        """Whether the scene changed since the face was seen."""
        return track.last_frame < self.cuts[-1]

    def _put(self, track: Track, frame: int, face: Face, state: State) -> None:
        track.put(frame, face, state)
        if track not in self._present[frame]:
            self._present[frame].append(track)


def _rough_share(landmarks: np.ndarray) -> float:
    """How much the head mesh has to say in where a face with landmarks `(468, 3)` is, 0…1: the more the farther it is turned."""
    across, down = landmarks[454] - landmarks[234], landmarks[152] - landmarks[10]
    facing = np.cross(across, down)
    turn = np.degrees(np.arccos(np.clip(facing[2] / max(np.linalg.norm(facing), 1e-6), -1, 1)))
    return float(np.interp(turn, TURNED, (0, 1)))


def _uncontradicted(face: Face, head: Face, before: np.ndarray | None = None) -> Face:
    """A face of the attention mesh without its landmarks if the head mesh has seen a head that looks elsewhere.

    Of heads in profile the attention mesh makes up faces that look at the camera, and is sure of them. Where the head mesh sees
    nothing, the landmarks of the frame `before` tell, wherever the face has moved since.
    """
    if face.landmarks is None or (head.landmarks is None and before is None):
        return face
    known = before + (face.landmarks - before).mean(axis=0) if head.landmarks is None else head.landmarks
    size = np.ptp(known[:, :2], axis=0).max()
    apart = np.linalg.norm((face.landmarks - known)[:, :2], axis=1).mean() > APART * size
    return _unplaced(face) if apart else face


def _unplaced(face: Face) -> Face:
    """A face without its landmarks."""
    return Face(face.box, face.score, face.keypoints, presence=face.presence)


def _between(one: Face, other: Face, share: float) -> Face:
    """A face as two meshes see it; `share` is that of the other one."""
    parts = {name: (1 - share) * getattr(one, name) + share * getattr(other, name)
             for name in ("box", "landmarks", "iris", "doubt")}  # fmt: skip
    return replace(one, **parts)


def _motion(before: np.ndarray, after: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Median optical flow `(2,)`, pixels, of a box between two frames."""
    height, width = before.shape[:2]
    scale = min(1.0, 320 / max(height, width))
    small = [
        cv2.cvtColor(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        for picture in (before, after)
    ]
    if min(small[0].shape) < 16:  # too small for the patches of the estimator
        return np.zeros(2)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(*small, None)
    x0, y0, x1, y1 = (np.asarray(box) * scale).round().astype(int).clip(0)
    inside = flow[y0 : y1 + 1, x0 : x1 + 1].reshape(-1, 2)
    return np.median(inside, axis=0) / scale if len(inside) else np.zeros(2)
