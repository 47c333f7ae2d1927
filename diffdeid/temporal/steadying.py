"""Taking the flicker out of generated faces, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from diffdeid.geometry import registration

PERSISTENCE = 0.93  # share of the frame before in a face that does not change
TOLERANCE = 0.15  # difference, in parts of the range of pixels, from which on a change is meant and not flicker
YIELDING = 0.3  # share of the way to where a feature is painted that the one of the frame before gives way
# In crop sizes:
NEIGHBOURHOOD = 5 / 256  # over which differences are judged
FARTHEST, REACH = 8 / 256, 4 / 256  # a feature goes at most, and takes its surroundings with it
STEP = 0.2 / 256  # the one of the frame before gives way at most
PAID = 0.3  # share of what the flow owes the landmarks that is made good in a frame
OWED = 2.5 / 256  # at most; by more they mean different things, as where a landmark is hidden


@dataclass(frozen=True)
class Steadied:
    """A filtered face, and what the next frame must know.

    Attributes:
        face: float32 `(S, S, 3)` in [0, 1].
        source: uint8 `(S, S, 3)` crop of the source at the same place.
        landmarks: float32 `(468, 2)` of the source in this crop, pixels.
        owed: float32 `(468, 2)`, by how much more than the face each landmark moved, from here back, pixels.
    """

    face: np.ndarray
    source: np.ndarray
    landmarks: np.ndarray
    owed: np.ndarray


def begin(face: np.ndarray, source: np.ndarray, landmarks: np.ndarray) -> Steadied:
    """A face as generated, where there is none before."""
    return Steadied(face, source, landmarks, np.zeros((468, 2), np.float32))


def steady(face: np.ndarray, source: np.ndarray, landmarks: np.ndarray, before: Steadied) -> Steadied:
    """A generated face, held to the one of the frame before as far as that one, moved as the source moves, still fits.

    A recursive filter along the motion (after Lai et al. 2018, who learn one). What both show, a few pixels apart, meets in
    between: mixed where it lies, it would be seen twice. That is near to where it was, which follows the source pixel by pixel,
    and comes only slowly to where the new face has it, for generated faces swim when heads turn. Where the faces differ much, as
    in a mouth that opens, the new one stands.

    The motion is the flow of the source's pixels, which is exact from frame to frame but loses a little of what faces do, led by
    the landmarks, which tremble but lose nothing: what the flow owes them is made good slowly (a complementary filter).
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
    new = _fetch(face, pixels + alike * (apart - yielded))  # what is new has nothing to meet
    steadied = (new + PERSISTENCE * alike * (old - new)).clip(0, 1)
    return Steadied(steadied, source, landmarks, (1 - PAID) * owed)


def shortened(vectors: np.ndarray, limit: float) -> np.ndarray:
    """Vectors `(..., n)` none of which is longer than the limit."""
    return registration.shortened(torch.from_numpy(vectors), limit).numpy()


def _flow(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where each pixel of a uint8 picture is in another one, relative to where it is here, `(S, S, 2)`."""
    grey = [cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) for part in (picture, other)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)


def _fetch(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """What is at `places` `(S, S, 2)`. Cubic: this is done over and over, and linear interpolation blurs each time."""
    return cv2.remap(picture, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
