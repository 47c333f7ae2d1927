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
from diffdeid.geometry.hand import hand_silhouette, palm_length
from diffdeid.geometry.mask import erased, face_height, signed_distance
from diffdeid.geometry.pixels import on_host, to_tensor
from diffdeid.geometry.surroundings import surroundings
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_parser import FRONT, GLASSES, FaceParserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.fitting import fit, fit_shape_and_pose
from diffdeid.models.hand_finder import HandFinderModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import Face, FaceCrop, MorphableCoefficients

BEYOND = 10 / 256  # crop sizes from the edge of what is erased inwards, to where the face has surely ended
HAND_FIELD, HAND_DETAIL = 2.0, 0.75  # side of the square in which hands are looked for, in crops; its pixels for one of a crop
HAND_EVIDENCE = 0.08  # mean probability of something in front: where hands are .1 to .8, where faces were taken for hands .06
LIKELY_A_HAND = 0.3  # probability from which a pixel beside the silhouette of a hand is its own …
HAND_OUTLINE = 0.25  # … and how far from it, in palms
NEXT_TO_HAIR = 9  # pixels; so wide a brush widens what is surely in front: its soft edge is no evidence of a hand
LIKELY_GLASSES = 0.08  # probability from which a pixel is theirs, low because thin rims are seen beside where they are
GLASSES_SHARE = 0.05  # of what is erased that surely is glasses: with some .058 and more, without any nearly always below .025
GLASSES_OUTLINE, GLASSES_REACH = 10 / 256, 32 / 256  # crop sizes about their pixels; beyond what is erased
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


def find_hands(
    finder: HandFinderModel | None, pictures: Sequence[np.ndarray], crops: Sequence[FaceCrop]
) -> list[list[np.ndarray]]:
    """The hands in and about crops of pictures `(H, W, 3)` uint8: landmarks `(21, 2)` each, in crop pixels."""
    if finder is None:
        return [[] for _ in crops]
    size = len(crops[0].image)
    scale, side = HAND_DETAIL, round(HAND_DETAIL * HAND_FIELD * size)
    shift = (side - scale * size) / 2
    wider = [
        warp(picture, scale * crop.matrix + [[0, 0, shift]] * 2, side, cv2.BORDER_CONSTANT, cv2.INTER_LINEAR)
        for picture, crop in zip(pictures, crops, strict=True)
    ]
    return [[(points - shift) / scale for points in hands] for hands in finder(wider)]


def parse(
    parser: FaceParserModel | None, images: Tensor, depths: Tensor, hands: Sequence[Sequence[np.ndarray]]
) -> tuple[Tensor, Tensor]:
    """What is erased of crops `(B, 3, S, S)` in [-1, 1], with glasses, and how much of each pixel is in front of the face.

    Args:
        parser: without one, nothing is in front, and glasses that reach beyond the face stay in part.
        depths: `(B, 1, S, S)` of what is erased so far.
        hands: landmarks `(21, 2)` of those about each crop, in its pixels.

    Returns:
        Depths, and values 0…1, `(B, 1, S, S)` each.
    """
    if parser is None:
        return depths, torch.zeros_like(depths)
    likely = parser.probabilities(images).nan_to_num(0)  # what is not known is painted
    depths = with_glasses(depths, likely[:, GLASSES : GLASSES + 1])
    return depths, find_what_is_in_front(likely[:, FRONT : FRONT + 1], parser.config.front_threshold, depths, hands)


def with_glasses(depths: Tensor, likely: Tensor) -> Tensor:
    """Depths `(B, 1, S, S)` of what is erased, with the glasses before it, of which each pixel is likely a part, 0…1.

    A new face wears none, and half a lens beside it looks worse than none.
    """
    size = depths.shape[-1]
    grown = on_host(depths).copy()
    for one, its_likely in zip(grown[:, 0], on_host(likely[:, 0]), strict=True):
        face = one > 0
        if not (its_likely > 0.5)[face].sum() > GLASSES_SHARE * face.sum():
            continue
        glasses = _joined(its_likely > LIKELY_GLASSES, face) & (one > -GLASSES_REACH * size)
        one[:] = signed_distance(face | (_distance_to(glasses) <= GLASSES_OUTLINE * size))
    return torch.from_numpy(grown).to(depths.device)


def find_what_is_in_front(likely: Tensor, least: float, depths: Tensor, hands: Sequence[Sequence[np.ndarray]]) -> Tensor:
    """How much of each pixel is in front of the face, given how likely that is, `(B, 1, S, S)`, 0…1 both.

    Below the threshold `least`, which hardly any skin exceeds, it is 0, and beside such a pixel too: outlines are uncertain.
    Things in front come from somewhere: what does not reach beyond the face is the face. The face ends a little before what is
    erased does, whose `depths` are `(B, 1, S, S)`.

    The parser takes fingers before a face for skin, so what it thinks counts for more where hands are found, by their landmarks
    `(21, 2)` in crop pixels. A face in which it sees nothing in front was taken for a hand.
    """
    front = on_host(((likely - least) * 2 / max(1 - least, 1e-3)).clamp(0, 1))
    for one, its_likely, its_depths, its_hands in zip(
        front[:, 0], on_host(likely[:, 0]), on_host(depths[:, 0]), hands, strict=True
    ):
        for points in its_hands:
            one[_hand(points, its_likely, least, its_depths > 0)] = 1
        outside = _joined(its_depths <= 0, _border(one.shape))  # not a mouth that is kept
        one[~_joined(one > 0, signed_distance(~outside) <= BEYOND * len(one))] = 0
        one[:] = cv2.erode(one, np.ones((3, 3)))
    return torch.from_numpy(front).to(likely.device)


def _hand(landmarks: np.ndarray, likely: np.ndarray, least: float, erased_region: np.ndarray) -> np.ndarray:
    """Which pixels `(S, S)` bool show the hand with landmarks `(21, 2)`, given how likely each shows something in front.

    What is in front by itself, from the probability `least` on, says nothing of a hand: it may be hair.
    """
    silhouette, length = hand_silhouette(landmarks, len(likely)) > 0, palm_length(landmarks)
    unclear = silhouette & (cv2.dilate(np.uint8(likely >= least), np.ones((NEXT_TO_HAIR,) * 2)) == 0)
    hiding = unclear & erased_region
    if not (hiding.any() and likely[hiding].mean() > HAND_EVIDENCE):
        return np.zeros_like(silhouette)
    window = (max(1, round(length / 2)),) * 2
    about = cv2.blur(np.float32(unclear), window)
    evidence = (about > 0) & (cv2.blur(likely * unclear, window) > HAND_EVIDENCE * about)
    return (silhouette & evidence) | ((_distance_to(silhouette) <= HAND_OUTLINE * length) & (likely > LIKELY_A_HAND))


def _distance_to(region: np.ndarray) -> np.ndarray:
    """How far each pixel `(S, S)` is from a region, pixels; far where there is none."""
    return cv2.distanceTransform(np.uint8(~region), cv2.DIST_L2, 5)


def _joined(region: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The parts of a region `(S, S)` bool that touch another one."""
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
