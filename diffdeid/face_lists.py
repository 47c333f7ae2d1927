"""Lists of the faces of pictures: `diffdeid detect` makes them, people edit them, `--faces` takes them back.

A list is a file of JSON lines, one a picture: `{"input": …, "faces": [{"box": [x0, y0, x1, y1], …}, …]}`. A box is all that a
face needs to be taken back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from diffdeid.geometry.boxes import check_box
from diffdeid.geometry.mask import SHIFT, fixed_point
from diffdeid.io.images import check_writable, read_image, write_image
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Face

REPLACEABLE, COVERED = (60, 220, 90), (255, 140, 0)  # colours of the boxes that are drawn


def list_faces(
    pipe: DiffDeIDPipeline,
    files: Mapping[Path, Path | None],
    threshold: float | None = None,
    overwrite: bool = False,
) -> Iterator[dict[str, Any]]:
    """Look for the faces of pictures, and change none of these: a record for each; errors become records as well.

    Args:
        files: pictures, each with the file that its drawing is written to, if any.
        threshold: lowest detector score of a face; that of the face analyser when `None`.
        overwrite: replace existing drawings.
    """
    for file, drawing in files.items():
        record: dict[str, Any] = {"input": str(file), "error": None, "faces": []}
        try:
            if drawing is not None:
                check_writable(drawing, False, overwrite)
            image = read_image(file).image
            faces = pipe.detect_faces(np.asarray(image), threshold=threshold)
            record["faces"] = [describe(face) for face in faces]
            if drawing is not None:
                drawing.parent.mkdir(parents=True, exist_ok=True)
                write_image(drawing, Image.fromarray(draw(np.asarray(image), faces)), overwrite=overwrite)
        except Exception as error:  # it must not stop the others
            record |= {"error": str(error) or type(error).__name__, "faces": []}
        yield record


def describe(face: Face) -> dict[str, Any]:
    """A face as JSON: its box in pixels, its score, and why it would be covered (`null`: it can be replaced)."""
    return {
        "box": [round(float(value), 1) for value in face.box],
        "score": round(float(face.score), 3),
        "covered": why_covered(face),
    }


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


def read_face_list(path: Path) -> dict[Path, list[Face]]:
    """The faces of each picture of a list.

    Raises:
        ValueError: the file is no such list; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is no UTF-8 text, in which lists of faces are written (some shells write UTF-16).") from error
    listed: dict[Path, list[Face]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file, error, faces = Path(entry["input"]).resolve(), entry.get("error"), [_face(one) for one in _list(entry["faces"])]
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"Line {number} of `{path}` is not as `detect --json` writes it ({type(error).__name__}: {error}). Write "
                '{"input": "photo.jpg", "faces": [{"box": [x0, y0, x1, y1]}, …]}, with x0 < x1 and y0 < y1.'
            ) from error
        if error:
            raise ValueError(f"Line {number} of `{path}` has an error instead of the faces of `{file.name}`. Remove it.")
        if file in listed and not _equal(faces, listed[file]):
            raise ValueError(f"Line {number} of `{path}` lists other faces of `{file}` again. Keep one line for each picture.")
        listed[file] = faces
    return listed


def _face(entry: dict[str, Any]) -> Face:
    box, score = np.array([float(value) for value in _list(entry["box"])]), float(entry.get("score", 1.0))
    check_box(box)
    if not np.isfinite(score):
        raise ValueError(f"the score is {score}")
    return Face(box.astype(np.float32), score)


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _equal(some: Sequence[Face], others: Sequence[Face]) -> bool:
    """A file and a link to it have the same faces."""
    return [one.box.tolist() for one in some] == [one.box.tolist() for one in others]
