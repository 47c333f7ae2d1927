"""Lists of faces: `diffdeid detect` writes them, people correct them, `anonymize --faces` takes them back. See docs/faces.md.

A list is a file of JSON lines, one for each picture or video. A face stays only where its entry says so. A line is an
error if it is damaged, belongs to another file, or has an unknown version.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from diffdeid.geometry.boxes import check_box

VERSION = 1
MOST = 2**20  # numbers of faces, people, candidates and frames are smaller

Box = tuple[float, float, float, float]
Range = tuple[int, int]  # first and last frame, both included


@dataclass(frozen=True)
class Source:
    """The file that a list belongs to.

    Attributes:
        fingerprint: of its content, see `io.files.fingerprint`.
        width, height: of its upright pictures, in pixels.
        frames: how many a video has; 0 for a picture.
    """

    fingerprint: str
    width: int
    height: int
    frames: int = 0


@dataclass(frozen=True)
class ListedFace:
    """A face of a picture.

    Attributes:
        id: counts from 1. It never changes when other faces do, because the new person is drawn by it.
        box: x0, y0, x1, y1 in pixels.
        candidate: which of the new people that can be drawn for the face it gets, from 0.
        keep: the face is left as it is.
        deleted: the detection is wrong; there is no face.
        score: of the detector, 0…1.
        covered: why the face could only be covered, else `None`.
        uncertain: why somebody should look at the face.
    """

    id: int
    box: Box
    candidate: int = 0
    keep: bool = False
    deleted: bool = False
    score: float = 1.0
    covered: str | None = None
    uncertain: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {
            "id": self.id,
            "box": list(self.box),
            "candidate": self.candidate,
            "keep": self.keep,
            "deleted": self.deleted,
            "score": self.score,
            "covered": self.covered,
            "uncertain": list(self.uncertain),
        }


@dataclass(frozen=True)
class PictureList:
    """The faces of a picture.

    Attributes:
        faces: all that were found, deleted ones too, and those that somebody has drawn.
        found: how many faces were found; their ids are 1 … `found`.
        source: the file; `None` for a list without a version, which does not describe it.
        seed: of the new people; `None` for fresh randomness.
    """

    faces: tuple[ListedFace, ...]
    found: int = 0
    source: Source | None = None
    seed: int | None = None

    @property
    def num_deleted(self) -> int:
        """How many faces are marked as deleted."""
        return sum(face.deleted for face in self.faces)

    def record(self, file: str) -> dict[str, Any]:
        """The entry of the file with this name, as a JSON object."""
        return _head(file, self.source, self.seed) | {"found": self.found, "faces": [face.record() for face in self.faces]}


@dataclass(frozen=True)
class ListedPerson:
    """Somebody in a video: `id` from 1, `candidate` and `keep` as those of a `ListedFace`."""

    id: int
    candidate: int = 0
    keep: bool = False

    def record(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {"id": self.id, "candidate": self.candidate, "keep": self.keep}


@dataclass(frozen=True)
class ListedTrack:
    """A face that was followed through a video without interruption.

    Attributes:
        id: from 1, in order of appearance.
        person: the id of the person whose face it is.
        boxes: key frames, among them the first and the last frame, and the box in each; between them boxes move linearly.
        deleted: frames in which there is no face.
        score: of the detector when the track began.
        uncertain: frames that somebody should look at, and why.
    """

    id: int
    person: int
    boxes: tuple[tuple[int, Box], ...]
    deleted: tuple[Range, ...] = ()
    score: float = 1.0
    uncertain: tuple[tuple[Range, str], ...] = ()

    def record(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {
            "id": self.id,
            "person": self.person,
            "deleted": [list(frames) for frames in self.deleted],
            "score": self.score,
            "uncertain": [{"frames": list(frames), "reason": reason} for frames, reason in self.uncertain],
            "boxes": [[frame, *box] for frame, box in self.boxes],
        }


@dataclass(frozen=True)
class DrawnTrack:
    """Boxes that somebody has drawn into a video where a face was missed: key frames, as those of a `ListedTrack`."""

    person: int
    boxes: tuple[tuple[int, Box], ...]

    def record(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return {"person": self.person, "boxes": [[frame, *box] for frame, box in self.boxes]}


@dataclass(frozen=True)
class VideoList:
    """The faces of a video.

    Attributes:
        source: the file.
        tracks: all that were found.
        people: entries of people; who has no entry is drawn first and not kept.
        drawn: boxes that somebody has drawn where a face was missed.
        threshold: of the search for faces.
        seed: of the new people; `None` for fresh randomness.
    """

    source: Source
    tracks: tuple[ListedTrack, ...]
    people: tuple[ListedPerson, ...] = ()
    drawn: tuple[DrawnTrack, ...] = ()
    threshold: float | None = None
    seed: int | None = None

    @property
    def num_deleted(self) -> int:
        """How many tracks are deleted, at least in part."""
        return sum(bool(track.deleted) for track in self.tracks)

    def record(self, file: str) -> dict[str, Any]:
        """The entry of the file with this name, as a JSON object."""
        parts = {name: [one.record() for one in getattr(self, name)] for name in ("people", "tracks", "drawn")}
        return _head(file, self.source, self.seed) | {"threshold": self.threshold} | parts


FaceList = PictureList | VideoList


def box_at(boxes: Sequence[tuple[int, Box]], frame: int) -> np.ndarray:
    """The box `(4,)` in a frame, interpolated between the key frames around it."""
    frames, places = zip(*boxes, strict=True)
    return np.array([np.interp(frame, frames, side) for side in zip(*places, strict=True)])


def refuse_stale(listed: FaceList, source: Source) -> None:
    """Raise `ValueError` if a list was made for another file, or for an older version of this one."""
    if listed.source not in (None, source):
        raise ValueError(
            f"The list of faces belongs to another file: that has {listed.source.width}×{listed.source.height} pixels and the "
            f"fingerprint {listed.source.fingerprint}, this one has {source.width}×{source.height} pixels and the fingerprint "
            f"{source.fingerprint}. Make the list again with `diffdeid detect`."
        )


# Reading


def read_face_list(path: Path) -> dict[Path, FaceList]:
    """Read a list of faces.

    Returns:
        The entry of each file, by its resolved path.

    Raises:
        ValueError: the file is not such a list; the message names the line.
        OSError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not UTF-8 text, as lists must be. Some shells write UTF-16: convert it.") from error
    listed: dict[Path, FaceList] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_without_twins, parse_constant=_no_number)
            file, one = _read(entry)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            wrong = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(
                f"Line {number} of `{path}` is not as `diffdeid detect --json` writes it, see docs/faces.md: {wrong}. "
                "Correct the line, or make the list again."
            ) from error
        if file in listed and listed[file] != one:  # a file and a link to it are one
            raise ValueError(f"Line {number} of `{path}` lists `{file}` again, with other faces. Keep one line for each file.")
        listed[file] = one
    return listed


