"""Stage 2: crop faces and find ρ, z_id and what the surroundings tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.align import CHIP_SIZE, chip_matrix, ffhq_matrix, sample, warp
from diffdeid.geometry.eyes import gaze_from_iris
from diffdeid.geometry.mask import erased, face_height, signed_distance
from diffdeid.geometry.pixels import on_host, to_tensor
from diffdeid.geometry.surroundings import surroundings
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_parser import FaceParserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.fitting import fit, fit_shape_and_pose
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import Face, FaceCrop, MorphableCoefficients

EDGE = 2 / 256  # crop sizes that landmarks keep from the edge of a crop; more makes all faces smaller, which costs realism


def crop_face(picture: np.ndarray, face: Face, size: int, crop_factor: float) -> FaceCrop:
    """The aligned crop of a face that has landmarks."""
    matrix = crop_matrix(face.landmarks, size, crop_factor)
    return FaceCrop(warp(picture, matrix, size), matrix)


def crop_matrix(landmarks: np.ndarray, size: int, crop_factor: float = 0.8) -> np.ndarray:
    """Picture -> the aligned crop of a face with landmarks `(468, 2+)`, larger where it would cut some of them off.

    So the chin under a wide-open mouth is in it, and the forehead of a head that is far back.
    """
    matrix = ffhq_matrix(landmarks, size, crop_factor)
    reach = np.abs(landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2] - size / 2).max()
    zoom = min(1.0, (0.5 - EDGE) * size / reach)
    return zoom * matrix + [[0, 0, (1 - zoom) * size / 2]] * 2


def place(crops: Sequence[FaceCrop], faces: Sequence[Face], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Landmarks `(B, 468, 3)` and irises `(B, 2, 5, 2)` of faces in the pixels of their crops."""
    placed = []
    for name in ("landmarks", "iris"):
        points = [crop.to_crop(getattr(face, name)) for crop, face in zip(crops, faces, strict=True)]
        placed.append(torch.from_numpy(np.stack(points)).float().to(device))
    return tuple(placed)


def mask_crops(
    landmarks: np.ndarray,
    size: int,
    keep_mouth: bool,
    device: torch.device | str = "cpu",
    doubts: Sequence[float] | None = None,
) -> Tensor:
    """What is erased of crops with landmarks `(B, 468, 3)` in their pixels, as `signed_distance` `(B, 1, S, S)`.

    It reaches farther by what landmarks may be off, `Face.doubt`, so that nothing of a face is left.
    """
    depths = [
        signed_distance(erased(points, size, keep_mouth)) + doubt * face_height(points)
        for points, doubt in zip(landmarks, doubts or [0.0] * len(landmarks), strict=True)
    ]
    return torch.from_numpy(np.float32(depths))[:, None].to(device)


def find_what_is_in_front(parser: FaceParserModel | None, images: Tensor, depths: Tensor) -> Tensor:
    """How much of each pixel of crops `(B, 3, S, S)` in [-1, 1] is in front of the face, `(B, 1, S, S)`, 0…1.

    Below the parser's threshold, which hardly any skin exceeds, it is 0, and beside such a pixel too: outlines are uncertain.
    Things in front come from somewhere: what lies within what is erased, by `depths` `(B, 1, S, S)`, and does not reach beyond
    it is the face. Without a parser it is 0 throughout.
    """
    if parser is None:
        return torch.zeros_like(depths)
    least = parser.config.front_threshold
    probability = parser.front(images).nan_to_num(0)  # what is not known is painted
    front = on_host(((probability - least) * 2 / max(1 - least, 1e-3)).clamp(0, 1))
    for one, outside in zip(front[:, 0], on_host(depths[:, 0] <= 0), strict=True):
        one[~_joined(one > 0, _joined(outside, _border(one.shape)))] = 0
        one[:] = cv2.erode(one, np.ones((3, 3)))
    return torch.from_numpy(front).to(images.device)


def _joined(region: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The parts of a region `(S, S)` bool that touch another one. (A mouth that is kept is no way out of a face.)"""
    _, parts = cv2.connectedComponents(region.astype(np.uint8))
    return region & np.isin(parts, parts[to & region])


def _border(shape: tuple[int, int]) -> np.ndarray:
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border


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
