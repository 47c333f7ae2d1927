"""Drawings that tell the network what lies where: feature lines, eyes, and the mask M_mask of what is erased.

All take landmarks `(468, 2+)` in crop pixels and give `(size, size)` float32 pictures in 0…1.
"""

from __future__ import annotations

import cv2
import numpy as np

from diffdeid.geometry.landmarks import (
    EYE_CORNERS,
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    NOSE_BASE,
    NOSE_BRIDGE,
    RIGHT_BROW,
    RIGHT_EYE,
)

CLOSED_LINES = (RIGHT_EYE, LEFT_EYE, RIGHT_BROW, LEFT_BROW, LIPS_OUTER, LIPS_INNER)
OPEN_LINES = (NOSE_BRIDGE, NOSE_BASE)
MASK_MARGIN = 0.07  # of the face's height, so that another head shape fits
MOUTH_MARGIN = 0.015
IRIS_RADIUS = 0.21  # of the eye's width: 11.7 mm across a 28 mm opening
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round((points[..., :2] - 0.5) * (1 << _SHIFT)).astype(np.int32)


def feature_lines(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Brows, eyes, nose and lips as anti-aliased lines."""
    canvas = np.zeros((size, size), np.uint8)
    thickness = max(1, round(size / 128))
    for line in CLOSED_LINES + OPEN_LINES:
        cv2.polylines(canvas, [_fixed_point(landmarks[list(line)])], line in CLOSED_LINES, 255, thickness, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def eye_map(landmarks: np.ndarray, gaze: np.ndarray, size: int) -> np.ndarray:
    """Eye openings (0.5) with the iris discs (1) where ω `(4,)` points, on 0."""
    canvas = np.zeros((size, size), np.uint8)
    for contour, (right, left), (x, y) in zip((RIGHT_EYE, LEFT_EYE), EYE_CORNERS, np.reshape(gaze, (2, 2)), strict=True):
        opening = np.zeros_like(canvas)
        cv2.fillPoly(opening, [_fixed_point(landmarks[list(contour)])], 128, cv2.LINE_AA, _SHIFT)
        start, end = landmarks[right, :2], landmarks[left, :2]
        along = end - start
        across = np.array([-along[1], along[0]])
        centre = (start + end) / 2 + x * along + y * across
        radius = round(float(IRIS_RADIUS * np.linalg.norm(along)) * (1 << _SHIFT))
        disc = np.zeros_like(canvas)
        cv2.circle(disc, _fixed_point(centre).tolist(), radius, 255, -1, cv2.LINE_AA, _SHIFT)
        canvas = np.maximum(canvas, np.maximum(opening, np.minimum(disc, opening * (255 / 128)).astype(np.uint8)))
    return canvas.astype(np.float32) / 255


def face_region(landmarks: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The whole face: hull of all landmarks, grown by `MASK_MARGIN`. Values 0 or 1; `size` may be (height, width)."""
    points = landmarks[:, :2]
    return _grown_hull(points, MASK_MARGIN * _face_height(points), size)


def mouth_region(landmarks: np.ndarray, size: int) -> np.ndarray:
    """The lips and what lies between them, grown a little. Values 0 or 1."""
    points = landmarks[:, :2]
    return _grown_hull(points[list(LIPS_OUTER)], MOUTH_MARGIN * _face_height(points), size)


def depth_in(mask: np.ndarray) -> np.ndarray:
    """How deep in the region of a mask `(S, S)` each pixel lies, in pixels; the border of the picture is an edge too."""
    return cv2.distanceTransform(np.pad((mask > 0).astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]


def _face_height(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[10] - points[152]))


def _grown_hull(points: np.ndarray, margin: float, size: int | tuple[int, int]) -> np.ndarray:
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    canvas = np.zeros((size, size) if isinstance(size, int) else size, np.uint8)
    fixed = _fixed_point(hull)
    cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_8, _SHIFT)
    cv2.polylines(canvas, [fixed], True, 255, max(1, round(2 * margin)), cv2.LINE_8, _SHIFT)  # a thick outline grows the hull
    return (canvas > 0).astype(np.float32)
