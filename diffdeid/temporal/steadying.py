"""Removing the flicker of generated faces, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from diffdeid.geometry import registration

PERSISTENCE = 0.93  # share of the frame before in a face that does not change
TOLERANCE = 0.15  # difference, in parts of the range of pixels, from which on a change is real and not flicker
YIELDING = 0.3  # share of its way to the new place that an old feature moves in a frame
# In crop sizes:
NEIGHBOURHOOD = 5 / 256  # over which differences are averaged
FARTHEST, REACH = 8 / 256, 4 / 256  # most that a feature moves, and how far around it the face moves along
STEP = 0.2 / 256  # most that an old feature moves in a frame
PAID = 0.3  # share of the difference between flow and landmarks that is corrected in a frame
OWED = 2.5 / 256  # most of that difference; a larger one is an error, as at a hidden landmark


@dataclass(frozen=True)
class Steadied:
    """A filtered face, and what the next frame must know.

    Attributes:
        face: float32 `(S, S, 3)` in [0, 1].
        source: uint8 `(S, S, 3)` crop of the source at the same place.
        landmarks: float32 `(468, 2)` of the source in this crop, pixels.
        owed: float32 `(468, 2)`, how much farther than the filtered face each landmark has moved, backwards in time, pixels.
    """

    face: np.ndarray
    source: np.ndarray
    landmarks: np.ndarray
    owed: np.ndarray


def begin(face: np.ndarray, source: np.ndarray, landmarks: np.ndarray) -> Steadied:
    """The first face of a row: as generated."""
    return Steadied(face, source, landmarks, np.zeros((468, 2), np.float32))


def steady(face: np.ndarray, source: np.ndarray, landmarks: np.ndarray, before: Steadied) -> Steadied:
    """Mix a generated face with that of the frame before, moved as the source moves, as far as the two agree.

    It is a recursive filter along the motion (after Lai et al. 2018, who learn one). Features that both faces show a few pixels
    apart are moved together before they are mixed, else they would be seen twice. They meet near the old place, which follows the
    source pixel by pixel, and approach the new place only slowly, because generated faces swim when heads turn. Where the faces
    differ much, as in a mouth that opens, the new one is taken.

    The motion is the optical flow of the source, which is exact from frame to frame but loses a little of the motion over time,
    corrected slowly by the landmarks, which tremble but lose nothing (a complementary filter).

    Args:
        face: the generated face, float32 `(S, S, 3)` in [0, 1].
        source: uint8 `(S, S, 3)` crop of the source at the same place.
        landmarks: float32 `(468, 2)` of the source in this crop, pixels.
        before: the result for the frame before.
    """
    size = len(face)
    pixels = np.dstack(np.indices((size, size), dtype=np.float32)[::-1])
    flow = _flow(source, before.source)
    moved = cv2.remap(flow, landmarks[:, None] - 0.5, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
    owed = shortened(before.owed + before.landmarks - landmarks - moved, OWED * size)
    lead = registration.spread(*(torch.from_numpy(part)[None] for part in (PAID * owed, landmarks)), size)[0].numpy()
    origin = pixels + flow + lead  # where each pixel was in the frame before
    apart = _flow(*(np.uint8(255 * picture.clip(0, 1)) for picture in (_fetch(before.face, origin), face)))
    apart = shortened(cv2.GaussianBlur(apart, (0, 0), REACH * size), FARTHEST * size)
    yielded = shortened(YIELDING * apart, STEP * size)
    back = pixels - yielded
    old = _fetch(before.face, cv2.remap(origin, back, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    difference = np.abs(old - _fetch(face, back + apart)).mean(axis=2)
    alike = np.exp(-((cv2.GaussianBlur(difference, (0, 0), NEIGHBOURHOOD * size) / TOLERANCE) ** 2))[..., None]
    new = _fetch(face, pixels + alike * (apart - yielded))  # features that only the new face shows stay in place
    steadied = (new + PERSISTENCE * alike * (old - new)).clip(0, 1)
    return Steadied(steadied, source, landmarks, (1 - PAID) * owed)


def shortened(vectors: np.ndarray, limit: float) -> np.ndarray:
    """Vectors `(..., n)`, shortened to a length of at most `limit`."""
    return registration.shortened(torch.from_numpy(vectors), limit).numpy()


def _flow(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The optical flow `(S, S, 2)`, in pixels, from a uint8 picture to another one."""
    grey = [cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) for part in (picture, other)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)


def _fetch(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Sample a picture at `places` `(S, S, 2)`, cubically: repeated linear interpolation would blur more in each frame."""
    return cv2.remap(picture, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
