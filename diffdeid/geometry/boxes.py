"""Boxes `(4,)`: x0, y0, x1, y1 in picture pixels."""

from __future__ import annotations

import numpy as np

FARTHEST = 1e6  # pixels; drawing overflows beyond this, and a cover would hide nothing


def intersection_over_union(box: np.ndarray, other: np.ndarray) -> float:
    """The shared part of two boxes: 0 if they do not touch, 1 if they are equal."""
    shared = _shared_area(box, other)
    return float(shared / (_area(box) + _area(other) - shared))


def part_inside(box: np.ndarray, other: np.ndarray) -> float:
    """How much of a box lies in another one, 0…1."""
    return float(_shared_area(box, other) / max(_area(box), 1e-6))


def bounding_box(points: np.ndarray) -> np.ndarray:
    """The box of `(N, 2+)` points, float32."""
    return np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)]).astype(np.float32)


def check_box(box: np.ndarray) -> None:
    """Raise `ValueError` if an array cannot be the box of a face."""
    if not (box.shape == (4,) and (np.abs(box) < FARTHEST).all() and (box[2:] > box[:2]).all()):
        raise ValueError(
            f"The `box` of a face must be four finite numbers x0 < x1, y0 < y1 as (x0, y0, x1, y1), below {FARTHEST:.0f}, "
            f"got {box}."
        )


def part_of(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The view of the pixels that a box touches, and the picture coordinates of its corner."""
    height, width = image.shape[:2]
    x0, y0 = np.floor(box[:2]).clip(0, (width, height)).astype(int)
    x1, y1 = np.ceil(box[2:]).clip((x0, y0), (width, height)).astype(int)
    return image[y0:y1, x0:x1], np.array([x0, y0])


def _shared_area(box: np.ndarray, other: np.ndarray) -> float:
    return np.prod((np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0))


def _area(box: np.ndarray) -> float:
    return np.prod(box[2:] - box[:2])