def _read(entry: dict[str, Any]) -> tuple[Path, FaceList]:
    file = Path(_text(_fields(entry)["input"])).resolve()
    if entry.get("error"):
        raise ValueError(f"it holds an error instead of the faces of `{file.name}`; remove it")
    if "version" not in entry:
        return file, _read_unversioned(entry)
    if _whole(entry.pop("version")) != VERSION:
        raise ValueError(f"its version is not {VERSION}, the one that this program reads")
    entry.pop("input"), entry.pop("error", None), entry.pop("rate", None)
    source = Source(_text(entry.pop("fingerprint")), _whole(entry.pop("width")), _whole(entry.pop("height")))
    if "faces" in entry:
        return file, _read_picture(entry, source)
    return file, _read_video(entry, replace(source, frames=_whole(entry.pop("frames"), 1)))


def _read_unversioned(entry: dict[str, Any]) -> PictureList:
    """A list of the first kind, with the boxes of a picture only: what is not listed is not a face."""
    faces = _list(entry["faces"])
    if "fingerprint" in entry or any({"id", "candidate", "keep", "deleted"} & face.keys() for face in faces):
        raise ValueError(f'"version": {VERSION} is missing')
    boxes = [(_box(face["box"]), _number(face.get("score", 1.0))) for face in faces]
    return PictureList(tuple(ListedFace(number, box, score=score) for number, (box, score) in enumerate(boxes, start=1)))


def _read_picture(entry: dict[str, Any], source: Source) -> PictureList:
    parts = {"found": _whole, "faces": _several(_fields), "seed": _optional(_seed)}
    parts = _fields(entry, parts, required={"found", "faces"})
    kinds = {
        "id": partial(_whole, least=1), "box": _box, "candidate": _whole, "keep": _flag, "deleted": _flag, "score": _number,
        "covered": _optional(_text), "uncertain": _several(_text),
    }  # fmt: skip
    faces = [_fields(face, kinds, {"box"}) for face in parts.pop("faces")]
    _refuse_twins(face["id"] for face in faces if "id" in face)
    free = count(max([parts["found"], *(face["id"] for face in faces if "id" in face)]) + 1)
    faces = tuple(ListedFace(**{"id": face["id"] if "id" in face else next(free)} | face) for face in faces)
    if missing := set(range(1, parts["found"] + 1)) - {face.id for face in faces}:
        raise ValueError(f'face {min(missing)} is not listed; mark a wrong detection with "deleted": true instead of removing it')
    if both := [face.id for face in faces if face.keep and face.deleted]:
        raise ValueError(f"face {both[0]} is marked as kept and as deleted; choose one of both")
    return PictureList(faces, source=source, **parts)


