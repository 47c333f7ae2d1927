"""Which detections show the same face.

They do if their landmarks agree, or their boxes if one has no landmarks. A small box in a large one may be somebody else. It is
left out only if nearly all of it is painted or covered together with the other face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from diffdeid.geometry.boxes import bounding_box, intersection_over_union
from diffdeid.geometry.mask import face_region
from diffdeid.structures import Face

SAME_BOX = 0.4  # intersection over union of two boxes about one face
SAME_LANDMARKS = 0.25  # mean distance of the landmarks of one face as seen twice, in face sizes
REACHED = 0.95  # least part of a box inside another face with which it counts as painted or covered along with it
SURE = 0.7  # detector score from which on a detection certainly is a face
NEAR = 0.25  # sizes by which boxes are enlarged; faces whose boxes then still do not touch cannot be the same
RASTER = 64  # pixels of a face, to measure `REACHED`


def same_face(one: Face, other: Face) -> bool:
    """Whether two detections show one face: by their landmarks, or by their boxes where one has none."""
    if one.landmarks is None or other.landmarks is None:
        return intersection_over_union(one.box, other.box) > SAME_BOX
    sizes = [np.ptp(face.landmarks[:, :2], axis=0).max() for face in (one, other)]
    distance = np.linalg.norm((one.landmarks - other.landmarks)[:, :2], axis=1).mean()
    return bool(distance < SAME_LANDMARKS * min(sizes))


def is_reached(face: Face, by: Face) -> bool:
    """Whether nearly all of a face is painted or covered together with another one, so that it can be left out.

    A sure face with landmarks never is: it may be somebody in front, and what is in front of a face stays.
    """
    if face.landmarks is not None and face.score >= SURE:
        return False
    box = face.box if face.landmarks is None else bounding_box(face.landmarks)
    if by.landmarks is None:
        low, high = np.maximum(box[:2], by.box[:2]), np.minimum(box[2:], by.box[2:])
        return bool(np.prod((high - low).clip(0)) > REACHED * np.prod(box[2:] - box[:2]))
    scale = RASTER / max(*(box[2:] - box[:2]), 1e-6)
    width, height = np.ceil((box[2:] - box[:2]) * scale).astype(int).clip(1)
    return bool(face_region((by.landmarks[:, :2] - box[:2]) * scale, (int(height), int(width))).mean() > REACHED)


def whole_box(face: Face) -> np.ndarray:
    """The box `(4,)` of a face and its landmarks."""
    if face.landmarks is None:
        return face.box
    box = bounding_box(face.landmarks)
    return np.concatenate([np.minimum(box[:2], face.box[:2]), np.maximum(box[2:], face.box[2:])])


def is_known(face: Face, others: Iterable[Face]) -> bool:
    """Whether a detection shows one of some other faces, or is painted or covered together with one of them."""
    return any(same_face(face, other) or is_reached(face, other) for other in others)


def merge(faces: Iterable[Face]) -> list[Face]:
    """Detections -> faces, largest first. Of detections of one face, landmarks and then the higher score decide."""
    kept = _without_known(sorted(faces, key=lambda face: (face.landmarks is None, -face.score)), is_known)
    return sorted(kept, key=lambda face: -np.prod(face.box[2:] - face.box[:2]))


def suppress(faces: Iterable[Face]) -> list[Face]:
    """Greedy non-maximum suppression, best first. A box in a larger one stays: it may be somebody else."""
    best_first = sorted(faces, key=lambda face: -face.score)
    return _without_known(best_first, lambda face, others: any(same_face(face, other) for other in others))


def _without_known(faces: Iterable[Face], known: Callable[[Face, list[Face]], bool]) -> list[Face]:
    """Leave out faces that are known by the ones before them; compares only faces nearby, because crowds are large."""
    kept: list[Face] = []
    boxes = np.empty((0, 4))
    for face in faces:
        box = whole_box(face).astype(np.float64)
        box = box + NEAR * max(box[2:] - box[:2]) * np.array([-1, -1, 1, 1])
        near = ((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1)
        if not known(face, [kept[row] for row in np.flatnonzero(near)]):
            kept.append(face)
            boxes = np.concatenate([boxes, box[None]])
    return kept
