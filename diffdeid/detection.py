"""Lists and draws the faces of pictures and videos, which are not changed; see `face_lists`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from diffdeid.engine.reports import ranges
from diffdeid.face_lists import Box, ListedFace, ListedPerson, ListedTrack, PictureList, Source, VideoList, box_at
from diffdeid.geometry.boxes import intersection_over_union
from diffdeid.geometry.mask import SHIFT, fixed_point
from diffdeid.io.files import HeldFile
from diffdeid.io.images import check_writable, read_with_fingerprint, write_image
from diffdeid.io.video_reader import VIDEO_SUFFIXES, VideoReader
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_video import DiffDeIDVideoPipeline
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Face
from diffdeid.temporal.track import Track

REPLACEABLE, COVERED = (60, 220, 90), (255, 140, 0)  # colours of the boxes that are drawn
SMALL = 40  # pixels; smaller faces show little, and the detector mistakes more things for them
BRIEF = 0.3  # seconds; a track that is shorter is often no face
LONGEST = 25  # frames from one key frame to the next
FORESEEN = "it would be covered"  # what a search expects of a face, until a result tells
LOST = "nobody is found here: its place is covered, where a track begins or ends"
STRAIGHT = 0.95  # least intersection over union of a box and the one in its place between two key frames


def list_faces(
    pipe: DiffDeIDPipeline,
    files: Mapping[Path, Path | None],
    threshold: float | None = None,
    overwrite: bool = False,
) -> Iterator[dict[str, Any]]:
    """Find the faces of pictures and videos; yields a record for each of these. Errors become records as well.

    Args:
        files: pictures and videos, each picture with the file that its drawing is written to, if any.
        threshold: lowest detector score of a face; that of the face analyser when `None`.
        overwrite: replace existing drawings.
    """
    for file, drawing in files.items():
        try:
            if file.suffix.lower() in VIDEO_SUFFIXES:
                yield list_video(pipe, file, threshold).record(str(file))
            else:
                yield _list_picture(pipe, file, drawing, threshold, overwrite).record(str(file))
        except Exception as error:  # it must not stop the others
            yield {"input": str(file), "error": str(error) or type(error).__name__, "faces": []}


def _list_picture(
    pipe: DiffDeIDPipeline, file: Path, drawing: Path | None, threshold: float | None, overwrite: bool
) -> PictureList:
    if drawing is not None:
        check_writable(drawing, False, overwrite)
    picture, mark = read_with_fingerprint(file)
    image = picture.image
    faces = pipe.detect_faces(np.asarray(image), threshold=threshold)
    if drawing is not None:
        drawing.parent.mkdir(parents=True, exist_ok=True)
        write_image(drawing, Image.fromarray(draw(np.asarray(image), faces)), overwrite=overwrite)
    sure_score = pipe.face_analyser.config.sure_score
    listed = tuple(describe(face, number, sure_score) for number, face in enumerate(faces, start=1))
    return PictureList(listed, len(listed), Source(mark, *image.size))


def describe(face: Face, number: int, sure_score: float) -> ListedFace:
    """The entry of a found face in a list; a score below `sure_score` makes it uncertain."""
    score = round(float(face.score), 3)
    doubts = [f"its score is {score:g}"] if score < sure_score else []
    return ListedFace(number, _rounded(face.box), score=score, covered=why_covered(face), uncertain=(*doubts, *_doubts(face)))


def _doubts(face: Face) -> list[str]:
    """Why somebody should look at a face."""
    doubts = [] if (problem := why_covered(face)) is None else [f"{FORESEEN}: {problem}"]
    if face.doubt > 0:
        doubts.append("it is turned away, or its landmarks are not exact")
    if min(face.box[2:] - face.box[:2]) < SMALL:
        doubts.append(f"it is smaller than {SMALL} pixels")
    return doubts


def draw(picture: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A copy of a picture `(H, W, 3)` uint8 with the boxes and landmarks of faces, and their numbers from 1."""
    drawn = picture.copy()
    thickness = max(1, round(max(picture.shape[:2]) / 600))
    for number, face in enumerate(faces, start=1):
        colour = REPLACEABLE if why_covered(face) is None else COVERED
        (x0, y0), (x1, y1) = face.box.reshape(2, 2).round().astype(int).tolist()
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, thickness)
        for point in () if face.landmarks is None else fixed_point(face.landmarks):
            cv2.circle(drawn, point.tolist(), thickness << SHIFT - 1, colour, -1, cv2.LINE_AA, SHIFT)
        place = (x0, max(y0 - 3 * thickness, 12 * thickness))
        cv2.putText(drawn, f"{number}: {face.score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * thickness, colour, thickness)
    return drawn


# Videos


@torch.no_grad()
def list_video(
    pipe: DiffDeIDPipeline,
    file: Path,
    threshold: float | None = None,
    callback_on_frame: Callable[[str, int, int], None] | None = None,
) -> VideoList:
    """The tracks of a video, and whose they are.

    Args:
        threshold: lowest detector score of a face; that of the face analyser when `None`.
        callback_on_frame: called as `DiffDeIDVideoPipeline` calls it.

    Raises:
        VideoError: the file cannot be read, or changes meanwhile.
    """
    with HeldFile(file) as held:
        reader, size = VideoReader(file), (0, 0)
        session = DiffDeIDVideoPipeline.sharing(pipe).start(float(reader.rate), seed=0, threshold=threshold)
        for number, frame in enumerate(reader, start=1):
            session.tracker.update(frame.picture)
            size = frame.picture.shape[1::-1]
            if callback_on_frame is not None:
                callback_on_frame("analyse", number, reader.num_frames)
        held.check_content()
        source = Source(held.fingerprint, *size, session.tracker.num_frames)
    tracks = session.tracker.tracks
    owners = {track: session.people.belongs(track).number for track in tracks}
    sure_score, brief = pipe.face_analyser.config.sure_score, BRIEF * session.tracker.rate
    listed = tuple(_listed_track(track, owners[track], sure_score, brief) for track in tracks)
    people = tuple(map(ListedPerson, sorted(set(owners.values()))))
    return VideoList(source, listed, people, threshold=threshold)


def _listed_track(track: Track, person: int, sure_score: float, brief: float) -> ListedTrack:
    frames = track.frames()
    whole = (frames[0], frames[-1])
    doubts = [(whole, f"its score is {track.score:.2f}")] if track.score < sure_score else []
    doubts += [(whole, f"it is seen in {len(frames)} frames only")] if len(frames) < brief else []
    reasons = {"interpolated": "lost for a moment", "lost": LOST}
    boxes, seen = [], defaultdict(list)
    for frame in frames:  # one by one: the landmarks of a whole track would take much memory
        one = track[frame]
        boxes.append((frame, _rounded(one.face.box)))
        for reason in [reasons[one.state]] if one.state in reasons else _doubts(one.face):
            seen[reason].append(frame)
    doubts += [(span, reason) for reason, its_frames in seen.items() for span in ranges(its_frames)]
    return ListedTrack(track.number + 1, person, tuple(_key_frames(boxes)), score=round(track.score, 3), uncertain=tuple(doubts))


def _key_frames(boxes: Sequence[tuple[int, Box]]) -> Iterator[tuple[int, Box]]:
    """The key frames among the boxes of consecutive frames: between two of them, boxes move evenly."""
    start = 0
    yield boxes[0]
    while start < len(boxes) - 1:
        end = start + 1
        while end + 1 < min(len(boxes), start + LONGEST) and _straight(boxes[start : end + 2]):
            end += 1
        yield boxes[end]
        start = end


def _straight(boxes: Sequence[tuple[int, Box]]) -> bool:
    ends = boxes[0], boxes[-1]
    return all(intersection_over_union(box_at(ends, frame), np.array(box)) > STRAIGHT for frame, box in boxes[1:-1])


def _rounded(box: np.ndarray) -> Box:
    return tuple(round(float(side), 1) for side in box)
