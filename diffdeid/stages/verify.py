"""Stage 7: check that results show faces, that their features are in place, and that they are far enough from the sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.landmarks import lip_gap
from diffdeid.geometry.mask import face_height
from diffdeid.geometry.pixels import on_host
from diffdeid.geometry.rotation import angle_to_camera
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.stages.reconstruct import embed

STRAYING = 0.014  # largest mean error of landmarks, in face sizes; 5 % of good results exceed it, and 58 % of failures
STEADY_TURN, TURNED_STRAYING = 35.0, 1.6  # degrees from which on more is allowed, and how many times as much at `EXACT_TURN`
EXACT_TURN = 55.0  # degrees between face and camera up to which the attention mesh is used; beyond, the head mesh is …
ROUGH_STRAYING = 0.05  # … with this limit for landmarks, because its own error is a thirtieth
OPEN_MOUTH = 0.15  # largest gap between the lips in heights of the face; with a larger one no result looked like a face
PET = 0.7  # largest probability of a pet's face; the highest of 3,000 people was 0.63, the highest of dogs 0.76
TURN = 100.0  # degrees between face and camera; beyond, no face is seen


def look(
    analyser: FaceAnalyserModel | None, results: Sequence[np.ndarray], before: Sequence[np.ndarray], turned: Sequence[bool]
) -> list[np.ndarray | None]:
    """Landmarks `(468, 3)` of the faces in results `(S, S, 3)` uint8, `None` where there is no face.

    Args:
        analyser: finds landmarks; without one, they are taken to be where they were before.
        results: crops of the pictures with new faces.
        before: landmarks `(468, 3)` of the source faces.
        turned: whether heads are turned away too far for the attention mesh, so that the head mesh is used.
    """
    if analyser is None:
        return list(before)
    seen: dict[int, np.ndarray | None] = {}
    for find, asked in ((analyser.find_again, False), (analyser.find_in_any_pose, True)):
        rows = [row for row, away in enumerate(turned) if away == asked]
        found = find([results[row] for row in rows], [before[row] for row in rows])
        seen |= {row: face.landmarks for row, face in zip(rows, found, strict=True)}
    return [seen[row] for row in range(len(results))]


def verify(
    recogniser: FaceRecognitionModel,
    results: Tensor,
    landmarks: Sequence[np.ndarray | None],
    sources: Sequence[Tensor],
    identity_limit: float,
) -> list[tuple[float | None, str | None]]:
    """The distance of each result from its source, 1 - cosine, and what is wrong with it, or `None`.

    Args:
        results: `(B, 3, S, S)` crops in [-1, 1].
        landmarks: `(468, 3)` of the faces found in them, `None` where there is none.
        sources: `(n, 128)` each, all known embeddings of a source.
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
        verdicts[row] = distance, None if distance >= identity_limit else near  # NaN counts as too near
    return verdicts


def allowed_straying(angle: float, straying: float = STRAYING, doubt: float = 0.0) -> float:
    """How far features may be from where they were meant to be, in face sizes, at `angle` degrees between face and camera.

    Meshes are less exact the farther a head is turned; `straying` is the limit for faces that look roughly into the camera. It
    grows by `doubt`, the expected error of the source's own landmarks in face sizes, but never beyond the limit for heads that
    look away.
    """
    if angle > EXACT_TURN:
        return ROUGH_STRAYING
    more = float(np.interp(angle, (STEADY_TURN, EXACT_TURN), (1, TURNED_STRAYING)))
    return min(straying * more + doubt, ROUGH_STRAYING)  # `min` returns a NaN in first place, and then nothing passes


def strays(seen: np.ndarray | None, meant: np.ndarray, front: np.ndarray, limit: float) -> tuple[float, str | None]:
    """How far features of a result are from where they were meant to be, as a share of what is allowed, and what is wrong if any.

    In failed results, features are not where they were meant to be. If nothing can be compared, the share is 0.

    Args:
        seen: landmarks `(468, 2+)` of the result, `None` if none were found.
        meant: `(468, 2)`, where ρ' puts them, in the same pixels.
        front: `(S, S)`, 0…1, what is in front of the face; landmarks behind it do not count.
        limit: largest mean distance, in sizes of the face.
    """
    if seen is None:
        return 0.0, None
    columns, rows = meant.astype(int).clip(0, len(front) - 1).T
    shown = front[rows, columns] < 0.5
    if not shown.any():
        return 0.0, None
    distance = np.linalg.norm(seen[shown, :2] - meant[shown], axis=1).mean() / max(np.ptp(meant, axis=0).max(), 1e-6)
    far = f"its features are not where they were meant to be ({distance:.1%}, limit {limit:.1%})"
    return float(distance / limit), None if distance <= limit else far


def gapes(landmarks: np.ndarray) -> str | None:
    """Why a face with landmarks `(468, 2+)` cannot be replaced, or `None`: its mouth is open wider than networks can paint."""
    gap = lip_gap(landmarks) / max(face_height(landmarks), 1e-6)
    return None if gap <= OPEN_MOUTH else f"its mouth is open too wide ({gap:.2f} of its height, limit {OPEN_MOUTH:.2f})"


def seem_pets(encoder: ContextEncoderModel | None, images: Tensor) -> list[str | None]:
    """Why faces in crops `(B, 3, S, S)` in [-1, 1] are not replaced, or `None`: nobody wants a person's face on a dog.

    Without an encoder all faces count as people's.
    """
    if encoder is None:
        return [None] * len(images)
    likely = on_host(encoder.pet(images.to(encoder.dtype)).float()).tolist()
    return [f"it may be a pet's ({share:.0%} likely, limit {PET:.0%})" if share > PET else None for share in likely]


def turned_away(pose: Tensor, limit: float = TURN) -> list[str | None]:
    """Why heads of poses p `(B, 6)` cannot be replaced, or `None`: they look away by more degrees than networks can paint."""
    angles = on_host(angle_to_camera(pose)).tolist()
    return [None if angle <= limit else f"it is turned away too far ({angle:.0f}°, limit {limit:.0f}°)" for angle in angles]
