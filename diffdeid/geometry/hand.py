"""The silhouette of a hand, from its landmarks."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from diffdeid.geometry.mask import SHIFT, fixed_point

FINGERS = tuple((0, *range(first, first + 4)) for first in range(1, 21, 4))  # wrist to tip, MediaPipe's order; the thumb is first
PALM = (0, 1, 2, 5, 9, 13, 17)
THICKNESS = (0.3, 0.24, 0.21, 0.18)  # of the parts of a finger, from the root to the tip, in lengths of the palm


def palm_length(landmarks: np.ndarray) -> float:
    """From wrist to knuckles, in the units of landmarks `(21, 2)`; from its width if the palm is seen from its end."""
    along, across = landmarks[9] - landmarks[0], landmarks[17] - landmarks[5]
    return float(max(np.linalg.norm(along), 1.3 * np.linalg.norm(across)))


def hand_silhouette(landmarks: np.ndarray, size: int) -> np.ndarray:
    """The hand with landmarks `(21, 2)` in a picture of `size` pixels, `(size, size)` uint8, 0 or 1."""
    length, canvas = palm_length(landmarks), np.zeros((size, size), np.uint8)
    points = np.clip(landmarks, -size, 2 * size)

    def draw(start: np.ndarray, end: np.ndarray, thickness: float) -> None:
        ends = fixed_point(np.stack([start, end]))
        cv2.polylines(canvas, [ends], False, 1, max(1, round(min(thickness * length, 255))), cv2.LINE_8, SHIFT)

    for finger in FINGERS:
        for (start, end), thickness in zip(pairwise(finger), THICKNESS, strict=True):
            draw(points[start], points[end], thickness)
    cv2.fillConvexPoly(canvas, fixed_point(cv2.convexHull(np.float32(points[list(PALM)]))[:, 0]), 1, cv2.LINE_8, SHIFT)
    return canvas
