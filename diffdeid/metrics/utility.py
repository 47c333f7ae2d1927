"""How well the useful parts of a face are kept: expression, pose, gaze and landmarks of source and result, pair by pair.

EXP, POSE and GAZE are those of the DiffDeID paper (§4.1): Euclidean distances of β, p and ω. Here they use our own coefficients,
so they compare methods with one another, but not with numbers published for other heads. The same expression has another β on
another head, so EXP is not 0 for a perfect result.
"""

from __future__ import annotations

import numpy as np
import torch

from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.structures import MorphableCoefficients

DEGREES_PER_EYE_WIDTH = float(np.degrees(2.4))  # an eye is 29 mm wide and its ball has a radius of 12 mm
OUTER_CORNERS = (33, 263)


def coefficient_distances(source: np.ndarray, result: np.ndarray) -> dict[str, float]:
    """Distances between two ρ `(261,)`; NaN where one of them is NaN.

    Returns:
        `EXP`, `POSE`, `GAZE` (Euclidean), and in degrees `pose`, the angle between the head rotations, and `gaze`, the mean turn
        of the two eyes.
    """
    before, after = (MorphableCoefficients.unpack(torch.from_numpy(packed)[None].double()) for packed in (source, result))
    turn = rotation_matrix(before.pose[:, :3]).mT @ rotation_matrix(after.pose[:, :3])
    cosine = ((turn[0].trace() - 1) / 2).clamp(-1, 1)
    eyes = (after.gaze - before.gaze).unflatten(1, (2, 2)).norm(dim=-1).mean()
    return {
        "EXP": (after.expression - before.expression).norm().item(),
        "POSE": (after.pose - before.pose).norm().item(),
        "GAZE": (after.gaze - before.gaze).norm().item(),
        "pose": torch.rad2deg(torch.acos(cosine)).item(),
        "gaze": eyes.item() * DEGREES_PER_EYE_WIDTH,
    }


def gaze_direction(coefficients: np.ndarray) -> np.ndarray:
    """The mean gaze of both eyes of ρ `(261,)`: a unit vector `(3,)` in camera space (right, up, towards the viewer).

    The eyes turn in the head as `gaze` of `coefficient_distances` measures it, and the head turns by its pose.
    """
    face = MorphableCoefficients.unpack(torch.from_numpy(coefficients)[None].double())
    yaw, pitch = torch.deg2rad(face.gaze.unflatten(1, (2, 2)).mean(1)[0] * DEGREES_PER_EYE_WIDTH)  # right and down positive
    ahead = torch.stack([yaw.sin() * pitch.cos(), -pitch.sin(), yaw.cos() * pitch.cos()])
    return (rotation_matrix(face.pose[0, :3]) @ ahead).numpy()


def landmark_error(source: np.ndarray, result: np.ndarray) -> float:
    """Mean distance of `(468, 2+)` landmarks in parts of the distance between the outer eye corners (NME)."""
    first, last = source[list(OUTER_CORNERS), :2]
    return float(np.linalg.norm(result[:, :2] - source[:, :2], axis=1).mean() / np.linalg.norm(last - first))
