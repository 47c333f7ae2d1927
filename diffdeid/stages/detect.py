"""Stage 1: find the faces of a picture, and which of them can be de-identified."""

from __future__ import annotations

import numpy as np

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.boxes import bounding_box, check_box, intersection_over_union
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.structures import Face

ITS_LANDMARKS = 0.25  # least intersection over union of the box of a given face and that of its landmarks


def detect_faces(
    analyser: FaceAnalyserModel | None, picture: np.ndarray, faces: list[Face] | None = None, threshold: float | None = None
) -> list[Face]:
    """Find the faces of a `(H, W, 3)` uint8 picture, with landmarks where they can be placed; or complete given `faces`.

    `threshold` is the lowest detector score of a face, that of the analyser when `None`.

    Raises:
        ConfigurationError: there is no analyser to find faces with.
        ValueError: a given face has no valid box, so that it could not even be covered.
    """
    faces = None if faces is None else [_believed(face) for face in faces]
    if analyser is not None:
        found = analyser(picture, faces, threshold, any_pose=True)
        return found if faces is None else [_believed(face) for face in found]  # a mesh may drift to a neighbour
    if faces is None:
        raise ConfigurationError("This pipeline has no `face_analyser` to find faces with. Pass `faces`.")
    return faces


def why_covered(face: Face, min_face: float = 0) -> str | None:
    """Why a face cannot be de-identified, or `None` if it can be."""
    if min(face.box[2:] - face.box[:2]) < min_face:
        return f"smaller than {min_face:g} pixels"
    if face.landmarks is None or face.iris is None:
        return "its landmarks could not be placed"
    return None


def _believed(face: Face) -> Face:
    """Drop the landmarks of a given face if they are not finite or do not lie in its box."""
    check_box(np.asarray(face.box))
    points = [part for part in (face.landmarks, face.iris) if part is not None]
    if not all(np.isfinite(part).all() for part in points):
        return Face(face.box, face.score)
    if face.landmarks is not None and intersection_over_union(bounding_box(face.landmarks), face.box) < ITS_LANDMARKS:
        return Face(face.box, face.score)
    return face
