"""One face of a video from frame to frame: steadied, and with a colour that follows the evidence of all frames so far."""

from __future__ import annotations

import numpy as np

from diffdeid.geometry.seam import Cast, match_steadily
from diffdeid.temporal.steadying import Steadied, begin, steady


class TemporalFilter:
    """Takes the flicker out of the generated faces of a track.

    Attributes:
        frame: the number of the last frame that was filtered, -1 before.
    """

    def __init__(self):
        self.frame = -1
        self._steadied: Steadied | None = None
        self._cast: Cast | None = None

    def __call__(self, frame: int, face: np.ndarray, source: np.ndarray, mask: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """A generated face without flicker and without a cast. It begins anew where the frame before is not known.

        Args:
            frame: number of the frame.
            face: `(S, S, 3)` float32 in [0, 1].
            source: `(S, S, 3)` uint8 crop of the frame.
            mask: `(S, S)`, 1 where the face is erased.
            landmarks: `(468, 2+)` of the source in this crop, pixels.
        """
        follows = self._steadied is not None and self.frame == frame - 1
        seen = face, source, np.float32(landmarks[:, :2])
        self._steadied = steady(*seen, self._steadied) if follows else begin(*seen)
        matched, self._cast = match_steadily(self._steadied.face, source, mask, self._cast if follows else None)
        self.frame = frame
        return matched
