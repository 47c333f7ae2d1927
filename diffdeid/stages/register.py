"""Stage 6: move the features of generated faces to where ρ' puts them. (For their colour see `geometry.seam`.)"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.pixels import on_host, to_bytes
from diffdeid.geometry.registration import displace, offsets
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.stages.compose import lay_over_crops


def register(
    analyser: FaceAnalyserModel | None, faces: Tensor, images: Tensor, depths: Tensor, marks: Sequence[np.ndarray]
) -> Tensor:
    """Move the features of generated faces `(B, 3, S, S)` by a few pixels to where they were meant to be.

    A face in which the analyser sees none stays as it is, and `verify` judges it. Without an analyser all faces do.

    Args:
        analyser: finds the landmarks of the faces.
        images: `(B, 3, S, S)` crops of the pictures, over which the faces are laid to be seen.
        depths: `(B, 1, S, S)`, `signed_distance` of the erased region.
        marks: `(470, 2)` each, where ρ' puts landmarks and irises, see `conditioning.place_marks`.
    """
    if analyser is None:
        return faces
    shown = on_host(to_bytes(lay_over_crops(faces, images, depths)[0]))
    found = analyser.find_again(shown, [points[:468] for points in marks])
    known = [row for row, face in enumerate(found) if face.landmarks is not None]
    # again, from crops that do not depend on where the marks were meant to be
    again = analyser.find_again([shown[row] for row in known], [found[row].landmarks for row in known])
    seen = {row: face for row, face in zip(known, again, strict=True) if face.landmarks is not None}
    if not seen:
        return faces
    rows, where = list(seen), [np.concatenate([face.landmarks[:, :2], face.iris[:, 0]]) for face in seen.values()]
    places = (torch.from_numpy(np.float32(part)).to(faces.device) for part in (where, [marks[row] for row in rows]))
    registered = faces.clone()
    registered[rows] = displace(faces[rows], offsets(*places, depths[rows])).clamp(-1, 1)
    return registered
