"""Apply the corrections in a list of faces to the faces that the analysis of a video finds.

Lists hold no landmarks. So the video is analysed again, which gives the same tracks, and these are corrected. If they are not
those of the list, nobody can tell which faces its corrections are about, and an error is raised.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from diffdeid.engine.consent import BY_HAND
from diffdeid.engine.people import People
from diffdeid.face_lists import ListedTrack, VideoList, box_at
from diffdeid.geometry.boxes import intersection_over_union
from diffdeid.stages.detect import detect_faces
from diffdeid.structures import Face
from diffdeid.temporal.track import Track
from diffdeid.temporal.tracker import FaceTracker

SAME_PLACE = 0.8  # least intersection over union of a box of a list and the one that is found; boxes of a list are rounded


class Corrections:
    """Applies a list of faces to a video.

    Args:
        listed: the list.
        tracker, people: of the video.

    Attributes:
        deleted: by frame, boxes in which there is no face according to the list: a search of the result finds them again.
    """

    def __init__(self, listed: VideoList, tracker: FaceTracker, people: People):
        self.listed, self.tracker, self.people = listed, tracker, people
        self.deleted: dict[int, list[np.ndarray]] = defaultdict(list)
        self._drawn = [(one, tracker.drawn(-number)) for number, one in enumerate(listed.drawn, start=1)]

    def draw(self, picture: np.ndarray) -> list[Track]:
        """The drawn tracks in the frame that was fed last. Where the attention mesh finds no face, the face will be covered."""
        frame, present = self.tracker.num_frames - 1, []
        for one, track in self._drawn:
            if one.boxes[0][0] <= frame <= one.boxes[-1][0]:
                boxed = Face(box_at(one.boxes, frame).astype(np.float32))
                (face,) = detect_faces(self.tracker.analyser, picture, [boxed])
                self.tracker.enter(track, picture, face)
                present.append(track)
        return present

    def apply(self) -> None:
        """Assign tracks to people as the list does, add the drawn tracks, and remove what is not a face.

        People all of whose tracks are removed still get stand-ins: nobody else may come to look like them.

        Raises:
            ValueError: the tracks differ from those of the list.
        """
        found = {track.number + 1: track for track in self.tracker.tracks}
        listed = {one.id: one for one in self.listed.tracks}
        same = self.listed.source.frames == self.tracker.num_frames and found.keys() == listed.keys()
        if not same or not all(_is_same(track, listed[number]) for number, track in found.items()):
            raise ValueError(
                "The faces found in the video differ from those of the list, so its corrections may be about other faces. It was "
                "made by another version, with other weights or on another device. Make it again with `diffdeid detect`."
            )
        said = {one.id: one for one in self.listed.people}
        for track, number in [(track, listed[number].person) for number, track in found.items()] + [
            (track, one.person) for one, track in self._drawn
        ]:
            person = self.people.assign(track, number)
            if number in said:
                person.candidate, person.kept = said[number].candidate, BY_HAND if said[number].keep else None
        for number, track in found.items():
            struck = {frame for first, last in listed[number].deleted for frame in range(first, last + 1) if frame in track}
            for frame in struck:
                self.deleted[frame].append(track[frame].face.box)
            self.tracker.drop(track, struck)
        for _, track in self._drawn:
            self.tracker.add(track)


def _is_same(track: Track, listed: ListedTrack) -> bool:
    frames = track.frames()
    return (frames[0], frames[-1]) == (listed.boxes[0][0], listed.boxes[-1][0]) and all(
        frame in track and intersection_over_union(track[frame].face.box, np.array(box)) > SAME_PLACE
        for frame, box in listed.boxes
    )
