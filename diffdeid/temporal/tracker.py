"""Faces of a video -> tracks: which face is whose from frame to frame, with no frame missed.

Every frame is searched at a low threshold, and every few frames thoroughly. Between detections, landmarks follow each face from
where it was: those of the attention mesh, and the more a head turns away, those of the head mesh. The head mesh also sees things
that are not heads, so the detector must confirm it from time to time. A new face is followed backwards too, because detectors see
faces later than people do. A face that is lost and found again within a second was there in between. If it is not found again,
its place is held for a moment.
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

WEAK_SCORE = 0.2  # least score of a detection where a face is expected
SAME_FACE = 0.5  # intersection over union above which two tracks have been followed onto one face
ITS_BOX = 0.3  # intersection over union above which a known face takes the box of a detection
NEAR, NEARER = 0.6, 1.25  # face sizes that a lost face may have moved, and how many more in each second that it is lost
ALIKE, VERY_ALIKE = 0.3, 0.55  # cosines: perhaps the same person; surely (1 - `identity_limit` of the released pipeline)
GAP, FLASH, HOLD, LOOKBACK = 1.0, 0.3, 0.2, 0.4  # seconds: bridged, bridged over cuts, held at the ends, followed backwards
THOROUGH = 0.4  # seconds between thorough searches, and for which the head mesh is trusted without the detector
# Degrees between face and camera over which the head mesh replaces the attention mesh. The second must equal `EXACT_TURN` of
# `stages/verify.py`, which judges results; it is repeated because this package must not import stages.
TURNED = 40.0, 55.0
SLIGHT_DOUBT = 0.02  # heights of the face; with more, or past `TURNED`, an embedding says little about who it is
MOST_DOUBT = 0.05  # heights of the face, where a head is expected; with more, the head mesh sees nothing
INSIDE = 0.5  # least part of a made-up face's box inside the box of the head from which it was made up
APART = 0.12  # most face sizes between the two meshes; one of 83 real faces (33 pixels) exceeds it, and made-up faces by far
RATES = (1.0, 240.0)  # frames a second that are plausible; files may claim anything
RECENT_BYTES = 256 * 2**20  # of frames that are kept to follow faces backwards
CUT, CUT_RATIO = 0.1, 3.0  # least mean change of a thumbnail at a cut: 0…1, and relative to the usual change


class FaceTracker:
    """Follows the faces of a video. Feed it the frames in order; afterwards, `at` tells the tracks in each frame.

    Args:
        analyser: finds faces and places landmarks.
        embed: picture, landmarks `(468, 3)` -> unit vector of the face.
        rate: frames a second.
        threshold: lowest detector score of a new face; the `detection_threshold` of the analyser when `None`.

    Attributes:
        tracks: all tracks, in order of appearance.
        num_frames: how many frames were fed.
        cuts: frames that begin another scene.
        seen: the detections in the last frame, before they were assigned to tracks.
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
        self._coasting: dict[Track, np.ndarray] = {}  # the guessed boxes of lost faces
        self._present: dict[int, list[Track]] = defaultdict(list)
        self._recent: deque[np.ndarray] = deque()
        self._thumbnail: np.ndarray | None = None
        self._changes: deque[float] = deque(maxlen=25)
        self._spool = Spool()

    def at(self, frame: int) -> list[Track]:
        """The tracks that have a sighting in a frame."""
        return self._present.get(frame, [])

    def drawn(self, number: int) -> Track:
        """A new, empty track for a face that somebody has drawn by hand. It does not count until `add` is called."""
        return Track(number, self._spool, self.rate)

    def enter(self, track: Track, picture: np.ndarray, face: Face) -> None:
        """Put a face of the frame that was fed last into a drawn track."""
        track.put(self.num_frames - 1, face, "found")
        if track.wants_embedding() and (embedding := self._embedded(picture, face)[1]) is not None:
            track.add_embedding(embedding)

    def add(self, track: Track) -> None:
        """Add a drawn track to the others, after all frames were fed."""
        self.tracks.append(track)
        for frame in track.frames():
            self._present[frame].append(track)

    def drop(self, track: Track, frames: Collection[int]) -> None:
        """Remove frames without a face from a track, after all frames were fed."""
        track.drop(frames)
        for frame in frames:
            self._present[frame].remove(track)

    def forget(self, before: int) -> list[Track]:
        """Drop what is known of frames before `before`, for videos without an end; gives the tracks that are dropped with it."""
        kept = before - max(self.gap, smoothing_window(self.rate)) - 1  # later frames are bridged and smoothed with these
        for frame in [frame for frame in self._present if frame < kept]:
            for track in self._present.pop(frame):
                track.forget(kept)
        ended = [track for track in self.tracks if len(track) == 0 and track not in self._active]
        self.tracks = [track for track in self.tracks if track not in ended]
        self.cuts = self.cuts[-1:]
        return ended

    def update(self, picture: np.ndarray) -> list[Track]:
        """Process the next frame, uint8 `(H, W, 3)`; gives the tracks whose face was found in it."""
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

        # 3. known faces take the boxes of the detector, which reach beyond the landmarks
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
        """Whether the attention mesh alone is enough to take a detection for a face besides those known.

        It is sure of some faces whose landmarks the head mesh contradicts. They may be real, and are covered, except inside a
        known head: there, the mesh has made them up from that head.
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
        """Find the faces of tracks again near where they were in the frame before."""
        placed = [track for track in tracks if track.last.landmarks is not None]
        assured = [frame - track.assured_frame <= self.thorough for track in placed]
        faces = self._find_again(picture, [track.last.landmarks for track in placed], assured)
        followed = {track: face for track, face in zip(placed, faces, strict=True) if face.landmarks is not None}
        for one, other in combinations(list(followed), 2):  # where two faces cross, both tracks end up on the one in front
            if one in followed and other in followed:
                if intersection_over_union(followed[one].box, followed[other].box) > SAME_FACE:
                    del followed[self._hidden(picture, followed, one, other)]
        return followed

    def _hidden(self, picture: np.ndarray, followed: dict[Track, Face], one: Track, other: Track) -> Track:
        """Which of two tracks that were followed onto one face is behind: the less similar, or else the one that jumped more."""
        _, embedding = self._embedded(picture, min(followed[one], followed[other], key=lambda face: face.doubt))
        if embedding is not None and one.embeddings and other.embeddings:
            return min(one, other, key=lambda track: track.likeness(embedding))
        return min(one, other, key=lambda track: intersection_over_union(followed[track].box, whole_box(track.last)))

    def _find_again(self, picture: np.ndarray, landmarks: list[np.ndarray], assured: list[bool]) -> list[Face]:
        """Find the faces near landmarks `(468, 3)`, with the attention mesh, and with the head mesh for heads that turn away.

        The head mesh alone counts only for `assured` faces, but it always tells whether the attention mesh makes up a face. The
        two meshes differ by some hundredths of a face, and on turned heads the attention mesh fails in some frames. So they are
        blended as heads turn, and nothing jumps.
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
        """Run the head mesh where heads with landmarks `(468, 3)` are expected; no landmarks where its doubt is too large."""
        heads = self.analyser.find_in_any_pose([picture] * len(landmarks), landmarks, MOST_DOUBT)
        return [head if head.doubt <= MOST_DOUBT else Face(head.box) for head in heads]

    def _looked_at(self, picture: np.ndarray, face: Face, known: list[Face]) -> Face:
        """Add landmarks to a detected face, unless the attention mesh may have made them up from a known head in profile.

        Its presence is that of the attention mesh where that sees it clearly, else 0.
        """
        (face,) = self.analyser(picture, [face], any_pose=True)
        if face.landmarks is None or face.doubt > 0:
            return replace(face, presence=0.0)
        (head,) = self._heads(picture, [face.landmarks])
        if head.landmarks is None and any(other.doubt > 0 and intersection_over_union(face.box, other.box) for other in known):
            return _unplaced(face)
        return _uncontradicted(face, head)

    def _embedded(self, picture: np.ndarray, face: Face) -> tuple[Face, np.ndarray | None]:
        """A face and its embedding; `None` if the view is too poor to tell who it is."""
        says_who = face.landmarks is not None and face.doubt < SLIGHT_DOUBT and _rough_share(face.landmarks) < 1
        return face, self.embed(picture, face.landmarks) if says_who else None

    def _reclaim(
        self, strangers: list[tuple[Face, np.ndarray | None]], frame: int, followed: dict[Track, Face]
    ) -> list[tuple[Track, Face, np.ndarray | None]]:
        """Match new faces with tracks that have lost theirs: best matches first, each track and each face once."""
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
        """Begin a track, and follow its face backwards to where it first appears."""
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
        """Guess where a lost face is, by the motion of the picture around it, and keep that place covered for a while.

        If the head mesh still saw it but was not trusted any longer, it may well be there, so its place is kept for longer.
        """
        box = self._coasting.get(track, whole_box(track.last))
        self._coasting[track] = box = box + np.tile(_motion(self._recent[-1], picture, box), 2)
        disbelieved = track.last_frame - track.assured_frame >= self.thorough
        if frame - track.last_frame <= (self.gap if disbelieved else self.hold):
            self._put(track, frame, Face(box.astype(np.float32)), "lost")

    def _was_cut(self, track: Track) -> bool:
        """Whether the scene has changed since the face was found."""
        return track.last_frame < self.cuts[-1]

    def _put(self, track: Track, frame: int, face: Face, state: State) -> None:
        track.put(frame, face, state)
        if track not in self._present[frame]:
            self._present[frame].append(track)


def _rough_share(landmarks: np.ndarray) -> float:
    """The weight of the head mesh for a face with landmarks `(468, 3)`, 0…1: the farther it is turned, the larger."""
    across, down = landmarks[454] - landmarks[234], landmarks[152] - landmarks[10]
    facing = np.cross(across, down)
    turn = np.degrees(np.arccos(np.clip(facing[2] / max(np.linalg.norm(facing), 1e-6), -1, 1)))
    return float(np.interp(turn, TURNED, (0, 1)))


def _uncontradicted(face: Face, head: Face, before: np.ndarray | None = None) -> Face:
    """Drop the landmarks of the attention mesh if the head mesh has seen a head that looks elsewhere.

    From heads in profile, the attention mesh makes up faces that look at the camera, with high confidence. If the head mesh sees
    nothing, the landmarks of the frame `before`, moved to the place of the face, are compared instead.
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
    """Blend a face as seen by two meshes; `share` is the weight of `other`."""
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
