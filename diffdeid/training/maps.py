"""The maps of a prepared face that are drawn, not photographed: its erased region, and the renders of its head."""

import cv2
import numpy as np
import torch

from diffdeid.geometry.mask import face_region, mouth_region
from diffdeid.geometry.pixels import on_host, to_bytes
from diffdeid.models.conditioning import render_conditions
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import DISTANCE_LEVELS

SIZE, MARGIN = 256, 16
FULL = SIZE + 2 * MARGIN


def regions(landmarks: np.ndarray) -> np.ndarray:
    """The `mask` of a face, `(FULL, FULL, 2)` uint8: distance to its outline, and mouth; from landmarks in the crop proper."""
    face, mouth = (region(landmarks[:, :2] + MARGIN, FULL) for region in (face_region, mouth_region))
    inside, outside = (
        cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for region in (face, 1 - face)
    )
    distance = np.where(face > 0, inside - 0.5, 0.5 - outside)  # from the outline to the middle of a pixel
    return np.stack([127.5 + DISTANCE_LEVELS * distance, 255 * mouth], axis=-1).clip(0, 255).astype(np.uint8)


@torch.no_grad()
def shown(morphable_model: MorphableModel, coefficients: MorphableCoefficients) -> dict[str, np.ndarray]:
    """The denoiser's conditions of a face: `coefficients` and the maps rendered from them."""
    maps = on_host(to_bytes(render_conditions(morphable_model, coefficients, SIZE, MARGIN).maps)[0])
    return {
        "render": maps[..., :3].copy(),
        "normals": maps[..., 3:6].copy(),
        "guides": maps[..., 6:].copy(),
        "coefficients": coefficients.pack()[0].numpy(),
    }
