"""Stage 6: bring the marks of a generated face to where ρ' puts them. (Its colour: `geometry.seam`.)"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.registration import displace, offsets
from diffdeid.models.face_analyser import FaceAnalyserModel


def register(
    analyser: FaceAnalyserModel | None, shown: np.ndarray, generated: Tensor, marks: np.ndarray, mask: np.ndarray
) -> Tensor:
    """A generated face `(1, 3, S, S)`, its features moved by a few pixels to where they were meant to be; on the CPU.

    It stays as it is where no face is seen, which is for `verify` to judge, or where there is no analyser to see one.

    Args:
        shown: `(S, S, 3)` uint8, the generated face laid over its crop.
        marks: `(470, 2)`, where ρ' puts landmarks and irises, see `conditioning.place_marks`.
        mask: `(S, S)`, 1 where the face is erased.
    """
    face = None
    if analyser is not None:
        face = analyser.find_again(shown, marks[:468])
        if face.landmarks is not None:  # once more, from a crop that does not depend on where they were meant to be
            face = analyser.find_again(shown, face.landmarks)
    if face is None or face.landmarks is None:
        return generated.float().cpu()
    seen = np.concatenate([face.landmarks[:, :2], face.iris[:, 0]])
    return displace(generated, offsets(seen, marks, mask))


def to_unit(generated: Tensor) -> np.ndarray:
    """A generated face `(1, 3, S, S)` in [-1, 1] -> float32 `(S, S, 3)` in [0, 1]."""
    return ((generated[0].float().clamp(-1, 1) + 1) / 2).permute(1, 2, 0).cpu().numpy()


def from_unit(face: np.ndarray) -> Tensor:
    """The inverse of `to_unit`."""
    return torch.from_numpy(face * 2 - 1).permute(2, 0, 1)[None]
