"""One face of a video from frame to frame: steadied, and with a colour that follows the evidence of all frames so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.pixels import on_host
from diffdeid.geometry.seam import ColourCast, match_steadily
from diffdeid.structures import FaceBatch
from diffdeid.temporal.steadying import Steadied, begin, steady

LEAST_SHOWN = 0.2  # seconds; faces that are shown for less between covers flash


class TemporalFilter:
    """Takes the flicker out of the generated faces of a track, and that between them and covers.

    Args:
        rate: frames a second.

    Attributes:
        frame: the number of the last frame that was filtered, -1 before.
    """

    def __init__(self, rate: float):
        self.frame = -1
        self._steadied: Steadied | None = None
        self._cast: ColourCast | None = None
        self._least, self._needed = max(1, round(LEAST_SHOWN * rate)), 0  # frames; and how many must pass before one is shown
        self._passed = self._least + 1  # frames in a row; as if the face had been there before the first
        self._judged: int | None = None

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

    def shows(self, frame: int, passed: bool) -> bool:
        """Whether a frame shows its face, which passed its checks or not.

        A face that is covered again soon after it was shown would flash up between covers. It is shown when it has passed for a
        while. Where the face that was filtered last has failed, the next one begins anew. What failed before it has had its say,
        as batches are filtered before they are judged.
        """
        if self._judged not in (None, frame - 1):  # those between were covered
            self._note_cover()
        self._judged = frame
        if not passed:
            self._note_cover()
            if frame == self.frame:
                self._steadied = None
            return False
        self._passed += 1
        return self._passed > self._needed

    def _note_cover(self) -> None:
        if self._passed:
            self._needed = self._least if self._passed <= self._needed + self._least else 0
        self._passed = 0
