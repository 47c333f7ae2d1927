"""The outputs of the pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from diffdeid.engine.reports import FaceReport, PersonReport


@dataclass
class DiffDeIDVideoPipelineOutput(BaseOutput):
    """A de-identified video.

    Attributes:
        path: the file written.
        num_frames: how many frames it has.
        people: a report for everybody in it.
        notes: what else was changed in the pictures, in words.
    """

    path: Path
    num_frames: int
    people: list[PersonReport]
    notes: list[str]


@dataclass
class DiffDeIDPipelineOutput(BaseOutput):
    """De-identified pictures.

    Attributes:
        images: `len(inputs) × num_images_per_prompt` pictures, candidates of one input next to each other, of the type of
            `output_type`; `None` in place of those that failed.
        faces: one list of `FaceReport` for each output picture.
        errors: for each input its error, or `None`.
    """

    images: list[Image.Image | None] | list[np.ndarray | None] | list[torch.Tensor | None] | torch.Tensor
    faces: list[list[FaceReport]]
    errors: list[Exception | None]


@dataclass
class LDSPipelineOutput(BaseOutput):
    """Sampled identities.

    Attributes:
        identity: `(n, 128)` unit identity embeddings z'.
        shape: `(n, 80)` morphable-model identity coefficients α'.
    """

    identity: torch.Tensor
    shape: torch.Tensor
