"""What the pipelines return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass(frozen=True)
class FaceReport:
    """What happened to one face.

    Attributes:
        box: x0, y0, x1, y1 in picture pixels.
        landmarks: `(468, 3)` in picture pixels, `None` where they could not be placed.
        method: "diffusion", or the cover that hides the face: "solid", "mosaic", "blur".
        level: the level asked for, `None` for a cover.
        identity_distance: 1 - cosine between source and result by the recogniser, `None` for a cover.
        attempts: identities tried.
        reason: why the face was covered instead of de-identified, else `None`.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray | None
    method: str
    level: int | None
    identity_distance: float | None
    attempts: int
    reason: str | None = None


@dataclass
class DiffDeIDPipelineOutput(BaseOutput):
    """De-identified pictures.

    Attributes:
        images: `len(inputs) × num_images_per_prompt` pictures, candidates of one input next to each other.
        faces: one list of `FaceReport` per output picture.
    """

    images: list[Image.Image] | list[np.ndarray] | list[torch.Tensor]
    faces: list[list[FaceReport]]


@dataclass
class LDSPipelineOutput(BaseOutput):
    """Sampled identities.

    Attributes:
        identity: `(n, 128)` unit identity embeddings z'.
        shape: `(n, 80)` morphable-model identity coefficients α'.
    """

    identity: torch.Tensor
    shape: torch.Tensor
