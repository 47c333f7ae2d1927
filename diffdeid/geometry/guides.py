"""Drawings that show the network where features are: feature lines, and the openings of eyes and mouth.

All take landmarks `(468, 2+)` in crop pixels and give `(size, size)` float32 pictures in 0…1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
from diffdeid.geometry.mask import SHIFT, fixed_point

CLOSED_LINES = (RIGHT_EYE, LEFT_EYE, RIGHT_BROW, LEFT_BROW, LIPS_OUTER, LIPS_INNER)
OPEN_LINES = (NOSE_BRIDGE, NOSE_BASE)
IRIS_RADIUS = 0.21  # of the eye's width: 11.7 mm across a 28 mm opening


def feature_lines(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Brows, eyes, nose and lips as anti-aliased lines."""
    canvas = np.zeros((size, size), np.uint8)
    thickness = max(1, round(size / 128))
    for line in CLOSED_LINES + OPEN_LINES:
        cv2.polylines(canvas, [fixed_point(landmarks[list(line)])], line in CLOSED_LINES, 255, thickness, cv2.LINE_AA, SHIFT)
    return canvas.astype(np.float32) / 255


def openings(landmarks: np.ndarray, gaze: np.ndarray, size: int) -> np.ndarray:
    """The openings of eyes and mouth (0.5), with the iris discs (1) where ω `(4,)` points, on 0."""
    return np.maximum(eye_map(landmarks, gaze, size), mouth_map(landmarks, size))


def mouth_map(landmarks: np.ndarray, size: int) -> np.ndarray:
    """What lies between the lips (0.5) on 0; of a closed mouth a line is left."""
    lower, upper = LIPS_INNER[:11], (*LIPS_INNER[:1], *LIPS_INNER[:9:-1])  # both from corner to corner
    parts = zip(lower[:-1], lower[1:], upper[1:], upper[:-1], strict=True)
    # A part at a time, because in profile the far half of the mouth lies over the near half.
    return _filled(landmarks, parts, size).astype(np.float32) / 255


def eye_map(landmarks: np.ndarray, gaze: np.ndarray, size: int) -> np.ndarray:
    """Eye openings (0.5) with the iris discs (1) where ω `(4,)` points, on 0."""
    canvas = np.zeros((size, size), np.uint8)
    for contour, (right, left), (x, y) in zip((RIGHT_EYE, LEFT_EYE), EYE_CORNERS, np.reshape(gaze, (2, 2)), strict=True):
        opening = _filled(landmarks, [contour], size)
        start, end = landmarks[right, :2], landmarks[left, :2]
        along = end - start
        across = np.array([-along[1], along[0]])
        centre = (start + end) / 2 + x * along + y * across
        radius = round(float(IRIS_RADIUS * np.linalg.norm(along)) * (1 << SHIFT))
        disc = np.zeros_like(canvas)
        cv2.circle(disc, fixed_point(centre).tolist(), radius, 255, -1, cv2.LINE_AA, SHIFT)
        canvas = np.maximum(canvas, np.maximum(opening, np.minimum(disc, opening * (255 / 128)).astype(np.uint8)))
    return canvas.astype(np.float32) / 255


def _filled(landmarks: np.ndarray, contours: Iterable[Sequence[int]], size: int) -> np.ndarray:
    """What lies within any of several contours of landmarks, 128 on 0, uint8."""
    canvas = np.zeros((size, size), np.uint8)
    for contour in contours:
        cv2.fillPoly(canvas, [fixed_point(landmarks[list(contour)])], 128, cv2.LINE_AA, SHIFT)
    return canvas
