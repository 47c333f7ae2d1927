"""The values that travel between the stages. Units, axes and ranges: docs/conventions.md."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Face:
    """A face found in a picture, in picture coordinates (pixels, (0, 0) is the top-left corner of the top-left pixel).

    Attributes:
        box: `(4,)` float32, x0, y0, x1, y1.
        score: detector confidence, 0…1.
        keypoints: `(5, 2)` right eye, left eye, nose tip, right and left mouth corner (the person's right), or `None`.
        landmarks: `(468, 3)` FaceMesh landmarks, z in pixels (smaller is nearer), or `None` when they could not be placed.
        iris: `(2, 5, 2)` per eye (right first) the iris centre and four points on its rim, or `None`.
        presence: the mesh's confidence that its crop shows a face, 0…1.
    """

    box: np.ndarray
    score: float = 1.0
    keypoints: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    iris: np.ndarray | None = None
    presence: float = 0.0


@dataclass(frozen=True)
class FaceCrop:
    """An aligned square crop.

    Attributes:
        image: `(size, size, 3)` uint8 RGB.
        matrix: `(2, 3)` float64 similarity, picture coordinates -> crop coordinates.
    """

    image: np.ndarray
    matrix: np.ndarray

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Map `(..., 2 or 3)` picture points into the crop; a third coordinate is scaled like the other two."""
        mapped = points[..., :2] @ self.matrix[:, :2].T + self.matrix[:, 2]
        if points.shape[-1] == 2:
            return mapped
        scale = np.sqrt(abs(np.linalg.det(self.matrix[:, :2])))
        return np.concatenate([mapped, points[..., 2:] * scale], axis=-1)


@dataclass(frozen=True)
class MorphableCoefficients:
    """The 261 coefficients ρ = {α, β, δ, γ, p, ω} of a batch of faces (paper §3.2).

    A basis may have fewer directions than its slots (52 of 64 expression units); the rest stay zero.
    """

    identity: Tensor  # α (B, 80), standard deviations
    expression: Tensor  # β (B, 64), ARKit units, 0…1
    albedo: Tensor  # δ (B, 80), standard deviations
    illumination: Tensor  # γ (B, 27), 9 spherical harmonics × RGB
    pose: Tensor  # p (B, 6), rotation vector (radians), translation (decimetres)
    gaze: Tensor  # ω (B, 4), right eye x, y, left eye x, y, in eye widths

    SIZES = (80, 64, 80, 27, 6, 4)

    def pack(self) -> Tensor:
        """All coefficients as `(B, 261)`."""
        return torch.cat([getattr(self, field.name) for field in fields(self)], dim=-1)

    @classmethod
    def unpack(cls, packed: Tensor) -> MorphableCoefficients:
        """The inverse of `pack`."""
        if packed.shape[-1] != sum(cls.SIZES):
            raise ValueError(f"`packed` must have {sum(cls.SIZES)} coefficients in its last axis, got {packed.shape[-1]}.")
        return cls(*packed.split(cls.SIZES, dim=-1))


@dataclass(frozen=True)
class NewIdentity:
    """Somebody who does not exist.

    Attributes:
        embedding: z' `(1, 128)`, of length 1.
        shape: α' `(1, 80)`, standard deviations.
        level: whose bound of the distance to the source is kept, 1…10.
    """

    embedding: Tensor
    shape: Tensor
    level: int
