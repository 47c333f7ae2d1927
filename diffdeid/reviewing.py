"""The review of a photo or video: what is doubtful in its list of faces, and corrections of the list. No web framework.

Faces of a photo and tracks of a video have their ids as numbers; tracks that were drawn have the numbers -1, -2, …
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from diffdeid.detection import FORESEEN, LOST, list_faces
from diffdeid.engine.faces import CASTS, MAX_ATTEMPTS
from diffdeid.engine.reports import FaceReport, PersonReport
from diffdeid.errors import DiffDeIDError
from diffdeid.face_lists import (
    MOST,
    Box,
    DrawnTrack,
    FaceList,
    ListedFace,
    ListedPerson,
    ListedTrack,
    PictureList,
    Range,
    VideoList,
    box_at,
    read_face_list,
)
from diffdeid.geometry.boxes import check_box
from diffdeid.io.files import write_whole
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline

SURE, DOUBTFUL, SELECTED = (60, 220, 90), (255, 140, 0), (255, 255, 255)  # colours of boxes, and …
PENDING = (0, 160, 255)  # … of one that is not added yet
ROW, NAMES = 16, 15  # pixels of a row of the timeline, and per cent of its width that names take
NEAR = 0.05  # somebody should look at new faces whose distance is this near to its limit, …
STRAYING = 0.8  # … at those whose features stray by more than this share of what is allowed, …
TRIED = 0.5  # … and at those that needed more than this share of all attempts


def open_list(pipe: DiffDeIDPipeline, file: Path, path: Path, threshold: float | None = None) -> dict[Path, FaceList]:
    """The lists of faces in the file `path`. If `file` is not listed there yet, it is searched, and its list is added.

    Args:
        pipe: searches the photo or video `file`.
        threshold: lowest detector score of a face; that of the face analyser when `None`.

    Raises:
        DiffDeIDError: the file cannot be searched.
        ValueError: the lists cannot be read, or not be written again, or that of `file` was not made at this threshold.
    """
    lists = read_face_list(path) if path.exists() else {}
    if without := [other.name for other, one in lists.items() if one.source is None]:
        raise ValueError(
            f"`{path}` lists `{without[0]}` without a version. Such a line cannot be written again. "
            "Make it again with `diffdeid detect --json`, or name another list."
        )
    if file.resolve() in lists:
        _refuse_threshold(lists[file.resolve()], file, path, threshold)
    else:
        (record,) = list_faces(pipe, {file: None}, threshold)
        if record["error"]:
            raise DiffDeIDError(record["error"])
        others = "".join(json.dumps(one.record(str(other))) + "\n" for other, one in lists.items())
        write_whole(path, f"{others}{json.dumps(record)}\n".encode())
        lists = read_face_list(path)
    return lists


def _refuse_threshold(listed: FaceList, file: Path, path: Path, threshold: float | None) -> None:
    """Raise where a list was not made at a threshold. Lists of videos tell theirs, those of photos do not."""
    if threshold is not None and (isinstance(listed, PictureList) or threshold != listed.threshold):
        raise ValueError(
            f"`{path}` lists the faces of `{file.name}` already, so they are not searched at the threshold {threshold:g}. "
            "Leave `--threshold` out, or name another list."
        )


def save_list(lists: dict[Path, FaceList], path: Path) -> None:
    """Write lists of faces, each a line."""
    write_whole(path, "".join(json.dumps(one.record(str(file))) + "\n" for file, one in lists.items()).encode())


# What is shown of a list


Doubt = tuple[Range, str]  # frames (of a picture: 0 to 0), and why somebody should look at them


@dataclass(frozen=True)
class Written:
    """What is known of the result that was written last.

    Attributes:
        listed: the list that it shows.
        doubts: about each face or person, by its number.
    """

    listed: FaceList
    doubts: dict[int, list[Doubt]]

    @classmethod
    def of(cls, listed: FaceList, reports: Mapping[int, FaceReport | PersonReport], limit: float) -> Written:
        """From the reports of a result, by numbers; `limit` is the smallest accepted 1 - cosine to the source."""
        last = max(listed.source.frames - 1, 0)
        return cls(listed, {number: _doubts_about(report, limit, last) for number, report in reports.items()})

    def doubts_about(self, listed: FaceList, number: int) -> list[Doubt] | None:
        """What is doubtful about a face or person of a list; `None` if its entries are not those of the result any more."""
        same = number in self.doubts and _entries(listed, number) == _entries(self.listed, number)
        return self.doubts[number] if same else None


def _doubts_about(report: FaceReport | PersonReport, limit: float, last: int) -> list[Doubt]:
    person = isinstance(report, PersonReport)
    if person:
        covered = report.covered
    else:
        covered = [] if report.method in ("diffusion", "kept") else [(0, 0)]
    doubts = [(frames, f"covered: {report.reason}") for frames in covered]
    if report.identity_distance is not None and report.identity_distance < limit + NEAR:
        frame = report.nearest if person else 0
        near = f"new face near the limit of the distance ({report.identity_distance:.2f}; at least {limit:.2f})"
        doubts.append(((frame, frame), near))
    if not person and (report.straying or 0) > STRAYING:
        doubts.append(((0, 0), f"new face may look wrong: its features stray by {report.straying:.0%} of what is allowed"))
    most = MAX_ATTEMPTS * (CASTS if person else 1)
    if report.method == "diffusion" and report.attempts > TRIED * most:
        doubts.append(((0, last), f"new face after {report.attempts} of at most {most} attempts"))
    return doubts


def _entries(listed: FaceList, number: int) -> list:
    """All entries of a list about a face or person."""
    if isinstance(listed, PictureList):
        return [face for face in listed.faces if face.id == number]
    return [person_of(listed, number), *(one for one in (*listed.tracks, *listed.drawn) if one.person == number)]


def doubts(listed: FaceList, written: Written | None = None) -> dict[int, tuple[list[Doubt], list[Doubt]]]:
    """What somebody should look at for each face or track: in the result as it was written, and in the source."""
    told = {}
    if isinstance(listed, PictureList):
        rows = [(face.id, face.id, (0, 0), [((0, 0), why) for why in face.uncertain]) for face in listed.faces]
    else:
        rows = [(one.id, one.person, _span(one), list(one.uncertain)) for one in listed.tracks]
        rows += [(-number, one.person, _span(one), []) for number, one in enumerate(listed.drawn, start=1)]
    for number, owner, (first, last), searched in rows:
        seen = None if written is None else written.doubts_about(listed, owner)
        if seen is not None:  # the result tells what was foreseen; that the place of a lost face is covered was known before
            seen = [((max(start, first), min(end, last)), why) for (start, end), why in seen if start <= last and end >= first]
            lost = [span for span, why in searched if why == LOST]
            seen = [(span, why) for span, why in seen if not any(one[0] <= span[0] and span[1] <= one[1] for one in lost)]
            searched = [one for one in searched if not one[1].startswith(FORESEEN)]
        told[number] = seen or [], searched
    return told


def queue(listed: FaceList, written: Written | None = None) -> list[tuple[str, int]]:
    """Words about each face or track, and its number: first those whose result is doubtful, then the other doubtful ones."""
    if isinstance(listed, PictureList):
        words = {face.id: _words_about_face(face) for face in listed.faces}
    else:
        words = {track.id: _words_about_track(listed, track) for track in listed.tracks}
        words |= {-number: f"drawn {number}: person {one.person}, {in_frames(_span(one))}"
                  for number, one in enumerate(listed.drawn, start=1)}  # fmt: skip
    video, told = isinstance(listed, VideoList), doubts(listed, written)
    for number, both in told.items():
        said = [f"{why}, {in_frames(frames)}" if video else why for part in both for frames, why in part]
        words[number] = "; ".join([words[number], *said])
    return [(words[number], number) for number in sorted(words, key=lambda one: [not part for part in told[one]])]


def _words_about_face(face: ListedFace) -> str:
    said = ["DELETED"] * face.deleted + ["KEPT AS IT IS"] * face.keep + [f"candidate {face.candidate}"] * (face.candidate > 0)
    return "; ".join([f"face {face.id}", *said])


def _words_about_track(listed: VideoList, track: ListedTrack) -> str:
    who = person_of(listed, track.person)
    said = ["KEPT AS THEY ARE"] * who.keep + [f"candidate {who.candidate}"] * (who.candidate > 0)
    said += [f"DELETED in {in_frames(frames)}" for frames in track.deleted]
    return "; ".join([f"track {track.id}: person {track.person}, {in_frames(_span(track))}", *said])


def in_frames(frames: Range) -> str:
    """A range of frames in words."""
    first, last = frames
    return f"frame {first}" if first == last else f"frames {first} to {last}"


def _name(number: int) -> str:
    return str(number) if number > 0 else f"drawn {-number}"


def _span(track: ListedTrack | DrawnTrack) -> Range:
    return track.boxes[0][0], track.boxes[-1][0]


def span_of(listed: VideoList, number: int) -> Range:
    """The first and the last frame of a track."""
    return _span(listed.drawn[-number - 1] if number < 0 else _track_of(listed, number))


def frame_of(listed: VideoList, number: int, frame: int, written: Written | None = None) -> int:
    """The frame in which to look at a track: its first doubtful one; else `frame`, or its first one if it is not in `frame`."""
    first, last = span_of(listed, number)
    doubtful = [start for part in doubts(listed, written)[number] for (start, _), _ in part]
    return doubtful[0] if doubtful else frame if first <= frame <= last else first


def boxes_at(listed: FaceList, frame: int = 0) -> dict[int, Box]:
    """The boxes of a picture, or of a frame of a video, by number; without those that are deleted."""
    if isinstance(listed, PictureList):
        return {face.id: face.box for face in listed.faces if not face.deleted}
    paths = {track.id: track.boxes for track in listed.tracks if not any(one <= frame <= end for one, end in track.deleted)}
    paths |= {-number: one.boxes for number, one in enumerate(listed.drawn, start=1)}
    return {number: tuple(box_at(path, frame).tolist()) for number, path in paths.items() if path[0][0] <= frame <= path[-1][0]}


def best_frame(track: ListedTrack) -> int:
    """The frame that shows a track best: of those with the fewest doubts, the one with the largest box."""

    def rank(frame: int) -> tuple[int, float]:
        doubts = sum(first <= frame <= last for (first, last), _ in track.uncertain)
        x0, y0, x1, y1 = box_at(track.boxes, frame)
        return -doubts, (x1 - x0) * (y1 - y0)

    return max(range(track.boxes[0][0], track.boxes[-1][0] + 1), key=rank)


def number_at(listed: FaceList, frame: int, x: float, y: float) -> int | None:
    """The number of the smallest box around a point, or `None`."""
    about = {number: (x1 - x0) * (y1 - y0) for number, (x0, y0, x1, y1) in boxes_at(listed, frame).items()
             if x0 <= x <= x1 and y0 <= y <= y1}  # fmt: skip
    return min(about, key=about.get, default=None)


def draw(
    picture: np.ndarray,
    listed: FaceList,
    frame: int = 0,
    selected: int | None = None,
    written: Written | None = None,
    pending: Box | None = None,
) -> np.ndarray:
    """A copy of a picture `(H, W, 3)` uint8 with numbered boxes, and with a `pending` one that is not added yet."""
    drawn, thickness = picture.copy(), max(1, round(max(picture.shape[:2]) / 500))
    doubtful = {number for number, both in doubts(listed, written).items() if any(both)}
    boxes = [(_name(number), box, SELECTED if number == selected else DOUBTFUL if number in doubtful else SURE)
             for number, box in boxes_at(listed, frame).items()]  # fmt: skip
    for name, box, colour in boxes if pending is None else [*boxes, ("new", pending, PENDING)]:
        (x0, y0), (x1, y1) = np.reshape(box, (2, 2)).round().astype(int).tolist()
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, thickness * (2 if colour == SELECTED else 1))
        place = (x0, max(y0 - 3 * thickness, 16 * thickness))
        cv2.putText(drawn, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * thickness, colour, thickness)
    return drawn


def timeline(listed: VideoList, frame: int = 0, selected: int | None = None, written: Written | None = None) -> str:
    """A drawing of the tracks, as SVG: a row each, doubtful frames orange, deleted ones empty, and a line at a frame."""
    scale, told = (100 - NAMES) / max(listed.source.frames, 1), doubts(listed, written)
    rows = [(track.id, _span(track), track.deleted) for track in listed.tracks]
    rows += [(-number, _span(one), ()) for number, one in enumerate(listed.drawn, start=1)]
    parts = []
    for row, (number, whole, deleted) in enumerate(rows):
        doubtful = [span for part in told[number] for span, _ in part]
        spans = [(whole, SURE)] + [(span, DOUBTFUL) for span in doubtful] + [(span, SELECTED) for span in deleted]
        parts += [
            f'<rect x="{NAMES + first * scale:.2f}%" y="{row * ROW + 3}" width="{max((last + 1 - first) * scale, 0.5):.2f}%" '
            f'height="{ROW - 6}" fill="rgb{colour}" stroke="{"grey" if colour == SELECTED else "none"}" stroke-width=".5"/>'
            for (first, last), colour in spans
        ]
        weight = "bold" if number == selected else "normal"
        parts.append(f'<text x="2" y="{row * ROW + 12}" font-size="11" fill="grey" font-weight="{weight}">{_name(number)}</text>')
    height, place = max(len(rows), 1) * ROW, NAMES + (frame + 0.5) * scale
    parts.append(f'<line x1="{place:.2f}%" x2="{place:.2f}%" y1="0" y2="{height}" stroke="red"/>')
    return f'<svg width="100%" height="{height}">{"".join(parts)}</svg>'


# Corrections: each gives a corrected copy of a list, or raises `ValueError` where that makes no sense
def another(listed: FaceList, number: int) -> FaceList:
    """Take the next candidate for a face, or for the person of a track."""
    if isinstance(listed, PictureList):
        return _face(listed, number, candidate=_face_of(listed, number).candidate + 1)
    who = person_of(listed, person_number(listed, number))
    return _person(listed, replace(who, candidate=who.candidate + 1))


def keep(listed: FaceList, number: int) -> FaceList:
    """Leave a face, or the person of a track, as it is."""
    if isinstance(listed, PictureList):
        return _face(listed, number, keep=True, deleted=False)
    return _person(listed, replace(person_of(listed, person_number(listed, number)), keep=True))


def strike(listed: FaceList, number: int, first: int = 0, last: int = 0) -> FaceList:
    """Delete a face, a track in a range of frames, or all of a track that was drawn."""
    if isinstance(listed, PictureList):
        return _face(listed, number, keep=False, deleted=True)
    if number < 0:
        return replace(listed, drawn=(*listed.drawn[: -number - 1], *listed.drawn[-number:]))
    if not 0 <= first <= last < listed.source.frames:
        raise ValueError(f"Name frames from 0 to {listed.source.frames - 1}, the first one first, got {first} to {last}.")
    return _track(listed, number, deleted=(*_track_of(listed, number).deleted, (first, last)))


def restore(listed: FaceList, number: int) -> FaceList:
    """Take back that a face, or a track and its person, was kept or deleted."""
    if isinstance(listed, PictureList):
        return _face(listed, number, keep=False, deleted=False)
    listed = _person(listed, replace(person_of(listed, person_number(listed, number)), keep=False))
    return listed if number < 0 else _track(listed, number, deleted=())


def add(listed: FaceList, box: Box, first: int = 0, last: int = 0, person: int | None = None) -> FaceList:
    """Add a face that was missed; in a video from one frame to another, of somebody new if there is no `person`."""
    check_box(np.array(box))
    if isinstance(listed, PictureList):
        return replace(listed, faces=(*listed.faces, ListedFace(max([face.id for face in listed.faces], default=0) + 1, box)))
    if not 0 <= first <= last < listed.source.frames:
        raise ValueError(f"Name frames from 0 to {listed.source.frames - 1}, the first one first, got {first} to {last}.")
    boxes = ((first, box),) if first == last else ((first, box), (last, box))
    return replace(listed, drawn=(*listed.drawn, DrawnTrack(_person_or_new(listed, person), boxes)))


def move(listed: PictureList, number: int, box: Box) -> PictureList:
    """Move a face to another box."""
    check_box(np.array(box))
    return _face(listed, number, box=box)


def assign(listed: VideoList, number: int, person: int | None = None) -> VideoList:
    """Give a track to another person, to somebody new if there is no `person`."""
    person = _person_or_new(listed, person)
    if number < 0:
        drawn = (replace(one, person=person) if row == -number else one for row, one in enumerate(listed.drawn, start=1))
        return replace(listed, drawn=tuple(drawn))
    return _track(listed, number, person=person)


def _person_or_new(listed: VideoList, person: int | None) -> int:
    known = [one.person for one in (*listed.tracks, *listed.drawn)] + [one.id for one in listed.people]  # some without a track
    person = max(known, default=0) + 1 if person is None else person
    if not 1 <= person <= MOST:
        raise ValueError(f"People have numbers from 1 to {MOST}, got {person}.")
    return person


def person_number(listed: VideoList, number: int) -> int:
    """The number of the person of a track."""
    return (listed.drawn[-number - 1] if number < 0 else _track_of(listed, number)).person


def person_of(listed: VideoList, number: int) -> ListedPerson:
    """What a list says of a person."""
    return next((one for one in listed.people if one.id == number), ListedPerson(number))


def _only(found: Iterable, number: int):
    for one in found:
        if one.id == number:
            return one
    raise ValueError(f"There is no number {number} in the list. Choose again.")


def _face_of(listed: PictureList, number: int) -> ListedFace:
    return _only(listed.faces, number)


def _track_of(listed: VideoList, number: int) -> ListedTrack:
    return _only(listed.tracks, number)


def _face(listed: PictureList, number: int, **values) -> PictureList:
    _face_of(listed, number)
    return replace(listed, faces=tuple(replace(one, **values) if one.id == number else one for one in listed.faces))


def _track(listed: VideoList, number: int, **values) -> VideoList:
    _track_of(listed, number)
    return replace(listed, tracks=tuple(replace(one, **values) if one.id == number else one for one in listed.tracks))


def _person(listed: VideoList, who: ListedPerson) -> VideoList:
    return replace(listed, people=(*(one for one in listed.people if one.id != who.id), who))
