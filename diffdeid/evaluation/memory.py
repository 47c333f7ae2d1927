"""Store examined faces, so that an interrupted evaluation can go on: one file per picture, deleted when it is complete.

The files hold embeddings of faces. They lie in the report's folder, which is the user's, and nowhere else.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffdeid.evaluation.examiner import ExaminedFace
from diffdeid.io.files import write_whole
from diffdeid.structures import Face

Seen = tuple[list[Face], ExaminedFace | None]  # all faces of a picture (boxes alone), and the one that was examined


class Memory:
    """Keeps what the networks of these names saw, in a folder; without a folder it keeps nothing."""

    def __init__(self, folder: Path | None, networks: Sequence[str]):
        self.folder, self.networks = folder, networks

    def recall(self, key: str, look: Callable[[], Seen], *files: Path) -> Seen:
        """What was stored under `key` for files with the same bytes; otherwise what `look` sees now, which is stored."""
        if self.folder is None:
            return look()
        contents = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
        path = self.folder / f"{key}-{hashlib.sha256(repr((contents, self.networks)).encode()).hexdigest()[:16]}.npz"
        if path.exists():
            with np.load(path) as arrays:
                return _unpack(dict(arrays))
        seen = look()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.savez(file, **_pack(*seen))
        write_whole(path, file.getbuffer())
        return seen

    def forget(self) -> None:
        """Delete everything that was stored."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _pack(faces: list[Face], examined: ExaminedFace | None) -> dict[str, np.ndarray]:
    arrays = {"boxes": np.array([face.box for face in faces], np.float32).reshape(-1, 4)}
    if examined is None:
        return arrays
    face = examined.face
    arrays |= {"box": face.box, "landmarks": face.landmarks, "iris": face.iris, "found": np.array(examined.found)}
    arrays |= {"coefficients": examined.coefficients, "emotion": examined.emotion}
    arrays |= {"age": np.array(examined.age), "femininity": np.array(examined.femininity)}
    arrays |= {f"by {name}": vector for name, vector in examined.embeddings.items()}
    return arrays | {f"around by {name}": vector for name, vector in examined.surroundings.items()}


def _unpack(arrays: dict[str, np.ndarray]) -> Seen:
    faces = [Face(box) for box in arrays["boxes"]]
    if "box" not in arrays:
        return faces, None
    face = Face(arrays["box"], landmarks=arrays["landmarks"], iris=arrays["iris"])
    embeddings, around = (
        {name.removeprefix(start): vector for name, vector in arrays.items() if name.startswith(start)}
        for start in ("by ", "around by ")
    )
    found, age, femininity = bool(arrays["found"]), float(arrays["age"]), float(arrays["femininity"])
    return faces, ExaminedFace(face, found, embeddings, arrays["coefficients"], arrays["emotion"], age, femininity, around)
