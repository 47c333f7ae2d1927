"""Filters one face of a video from frame to frame: steadies it, and matches its colour by the evidence of all frames so far."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.pixels import on_host
from diffdeid.geometry.seam import ColourCast, match_steadily
from diffdeid.structures import FaceBatch
from diffdeid.temporal.steadying import Steadied, begin, steady

LEAST_SHOWN = 0.2  # seconds; a face that is shown for less between covers would flash up


class TemporalFilter:
    """Removes the flicker of the generated faces of a track, and the flicker between faces and covers.

    Args:
        rate: frames a second.

    Attributes:
        frame: the number of the last frame that was filtered, -1 before the first.
    """

    def __init__(self, rate: float):
        self.frame = -1
        self._steadied: Steadied | None = None
        self._cast: ColourCast | None = None
        self._least, self._needed = max(1, round(LEAST_SHOWN * rate)), 0  # frames, and how many must pass before one is shown
        self._passed = self._least + 1  # frames that passed in a row; begins as if the face had been shown before
        self._judged: int | None = None

    def __call__(self, frame: int, face: Tensor, source: FaceBatch) -> Tensor:
        """Filter a generated face; a face whose frame before was not filtered begins anew.

        Args:
            frame: number of the frame.
            face: `(3, S, S)` in [-1, 1].
            source: the source face of the frame, a batch of one.

        Returns:
            The face `(3, S, S)` without flicker and without a colour cast.
        """
        follows = self._steadied is not None and self.frame == frame - 1
        seen = on_host((face + 1) / 2).transpose(1, 2, 0), source.crops[0].image, np.float32(source.landmarks[0, :, :2])
        self._steadied = steady(*seen, self._steadied) if follows else begin(*seen)
        steadied = torch.from_numpy(self._steadied.face * 2 - 1).permute(2, 0, 1)[None].to(face.device)
        matched, self._cast = match_steadily(steadied, source.images, source.depths, self._cast if follows else None)
        self.frame = frame
        return matched[0]

    def shows(self, frame: int, passed: bool) -> bool:
        """Whether to show the face of a frame; `passed` says whether it passed its checks.

        A face that is covered again soon after it was shown would flash up between covers, so it is shown only after it has
        passed for a while. If the face that was filtered last has failed, the next one begins anew. Earlier failures have
        already influenced the filter, because whole batches are filtered before they are checked.
        """
        if self._judged not in (None, frame - 1):  # frames in between were covered
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
