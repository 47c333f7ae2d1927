"""One face of a video from frame to frame: steadied, and with a colour that follows the evidence of all frames so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.pixels import on_host
from diffdeid.geometry.seam import ColourCast, match_steadily
from diffdeid.structures import FaceBatch
from diffdeid.temporal.steadying import Steadied, begin, steady


class TemporalFilter:
    """Takes the flicker out of the generated faces of a track.

    Attributes:
        frame: the number of the last frame that was filtered, -1 before.
    """

    def __init__(self):
        self.frame = -1
        self._steadied: Steadied | None = None
        self._cast: ColourCast | None = None

    def __call__(self, frame: int, face: Tensor, source: FaceBatch) -> Tensor:
        """A generated face without flicker and without a cast. It begins anew where the frame before is not known.

        Args:
            frame: number of the frame.
            face: `(3, S, S)` in [-1, 1].
            source: the face of the frame, a batch of one.
        """
        follows = self._steadied is not None and self.frame == frame - 1
        seen = on_host((face + 1) / 2).transpose(1, 2, 0), source.crops[0].image, np.float32(source.landmarks[0, :, :2])
        self._steadied = steady(*seen, self._steadied) if follows else begin(*seen)
        steadied = torch.from_numpy(self._steadied.face * 2 - 1).permute(2, 0, 1)[None].to(face.device)
        matched, self._cast = match_steadily(steadied, source.images, source.depths, self._cast if follows else None)
        self.frame = frame
        return matched[0]
