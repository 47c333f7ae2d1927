"""Originals: which pictures there are, whom they show, which of them attackers have, and their examined faces."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffdeid.errors import DiffDeIDError
from diffdeid.evaluation.examiner import SAME_PLACE, ExaminedFace, Examiner, each
from diffdeid.evaluation.memory import Memory
from diffdeid.geometry.boxes import intersection_over_union
from diffdeid.io.images import IMAGE_SUFFIXES, read_image
from diffdeid.structures import Face


@dataclass(frozen=True)
class RealPicture:
    """An original and its faces.

    Attributes:
        path: the file.
        person: whom the largest face shows.
        gallery: whether the picture is what attackers have of that person.
        faces: all faces found or annotated.
        examined: the largest face with landmarks, `None` if there is none.
    """

    path: Path
    person: str
    gallery: bool
    faces: list[Face]
    examined: ExaminedFace | None


def list_pictures(folder: Path) -> dict[str, Path]:
    """The pictures below a folder by name: their path in it without suffix and without `_anonymized`."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    named = {path.relative_to(folder).with_suffix("").as_posix().removesuffix("_anonymized"): path for path in paths}
    if not named:
        raise DiffDeIDError(f"`{folder}` holds no picture.")
    if len(named) < len(paths):
        raise DiffDeIDError(f"`{folder}` holds pictures that differ in their suffix only. Keep one of each.")
    return named


def identify(names: Sequence[str], identities: str | Path | None) -> dict[str, str]:
    """Whom the pictures show.

    Args:
        names: of the pictures, see `list_pictures`.
        identities: "folders": the folder that a picture lies in is the person; "names": its name up to the last underscore is the
            person; a CSV file with the columns `picture` and `person`; or `None`: each picture shows another person.

    Raises:
        DiffDeIDError: a picture has no person.
    """
    if identities is None:
        return {name: name for name in names}
    if identities == "folders":
        people = {name: str(Path(name).parent) for name in names}
        if "." in people.values():
            raise DiffDeIDError("With `--identities folders` each picture must lie in a folder of its person.")
        return people
    if identities == "names":
        return {name: name.rpartition("_")[0] or name for name in names}
    with Path(identities).open(newline="") as file:
        rows = {Path(row["picture"]).with_suffix("").as_posix(): row["person"] for row in csv.DictReader(file)}
    missing = [name for name in names if name not in rows]
    if missing:
        raise DiffDeIDError(f"`{identities}` names no person for {len(missing)} pictures, the first is `{missing[0]}`.")
    return {name: rows[name] for name in names}


def choose_gallery(people: dict[str, str]) -> set[str]:
    """The pictures that attackers have: the first of every person, by name."""
    first: dict[str, str] = {}
    for name in sorted(people):
        first.setdefault(people[name], name)
    return set(first.values())


def choose_probes(people: dict[str, str]) -> list[str]:
    """The pictures to recognise in the gallery: all others, and for people with only one picture that one."""
    gallery, counts = choose_gallery(people), {}
    for person in people.values():
        counts[person] = counts.get(person, 0) + 1
    return [name for name in sorted(people) if name not in gallery or counts[people[name]] == 1]


def read_boxes(path: Path) -> dict[str, list[Face]]:
    """Read annotated faces by picture: a CSV file with the columns `picture`, `x0`, `y0`, `x1`, `y1` (pixels)."""
    boxes: dict[str, list[Face]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            box = np.array([float(row[side]) for side in ("x0", "y0", "x1", "y1")], np.float32)
            boxes.setdefault(Path(row["picture"]).with_suffix("").as_posix(), []).append(Face(box))
    return boxes


def read_originals(
    pictures: dict[str, Path],
    people: dict[str, str],
    examiner: Examiner,
    memory: Memory,
    boxes: dict[str, list[Face]] | None = None,
) -> dict[str, RealPicture]:
    """Examine all originals, once for all methods; `boxes` are annotated faces, which count besides those found."""
    gallery, originals = choose_gallery(people), {}
    names = list(pictures)
    seen = each(
        lambda name: memory.recall(f"originals/{name}", lambda: _look(pictures[name], examiner), pictures[name]),
        names,
        "originals",
    )
    for name, (faces, examined) in zip(names, seen, strict=True):
        annotated = [] if boxes is None else boxes.get(name, [])
        missed = [face for face in annotated if all(intersection_over_union(face.box, other.box) < SAME_PLACE for other in faces)]
        originals[name] = RealPicture(pictures[name], people[name], name in gallery, faces + missed, examined)
    return originals


def _look(path: Path, examiner: Examiner) -> tuple[list[Face], ExaminedFace | None]:
    picture = np.asarray(read_image(path).image)
    faces = examiner.analyser(picture)
    placed = next((face for face in faces if face.iris is not None), None)
    if placed is None:
        return faces, None
    return faces, replace(examiner.describe(picture, placed), surroundings=examiner.look_around(picture, placed, faces))
