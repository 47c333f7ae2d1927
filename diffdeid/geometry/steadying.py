"""Taking the flicker out of generated faces, frame by frame."""

from __future__ import annotations

import cv2
import numpy as np

PERSISTENCE = 0.93  # share of the frame before in a face that does not change
TOLERANCE = 0.15  # difference, in parts of the range of pixels, from which on a change is meant and not flicker
NEIGHBOURHOOD = 5 / 256  # of crop sizes, over which differences are judged


def steady(face: np.ndarray, before: np.ndarray, source: np.ndarray, source_before: np.ndarray) -> np.ndarray:
    """A generated face, held to the one of the frame before as far as that one, moved as the source moves, still fits.

    A recursive filter along the motion (after Lai et al. 2018, who learn one). Where the faces differ much, as in a mouth that
    opens, the new one stands.

    Args:
        face, before: float32 `(S, S, 3)` in [0, 1]: as generated, and the filtered one of the frame before.
        source, source_before: uint8 `(S, S, 3)` crops of the source at the same places.
    """
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (source, source_before)]
    back = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(*grey, None)
    origin = (np.dstack(np.indices(grey[0].shape)[::-1]) + back).astype(np.float32)
    moved = cv2.remap(before, origin, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = cv2.GaussianBlur(np.abs(moved - face).mean(axis=2), (0, 0), NEIGHBOURHOOD * len(face))
    weight = PERSISTENCE * np.exp(-((difference / TOLERANCE) ** 2))[..., None]
    return weight * moved + (1 - weight) * face
