"""Stage 7: are the faces that are seen in results far enough from their sources, and are they faces of these heads?"""

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

STRAYING = 0.014  # of landmarks from where they were meant to be, in face sizes; of good results 5 % exceed it, of failures 58 %
STEADY_TURN, TURNED_STRAYING = 35.0, 1.6  # degrees from which on more is allowed, and how many times as much at `EXACT_TURN`
EXACT_TURN = 55.0  # degrees between face and camera up to which the attention mesh is believed; beyond, the head mesh is …
ROUGH_STRAYING = 0.05  # … for which landmarks may stray this far: its own error is a thirtieth
OPEN_MOUTH = 0.15  # gap between the lips in heights of the face; with a larger one no result looked like a face
PET = 0.7  # how likely a face is a pet's from which on it is taken for one; of 3,000 people's the highest was .63, of dogs' .76
TURN = 100.0  # degrees between face and camera; beyond, there is no face to be seen


def look(
    analyser: FaceAnalyserModel | None, results: Sequence[np.ndarray], before: Sequence[np.ndarray], turned: Sequence[bool]
) -> list[np.ndarray | None]:
    """Landmarks `(468, 3)` of the faces in results `(S, S, 3)` uint8, `None` where there is no face.

    Args:
        analyser: what looks; without one landmarks are believed to be where they were.
        results: what faces have become.
        before: landmarks `(468, 3)` of the faces before.
        turned: whether heads are turned away too far for the attention mesh, so that the head mesh is to tell.
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


def allowed_straying(angle: float, straying: float = STRAYING, doubt: float = 0.0) -> float:
    """How far features may be from where they were meant to be, in face sizes, `angle` degrees between face and camera.

    Meshes are less exact, the farther a head is turned; `straying` is what is allowed of faces that look roughly into the camera.
    Landmarks of the source may themselves be off by `doubt`, in face sizes. No more is allowed than of heads that look away.
    """
    if angle > EXACT_TURN:
        return ROUGH_STRAYING
    more = float(np.interp(angle, (STEADY_TURN, EXACT_TURN), (1, TURNED_STRAYING)))
    return min(straying * more + doubt, ROUGH_STRAYING)  # `min` gives its first where that is no number: then nothing passes


def strays(seen: np.ndarray | None, meant: np.ndarray, front: np.ndarray, limit: float) -> str | None:
    """What is wrong with the shape of a result: a failed one is found again with features elsewhere than it was to have them.

    Args:
        seen: landmarks `(468, 2+)` of the result, `None` where there are none.
        meant: `(468, 2)`, where ρ' puts them, in the same pixels.
        front: `(S, S)`, 0…1, what is in front of the face; landmarks behind it do not count.
        limit: of their mean distance, in sizes of the face.
    """
    if seen is None:
        return None
    columns, rows = meant.astype(int).clip(0, len(front) - 1).T
    shown = front[rows, columns] < 0.5
    if not shown.any():
        return None
    distance = np.linalg.norm(seen[shown, :2] - meant[shown], axis=1).mean() / max(np.ptp(meant, axis=0).max(), 1e-6)
    return None if distance <= limit else f"its features are not where they were meant to be ({distance:.1%}, limit {limit:.1%})"


def gapes(landmarks: np.ndarray) -> str | None:
    """Why a face with landmarks `(468, 2+)` cannot be given a new one: its mouth is open wider than networks know."""
    gap = lip_gap(landmarks) / max(face_height(landmarks), 1e-6)
    return None if gap <= OPEN_MOUTH else f"its mouth is open too wide ({gap:.2f} of its height, limit {OPEN_MOUTH:.2f})"


def seem_pets(encoder: ContextEncoderModel | None, images: Tensor) -> list[str | None]:
    """Why faces in crops `(B, 3, S, S)` in [-1, 1] are not given new ones: a person's face on a dog is what nobody wants.

    Without an encoder nobody can tell.
    """
    if encoder is None:
        return [None] * len(images)
    likely = on_host(encoder.pet(images.to(encoder.dtype)).float()).tolist()
    return [f"it may be a pet's ({share:.0%} likely, limit {PET:.0%})" if share > PET else None for share in likely]


def turned_away(pose: Tensor, limit: float = TURN) -> list[str | None]:
    """Why heads of poses p `(B, 6)` cannot be given new faces: they look farther away, in degrees, than networks know heads."""
    angles = on_host(angle_to_camera(pose)).tolist()
    return [None if angle <= limit else f"it is turned away too far ({angle:.0f}°, limit {limit:.0f}°)" for angle in angles]
