"""The erased region of a crop, M_mask. Pixels in it never reach the networks that paint; training uses the same functions.

The regions take landmarks `(468, 2+)` in the pixels of the picture, and give float32 pictures of the values 0 and 1; `size` is
the side of a square, or (height, width).
"""

from __future__ import annotations

import cv2
import numpy as np

from diffdeid.geometry.landmarks import LIPS_OUTER

MASK_MARGIN = 0.07  # of the face's height, so that another head shape fits
MOUTH_MARGIN = 0.015
SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


def erased(landmarks: np.ndarray, size: int, keep_mouth: bool = False) -> np.ndarray:
    """The erased region: the face, without the mouth if that is kept."""
    face = face_region(landmarks, size)
    return face * (1 - mouth_region(landmarks, size)) if keep_mouth else face


def face_region(landmarks: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The whole face: hull of all landmarks, grown by `MASK_MARGIN`."""
    points = landmarks[:, :2]
    return grown_hull(points, MASK_MARGIN * face_height(points), size)


def mouth_region(landmarks: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The lips and what lies between them, grown a little."""
    points = landmarks[:, :2]
    return grown_hull(points[list(LIPS_OUTER)], MOUTH_MARGIN * face_height(points), size)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """How deep inside the region of a mask `(S, S)` each pixel lies, in pixels; outside, the negative distance to the region.

    The border of the picture counts as an edge of the region.
    """
    inside = cv2.distanceTransform(np.pad((mask > 0).astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return inside - cv2.distanceTransform((mask <= 0).astype(np.uint8), cv2.DIST_L2, 5)


def fixed_point(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates as OpenCV draws them: from pixel centres, with `SHIFT` fractional bits."""
    return np.round((points[..., :2] - 0.5) * (1 << SHIFT)).astype(np.int32)


def face_height(points: np.ndarray) -> float:
    """From the top of the forehead to the chin, in the units of the landmarks `(468, 2+)`."""
    return float(np.linalg.norm(points[10, :2] - points[152, :2]))


def grown_hull(points: np.ndarray, margin: float, size: int | tuple[int, int]) -> np.ndarray:
    """The convex hull of points `(n, 2)`, grown by a margin in pixels."""
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    canvas = np.zeros((size, size) if isinstance(size, int) else size, np.uint8)
    fixed = fixed_point(hull)
    cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_8, SHIFT)
    cv2.polylines(canvas, [fixed], True, 255, max(1, round(2 * margin)), cv2.LINE_8, SHIFT)  # a thick outline grows the hull
    return (canvas > 0).astype(np.float32)
