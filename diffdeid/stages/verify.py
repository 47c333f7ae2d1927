"""Stage 7: are the faces that are seen in results far enough from their sources?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.pixels import on_host
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.stages.reconstruct import embed


def verify(
    recogniser: FaceRecognitionModel,
    results: Tensor,
    landmarks: Sequence[np.ndarray | None],
    sources: Sequence[Tensor],
    identity_limit: float,
) -> list[tuple[float | None, str | None]]:
    """The distance of each result from its source, and what is wrong with it (`None`: nothing).

    Args:
        results: `(B, 3, S, S)` crops in [-1, 1].
        landmarks: `(468, 3)` of the faces found in them, `None` where there is none.
        sources: `(n, 128)` each, all that is known of a source.
        identity_limit: smallest accepted 1 - cosine to each.
    """
    verdicts: list[tuple[float | None, str | None]] = [(None, "no face was found in the result")] * len(results)
    seen = [row for row, points in enumerate(landmarks) if points is not None]
    if not seen:
        return verdicts
    embeddings = embed(recogniser, results[seen], np.stack([landmarks[row] for row in seen]))
    nearest = torch.stack([(sources[row] @ one).max() for row, one in zip(seen, embeddings, strict=True)])
    for row, distance in zip(seen, (1 - on_host(nearest)).tolist(), strict=True):
        near = f"too near to the source ({distance:.2f}, limit {identity_limit:.2f})"
        verdicts[row] = distance, None if distance >= identity_limit else near  # a distance that is no number is too near
    return verdicts
