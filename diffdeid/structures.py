"""The values that travel between the stages. Units, axes and ranges: docs/conventions.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

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
        presence: the attention mesh's confidence that its crop shows a face, 0…1.
        doubt: mean error expected of the landmarks, in heights of the face, where the head mesh placed them; 0 where the
            attention mesh did.
    """

    box: np.ndarray
    score: float = 1.0
    keypoints: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    iris: np.ndarray | None = None
    presence: float = 0.0
    doubt: float = 0.0


@dataclass(frozen=True)
class FaceCrop:
    """An aligned square crop of a face.

    Attributes:
        image: `(size, size, 3)` uint8 RGB.
        matrix: `(2, 3)` float64 similarity, picture coordinates -> crop coordinates.
        finer: `(2 * size, 2 * size, 3)` uint8 RGB, the same crop of a face that is large enough to be refined, else `None`.
    """

    image: np.ndarray
    matrix: np.ndarray
    finer: np.ndarray | None = None

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

    shape: Tensor  # α (B, 80), standard deviations
    expression: Tensor  # β (B, 64), ARKit units, 0…1
    albedo: Tensor  # δ (B, 80), standard deviations
    illumination: Tensor  # γ (B, 27), 9 spherical harmonics × RGB
    pose: Tensor  # p (B, 6), rotation vector (radians), translation (decimetres)
    gaze: Tensor  # ω (B, 4), right eye x, y, left eye x, y, in eye widths

    SIZES = (80, 64, 80, 27, 6, 4)

    def pack(self) -> Tensor:
        """All coefficients in one tensor `(B, 261)`."""
        return torch.cat([getattr(self, field.name) for field in fields(self)], dim=-1)

    @classmethod
    def unpack(cls, packed: Tensor) -> MorphableCoefficients:
        """The inverse of `pack`: `(B, 261)` -> coefficients. Raises `ValueError` for another last axis."""
        if packed.shape[-1] != sum(cls.SIZES):
            raise ValueError(f"`packed` must have {sum(cls.SIZES)} coefficients in its last axis, got {packed.shape[-1]}.")
        return cls(*packed.split(cls.SIZES, dim=-1))

    def pick(self, rows: Sequence[int]) -> MorphableCoefficients:
        """The coefficients of some faces of the batch, by their rows."""
        return self.unpack(self.pack()[rows])


@dataclass(frozen=True)
class NewIdentity:
    """A new identity: a person who does not exist.

    Attributes:
        embedding: z' `(B, 128)`, of length 1; B is 1 except in batches.
        shape: α' `(B, 80)`, standard deviations.
        level: the level, 1…10, whose least distance to the source this identity keeps.
    """

    embedding: Tensor
    shape: Tensor
    level: int

    @classmethod
    def cat(cls, people: Sequence[NewIdentity], like: Tensor) -> NewIdentity:
        """Several identities as one batch, on the device and in the dtype of `like`; its level is the lowest of theirs."""
        embedding, shape = (torch.cat([getattr(one, name).to(like) for one in people]) for name in ("embedding", "shape"))
        return cls(embedding, shape, min(one.level for one in people))


@dataclass(frozen=True)
class FaceBatch:
    """Faces that can be de-identified; they may come from different pictures.

    Attributes:
        crops: F aligned crops of the pictures, one for each face.
        landmarks: `(F, 468, 3)` in crop pixels.
        images: `(F, 3, S, S)` in [-1, 1].
        depths: `(F, 1, S, S)`, how deep in the erased region each pixel lies, in crop pixels; negative outside of it.
        front: `(F, 1, S, S)`, 0…1, how much of a pixel shows something in front of the face, which stays in the picture.
        coefficients: ρ of the faces.
        embedding: `(F, 128)` z_id of the faces.
        context: `(F, context_dim)`, what the surroundings tell of the people; `None` if the options do not use it.
    """

    crops: list[FaceCrop]
    landmarks: np.ndarray
    images: Tensor
    depths: Tensor
    front: Tensor
    coefficients: MorphableCoefficients
    embedding: Tensor
    context: Tensor | None = None

    @cached_property
    def masks(self) -> Tensor:
        """`(F, 1, S, S)`, 1 where the face is erased."""
        return (self.depths > 0).float()

    def __len__(self) -> int:
        return len(self.crops)

    def pick(self, rows: Sequence[int]) -> FaceBatch:
        """The faces of these rows, in this order; a row may appear several times."""
        rows = list(rows)
        return FaceBatch(
            [self.crops[row] for row in rows],
            self.landmarks[rows],
            self.images[rows],
            self.depths[rows],
            self.front[rows],
            self.coefficients.pick(rows),
            self.embedding[rows],
            None if self.context is None else self.context[rows],
        )


@dataclass(frozen=True)
class FaceJob:
    """A face that is to be de-identified.

    Attributes:
        picture: `(H, W, 3)` uint8 RGB.
        face: the face, with landmarks and irises.
        others: all faces of the picture; they are erased from the surroundings.
        seeds: one for each candidate, see `stages.identity.face_generators`.
        coefficients: ρ `(1, 261)` if it is known.
        identity: the new identity if it is chosen already.
    """

    picture: np.ndarray
    face: Face
    others: Sequence[Face] = ()
    seeds: Sequence[int] = ()
    coefficients: Tensor | None = None
    identity: NewIdentity | None = None


@dataclass(frozen=True)
class Attempt:
    """A generated face and what is known about it.

    Attributes:
        patch: `(S, S, 3)` uint8 crop; `(2 S, 2 S, 3)` of a face that was refined.
        opacity: `(S, S)` or `(2 S, 2 S)`, 0…1, how much of the patch shows.
        result: `(S, S, 3)` uint8 crop of the picture with the patch in it.
        identity_distance: 1 - cosine to the source, `None` when it could not be measured.
        problem: why the face must not be used, `None` when it may be.
        maps: `(9, S, S)`, the spatial conditions that it was painted from.
        straying: how far its features are from where they were meant to be, as a share of what is allowed.
    """

    patch: np.ndarray
    opacity: np.ndarray
    result: np.ndarray
    identity_distance: float | None
    problem: str | None
    maps: Tensor
    straying: float


@dataclass(frozen=True)
class Replaced:
    """A new face that passed its checks.

    Attributes:
        patch: `(S, S, 3)` uint8 crop; `(2 S, 2 S, 3)` of a face that was refined.
        opacity: `(S, S)` or `(2 S, 2 S)`, 0…1, how much of the patch shows.
        matrix: `(2, 3)` picture -> patch.
        identity_distance: 1 - cosine to the source.
        identity: the new identity. If the caller gave it, its level is the one that was asked for.
        attempts: how many identities were tried.
        straying: how far its features are from where they were meant to be, as a share of what is allowed, 0…1.
    """

    patch: np.ndarray
    opacity: np.ndarray
    matrix: np.ndarray
    identity_distance: float
    identity: NewIdentity
    attempts: int
    straying: float


@dataclass(frozen=True)
class Covered:
    """A face that is hidden.

    Attributes:
        reason: why it was not de-identified.
        attempts: how many identities were tried.
    """

    reason: str
    attempts: int = 0


Outcome = Replaced | Covered  # what becomes of a face that was found; there is no third case