def _read_video(entry: dict[str, Any], source: Source) -> VideoList:
    frame, identifier = partial(_whole, most=source.frames - 1), partial(_whole, least=1)
    several = {"tracks": _several(_fields), "people": _several(_fields), "drawn": _several(_fields)}
    parts = _fields(entry, several | {"threshold": _optional(_number), "seed": _optional(_seed)}, {"tracks"})
    track = {
        "id": identifier, "person": identifier, "deleted": _several(partial(_range, frame=frame)), "score": _number,
        "uncertain": _several(partial(_doubt, frame=frame)), "boxes": partial(_path, frame=frame),
    }  # fmt: skip
    tracks = tuple(ListedTrack(**_fields(one, track, {"id", "person", "boxes"})) for one in parts.pop("tracks"))
    drawn = tuple(DrawnTrack(**_fields(one, {"person": identifier, "boxes": track["boxes"]}, {"person", "boxes"}))
                  for one in parts.pop("drawn", ()))  # fmt: skip
    person = {"id": identifier, "candidate": _whole, "keep": _flag}
    people = tuple(ListedPerson(**_fields(one, person, {"id"})) for one in parts.pop("people", ()))
    _refuse_twins(one.id for one in tracks)
    _refuse_twins(one.id for one in people)
    return VideoList(source, tracks, people, drawn, **parts)


# Values


def _fields(entry: Any, kinds: dict[str, Callable] | None = None, required: set[str] = frozenset()) -> dict[str, Any]:
    """Read the fields of a JSON object by the readers in `kinds`; unknown fields are refused, as they are likely typos."""
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r} is not an object in braces")
    if kinds is None:
        return entry
    if missing := required - entry.keys():
        raise KeyError(min(missing))
    if unknown := entry.keys() - kinds.keys():
        raise ValueError(f"{min(unknown)!r} is not a known field; known are {', '.join(map(repr, kinds))}")
    return {name: kinds[name](value) for name, value in entry.items()}


def _several(kind: Callable) -> Callable:
    return lambda value: tuple(kind(one) for one in _list(value))


def _optional(kind: Callable) -> Callable:
    return lambda value: None if value is None else kind(value)


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _whole(value: Any, least: int = 0, most: int = MOST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
    return value


_seed = partial(_whole, least=-(2**63), most=2**63 - 1)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not np.isfinite(float(value)):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _box(value: Any) -> Box:
    box = tuple(_number(side) for side in _list(value))
    check_box(np.array(box))
    return box


def _range(value: Any, frame: Callable) -> Range:
    first, last = map(frame, _list(value))
    if last < first:
        raise ValueError(f"the frames {value!r} end before they begin")
    return first, last


def _doubt(value: Any, frame: Callable) -> tuple[Range, str]:
    entry = _fields(value, {"frames": partial(_range, frame=frame), "reason": _text}, {"frames", "reason"})
    return entry["frames"], entry["reason"]


def _path(value: Any, frame: Callable) -> tuple[tuple[int, Box], ...]:
    boxes = [(frame(one[0]), _box(one[1:])) for one in map(_list, _list(value))]
    frames = [number for number, _ in boxes]
    if not frames or any(after <= before for before, after in zip(frames, frames[1:], strict=False)):
        raise ValueError(f"there must be at least one key frame, and their numbers must ascend, got {frames}")
    return tuple(boxes)


def _refuse_twins(identifiers: Any) -> None:
    if twins := [one for one, times in Counter(identifiers).items() if times > 1]:
        raise ValueError(f"several entries have the id {twins[0]}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing one that names a field twice."""
    if twins := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise ValueError(f"{twins[0]!r} appears twice")
    return dict(pairs)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _head(file: str, source: Source | None, seed: int | None) -> dict[str, Any]:
    if source is None:
        raise ValueError("A list without a version does not describe its file. Make it again with `diffdeid detect`.")
    size = {"width": source.width, "height": source.height} | ({"frames": source.frames} if source.frames else {})
    return {"version": VERSION, "input": file, "error": None, "fingerprint": source.fingerprint} | size | {"seed": seed}
