"""The surroundings of a face: the crop for the context encoder, from which all faces are erased."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from diffdeid.geometry.align import ffhq_matrix, warp
from diffdeid.geometry.boxes import part_of
from diffdeid.geometry.composite import footprint
from diffdeid.geometry.cover import cover_box
from diffdeid.geometry.mask import face_region
from diffdeid.structures import Face

SURROUNDINGS_FACTOR = 0.9  # side of the crop in FFHQ squares: as wide as the training crops
SURROUNDINGS_SIZE = 224  # pixels, as EfficientNet-Lite0 was trained
ERASED = 127  # grey level of what is erased
SAFETY = 2  # picture pixels erased beyond the region that is painted anew, so that rounding uncovers no pixel of a face
REACH = 4  # picture pixels that interpolation takes into account beyond the crop


def surroundings(picture: np.ndarray, face: Face, others: Sequence[Face] = (), size: int = SURROUNDINGS_SIZE) -> np.ndarray:
    """The crop around a face without the face, and without any other face.

    The faces are erased in the picture, before it is resampled and before its border is mirrored. So no pixel of them can reach
    the crop by interpolation or by reflection.

    Args:
        picture: `(H, W, 3)` uint8 RGB.
        face: a face with landmarks.
        others: other faces of the picture, which are erased too; `face` may be among them. Those that cannot be painted anew are
            erased as far as a cover would hide them.
        size: side of the crop in pixels.

    Returns:
        `(size, size, 3)` uint8 RGB.
    """
    matrix = ffhq_matrix(face.landmarks, size, SURROUNDINGS_FACTOR)
    region, origin = part_of(picture, footprint(matrix, size) + [-REACH, -REACH, REACH, REACH])
    if region.size == 0:
        return np.full((size, size, 3), ERASED, np.uint8)
    region, end = region.copy(), origin + region.shape[1::-1]
    for one in (face, *others):
        box = cover_box(one)
        margin = REACH + max(box[2:] - box[:2]) / 4
        if (box[:2] - margin < end).all() and (box[2:] + margin > origin).all():  # in a crowd most are elsewhere
            region[_erased(one, origin, region.shape[:2])] = ERASED
    matrix[:, 2] += matrix[:, :2] @ origin
    return warp(region, matrix, size)


def _erased(face: Face, origin: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where a face is, in a part of the picture of `shape` (height, width) that begins at `origin`, bool."""
    if face.landmarks is not None and face.iris is not None:
        region = face_region(face.landmarks[:, :2] - origin, shape)
        return cv2.dilate(region, np.ones((2 * SAFETY + 1, 2 * SAFETY + 1))) > 0
    mask = np.zeros(shape, bool)
    covered, _ = part_of(mask, cover_box(face) - [*origin, *origin])
    covered[:] = True
    return mask
