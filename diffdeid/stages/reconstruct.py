"""Stage 2: crop faces and find ρ, z_id and what the surroundings tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.align import CHIP_SIZE, chip_matrix, ffhq_matrix, sample, warp
from diffdeid.geometry.eyes import gaze_from_iris
from diffdeid.geometry.mask import erased, signed_distance
from diffdeid.geometry.pixels import to_tensor
from diffdeid.geometry.surroundings import surroundings
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.fitting import fit, fit_shape_and_pose
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import Face, FaceCrop, MorphableCoefficients


def crop_face(picture: np.ndarray, face: Face, size: int, crop_factor: float) -> FaceCrop:
    """The aligned crop of a face that has landmarks."""
    matrix = ffhq_matrix(face.landmarks, size, crop_factor)
    return FaceCrop(warp(picture, matrix, size), matrix)


def place(crops: Sequence[FaceCrop], faces: Sequence[Face], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Landmarks `(B, 468, 3)` and irises `(B, 2, 5, 2)` of faces in the pixels of their crops."""
    placed = []
    for name in ("landmarks", "iris"):
        points = [crop.to_crop(getattr(face, name)) for crop, face in zip(crops, faces, strict=True)]
        placed.append(torch.from_numpy(np.stack(points)).float().to(device))
    return tuple(placed)


def mask_crops(landmarks: np.ndarray, size: int, keep_mouth: bool, device: torch.device | str = "cpu") -> Tensor:
    """What is erased of crops with landmarks `(B, 468, 3)` in their pixels, as `signed_distance` `(B, 1, S, S)`."""
    depths = [signed_distance(erased(points, size, keep_mouth)) for points in landmarks]
    return torch.from_numpy(np.stack(depths))[:, None].to(device)


def find_coefficients(
    model: MorphableModel,
    reconstructor: FaceReconstructorModel | None,
    images: Tensor,
    landmarks: Tensor,
    iris: Tensor,
    reconstruction: Literal["fit", "network"],
) -> MorphableCoefficients:
    """ρ of crops `(B, 3, S, S)` in [-1, 1], by least squares or by the network, to which the irises are known to the pixel."""
    if reconstruction == "fit":
        return fit(model, landmarks, iris, (images.permute(0, 2, 3, 1) + 1) / 2)
    found = reconstructor(images.to(reconstructor.dtype)).coefficients
    return replace(found, gaze=gaze_from_iris(landmarks, iris))


def follow_coefficients(
    model: MorphableModel,
    reconstructor: FaceReconstructorModel | None,
    images: Tensor,
    landmarks: Tensor,
    iris: Tensor,
    reconstruction: Literal["fit", "network"],
    reference: MorphableCoefficients,
    follow_light: bool,
) -> MorphableCoefficients:
    """ρ̂ = {α_f, β_f, δ_d, γ_d, p_f, ω_f} of frames (paper §3.4): skin and light are those of a reference, a row a frame."""
    light = reference.illumination
    if reconstruction == "network" or follow_light:
        found = find_coefficients(model, reconstructor, images, landmarks, iris, reconstruction)
        light = found.illumination if follow_light else light
    if reconstruction == "fit":  # of points alone: by pixels, α and p would tremble
        fitted, gaze = fit_shape_and_pose(model, landmarks, images.shape[-1]), gaze_from_iris(landmarks, iris)
        found = MorphableCoefficients(fitted.shape, fitted.expression, reference.albedo, light, fitted.pose, gaze)
    return replace(found, albedo=reference.albedo, illumination=light)


def embed(recogniser: FaceRecognitionModel, images: Tensor, landmarks: np.ndarray) -> Tensor:
    """z_id `(B, 128)` of crops `(B, 3, S, S)` in [-1, 1] with landmarks `(B, 468, 2+)` in their pixels."""
    matrices = torch.from_numpy(np.stack([chip_matrix(points) for points in landmarks]))
    chips = sample(images, matrices, CHIP_SIZE)
    return recogniser(chips.to(recogniser.dtype)).embedding.float()


def encode_context(
    encoder: ContextEncoderModel, picture: np.ndarray, face: Face, others: Sequence[Face], device: torch.device | str = "cpu"
) -> Tensor:
    """What the surroundings of a face tell of the person, `(1, context_dim)`; the face and `others` are erased from them."""
    seen = to_tensor([surroundings(picture, face, others)], device)
    return encoder(seen.to(encoder.dtype)).context.float()
