"""What somebody does who looks a photo or video over: lists of faces, corrected step by step. No web framework.

Faces of a photo, and tracks of a video, go by their ids; tracks that were drawn have the numbers -1, -2, …
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from diffdeid.detection import list_faces
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
    VideoList,
    box_at,
    read_face_list,
)
from diffdeid.geometry.boxes import check_box
from diffdeid.io.files import write_whole
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline

SURE, DOUBTFUL, SELECTED = (60, 220, 90), (255, 140, 0), (255, 255, 255)  # colours of boxes
ROW, WIDTH = 16, 900  # pixels of a track in the timeline


def open_list(pipe: DiffDeIDPipeline, file: Path, path: Path, threshold: float | None = None) -> dict[Path, FaceList]:
    """The lists in a file, that of `file` among them: it is searched, at a threshold, if it is not listed yet.

    Raises:
        DiffDeIDError: the file cannot be searched.
        ValueError: the list cannot be read, or not be written again, or `file` is listed, and not at this threshold.
    """
    lists = read_face_list(path) if path.exists() else {}
    if without := [other.name for other, one in lists.items() if one.source is None]:
        raise ValueError(
            f"`{path}` lists `{without[0]}` without a version. Such a line cannot be written again. "
            "Make it anew with `diffdeid detect --json`, or name another list."
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
    """A list says of a video at which threshold it was made, and of a photo nothing."""
    if threshold is not None and (isinstance(listed, PictureList) or threshold != listed.threshold):
        raise ValueError(
            f"`{path}` lists the faces of `{file.name}` already, so they are not searched at the threshold {threshold:g}. "
            "Leave `--threshold` out, or name another list."
        )


def save_list(lists: dict[Path, FaceList], path: Path) -> None:
    """Write lists of faces, each a line."""
    write_whole(path, "".join(json.dumps(one.record(str(file))) + "\n" for file, one in lists.items()).encode())


# What there is to see


def queue(listed: FaceList) -> list[tuple[str, int]]:
    """Words about each face or track, doubtful ones first, and its number."""
    if isinstance(listed, PictureList):
        told = [(bool(face.uncertain), _words_about_face(face), face.id) for face in listed.faces]
    else:
        told = [(bool(track.uncertain), _words_about_track(listed, track), track.id) for track in listed.tracks]
        told += [(False, f"drawn {number}: person {one.person}, frames {one.boxes[0][0]} to {one.boxes[-1][0]}", -number)
                 for number, one in enumerate(listed.drawn, start=1)]  # fmt: skip
    return [(words, number) for _, words, number in sorted(told, key=lambda one: not one[0])]


def _words_about_face(face: ListedFace) -> str:
    said = ["deleted"] * face.deleted + ["KEPT AS IT IS"] * face.keep + [f"candidate {face.candidate}"] * (face.candidate > 0)
    return "; ".join([f"face {face.id}", *said, *face.uncertain])


def _words_about_track(listed: VideoList, track: ListedTrack) -> str:
    who = person_of(listed, track.person)
    said = ["KEPT AS THEY ARE"] * who.keep + [f"candidate {who.candidate}"] * (who.candidate > 0)
    said += [f"deleted {first} to {last}" for first, last in track.deleted]
    said += [f"{reason} ({first} to {last})" for (first, last), reason in track.uncertain]
    return "; ".join([f"track {track.id}: person {track.person}, frames {track.boxes[0][0]} to {track.boxes[-1][0]}", *said])


def boxes_at(listed: FaceList, frame: int = 0) -> dict[int, Box]:
    """The boxes of a picture, or of a frame, by number; without those that are deleted."""
    if isinstance(listed, PictureList):
        return {face.id: face.box for face in listed.faces if not face.deleted}
    paths = {track.id: track.boxes for track in listed.tracks if not any(one <= frame <= end for one, end in track.deleted)}
    paths |= {-number: one.boxes for number, one in enumerate(listed.drawn, start=1)}
    return {number: tuple(box_at(path, frame).tolist()) for number, path in paths.items() if path[0][0] <= frame <= path[-1][0]}


def number_at(listed: FaceList, frame: int, x: float, y: float) -> int | None:
    """Whose box is at a place: the smallest one about it."""
    about = {number: (x1 - x0) * (y1 - y0) for number, (x0, y0, x1, y1) in boxes_at(listed, frame).items()
             if x0 <= x <= x1 and y0 <= y <= y1}  # fmt: skip
    return min(about, key=about.get, default=None)


def draw(picture: np.ndarray, listed: FaceList, frame: int = 0, selected: int | None = None) -> np.ndarray:
    """A copy of a picture `(H, W, 3)` uint8 with numbered boxes."""
    drawn, thickness = picture.copy(), max(1, round(max(picture.shape[:2]) / 500))
    doubtful = {one.id for one in (listed.faces if isinstance(listed, PictureList) else listed.tracks) if one.uncertain}
    for number, box in boxes_at(listed, frame).items():
        (x0, y0), (x1, y1) = np.reshape(box, (2, 2)).round().astype(int).tolist()
        colour = SELECTED if number == selected else DOUBTFUL if number in doubtful else SURE
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, thickness * (2 if number == selected else 1))
        place = (x0, max(y0 - 3 * thickness, 12 * thickness))
        cv2.putText(drawn, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * thickness, colour, thickness)
    return drawn


def timeline(listed: VideoList, frame: int = 0, selected: int | None = None) -> str:
    """A drawing of the tracks, as SVG: a row each, doubtful frames orange, deleted ones empty, and a line at a frame."""
    scale = WIDTH / max(listed.source.frames, 1)
    rows = [(track.id, track.boxes, [span for span, _ in track.uncertain], track.deleted) for track in listed.tracks]
    rows += [(-number, one.boxes, [], []) for number, one in enumerate(listed.drawn, start=1)]
    parts = []
    for row, (number, boxes, doubtful, deleted) in enumerate(rows):
        spans = (
            [((boxes[0][0], boxes[-1][0]), SURE)]
            + [(span, DOUBTFUL) for span in doubtful]
            + [(span, SELECTED) for span in deleted]
        )
        parts += [
            f'<rect x="{50 + first * scale:.1f}" y="{row * ROW + 3}" width="{(last + 1 - first) * scale:.1f}" height="{ROW - 6}" '
            f'fill="rgb{colour}" stroke="grey" stroke-width=".5"/>'
            for (first, last), colour in spans
        ]
        weight = "bold" if number == selected else "normal"
        parts.append(f'<text x="2" y="{row * ROW + 12}" font-size="11" fill="grey" font-weight="{weight}">{number}</text>')
    height, place = max(len(rows), 1) * ROW, 50 + (frame + 0.5) * scale
    parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="0" y2="{height}" stroke="red"/>')
    return f'<svg viewBox="0 0 {WIDTH + 60} {height}" width="100%">{"".join(parts)}</svg>'


# Corrections


def another(listed: FaceList, number: int) -> FaceList:
    """With the next candidate for a face, or for the person of a track."""
    if isinstance(listed, PictureList):
        return _face(listed, number, candidate=_face_of(listed, number).candidate + 1)
    who = person_of(listed, person_number(listed, number))
    return _person(listed, replace(who, candidate=who.candidate + 1))


def keep(listed: FaceList, number: int) -> FaceList:
    """With a face, or the person of a track, left as it is."""
    if isinstance(listed, PictureList):
        return _face(listed, number, keep=True, deleted=False)
    return _person(listed, replace(person_of(listed, person_number(listed, number)), keep=True))


def strike(listed: FaceList, number: int, first: int = 0, last: int = 0) -> FaceList:
    """Without a face; without a track in a range of frames; without a track that was drawn."""
    if isinstance(listed, PictureList):
        return _face(listed, number, keep=False, deleted=True)
    if number < 0:
        return replace(listed, drawn=(*listed.drawn[: -number - 1], *listed.drawn[-number:]))
    if not 0 <= first <= last < listed.source.frames:
        raise ValueError(f"Name frames from 0 to {listed.source.frames - 1}, the first one first, got {first} to {last}.")
    return _track(listed, number, deleted=(*_track_of(listed, number).deleted, (first, last)))


def restore(listed: FaceList, number: int) -> FaceList:
    """With nothing kept or deleted of a face, or of a track and its person."""
    if isinstance(listed, PictureList):
        return _face(listed, number, keep=False, deleted=False)
    listed = _person(listed, replace(person_of(listed, person_number(listed, number)), keep=False))
    return listed if number < 0 else _track(listed, number, deleted=())


def add(listed: FaceList, box: Box, first: int = 0, last: int = 0, person: int | None = None) -> FaceList:
    """With a face that was missed; in a video from one frame to another, as somebody new without a `person`."""
    check_box(np.array(box))
    if isinstance(listed, PictureList):
        return replace(listed, faces=(*listed.faces, ListedFace(max([face.id for face in listed.faces], default=0) + 1, box)))
    if not 0 <= first <= last < listed.source.frames:
        raise ValueError(f"Name frames from 0 to {listed.source.frames - 1}, the first one first, got {first} to {last}.")
    boxes = ((first, box),) if first == last else ((first, box), (last, box))
    known = [one.person for one in (*listed.tracks, *listed.drawn)] + [one.id for one in listed.people]  # some without a track
    person = max(known, default=0) + 1 if person is None else person
    _check_person(person)
    return replace(listed, drawn=(*listed.drawn, DrawnTrack(person, boxes)))


def move(listed: PictureList, number: int, box: Box) -> PictureList:
    """With a face elsewhere."""
    check_box(np.array(box))
    return _face(listed, number, box=box)


def assign(listed: VideoList, number: int, person: int) -> VideoList:
    """With a track that is of another person, known or new."""
    _check_person(person)
    if number < 0:
        drawn = (replace(one, person=person) if row == -number else one for row, one in enumerate(listed.drawn, start=1))
        return replace(listed, drawn=tuple(drawn))
    return _track(listed, number, person=person)


def _check_person(person: int) -> None:
    if not 1 <= person <= MOST:
        raise ValueError(f"People have numbers from 1 to {MOST}, got {person}.")


def person_number(listed: VideoList, number: int) -> int:
    """Whose track it is."""
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
