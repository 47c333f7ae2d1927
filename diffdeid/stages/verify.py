"""Stage 7: is the face that is seen in a result far enough from the source?"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.stages.reconstruct import embed, to_tensor


def verify(
    recogniser: FaceRecognitionModel, result: np.ndarray, landmarks: np.ndarray | None, source: Tensor, identity_limit: float
) -> tuple[float | None, str | None]:
    """Distance of a result from its source, and what is wrong with it (`None`: nothing).

    Args:
        result: `(S, S, 3)` uint8 crop.
        landmarks: `(468, 3)` of the face found in it, `None` if there is none.
        source: `(n, 128)`, all that is known of the source.
        identity_limit: smallest accepted 1 - cosine to each.
    """
    if landmarks is None:
        return None, "no face was found in the result"
    embedding = embed(recogniser, to_tensor([result], source.device), landmarks[None])[0]
    distance = 1 - float((source @ embedding).max())
    if not distance >= identity_limit:
        return distance, f"too near to the source ({distance:.2f}, limit {identity_limit:.2f})"
    return distance, None
