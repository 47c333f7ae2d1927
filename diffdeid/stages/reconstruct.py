"""Stage 2: crop faces, and find ρ, z_id, the erased region, and what the surroundings tell."""

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

BEYOND = 10 / 256  # crop sizes from the edge of the erased region inwards, in which the face surely has ended
HAND_FIELD, HAND_DETAIL = 2.0, 0.75  # side of the square searched for hands, in crops; its pixels for each pixel of a crop
HAND_EVIDENCE = 0.08  # least mean probability of something in front: 0.1…0.8 for hands, 0.06 for faces mistaken for hands
LIKELY_A_HAND = 0.3  # probability from which a pixel beside the silhouette of a hand belongs to it …
HAND_OUTLINE = 0.25  # … at this distance at most, in palms
NEXT_TO_HAIR = 9  # pixels by which things surely in front are widened, because their soft edges are no evidence of a hand
FRONT_SOFTNESS = 1.5 / 256  # crop sizes; standard deviation of the blur that makes the edges of things in front soft …
FRONT_EDGE = 5 / 256  # … within this distance of where they are solid
LIKELY_GLASSES = 0.08  # probability from which a pixel belongs to glasses, low because thin rims are found a bit beside them
GLASSES_SHARE = 0.05  # least share of sure glasses in the erased region: 0.058 and more with glasses, else mostly below 0.025
GLASSES_OUTLINE, GLASSES_REACH = 10 / 256, 32 / 256  # crop sizes erased around glasses, and most beyond the erased region
EDGE = 2 / 256  # crop sizes between landmarks and the edge of a crop; more would make faces smaller, which costs realism


def crop_face(picture: np.ndarray, face: Face, size: int, crop_factor: float) -> FaceCrop:
    """The aligned crop of a face that has landmarks."""
    matrix = crop_matrix(face.landmarks, size, crop_factor)
    return FaceCrop(warp(picture, matrix, size), matrix)


def crop_matrix(landmarks: np.ndarray, size: int, crop_factor: float = 0.8) -> np.ndarray:
    """The matrix `(2, 3)`, picture -> aligned crop of a face with landmarks `(468, 2+)`.

    The crop is enlarged where it would cut landmarks off: the chin under a wide-open mouth, or the forehead of a head that leans
    back.
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
    """The erased region of crops with landmarks `(B, 468, 3)` in their pixels, as `signed_distance` `(B, 1, S, S)`.

    It is larger by the expected error of the landmarks, `Face.doubt`, so that nothing of a face is left.
    """
    depths = [
        signed_distance(erased(points, size, keep_mouth)) + doubt * face_height(points)
        for points, doubt in zip(landmarks, doubts or [0.0] * len(landmarks), strict=True)
    ]
    return torch.from_numpy(np.float32(depths))[:, None].to(device)


def find_hands(
    finder: HandFinderModel | None, pictures: Sequence[np.ndarray], crops: Sequence[FaceCrop]
) -> list[list[np.ndarray]]:
    """Find the hands in and around crops of pictures `(H, W, 3)` uint8: landmarks `(21, 2)` each, in crop pixels."""
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
    """Add glasses to the erased region of crops `(B, 3, S, S)` in [-1, 1], and find what lies in front of the faces.

    Args:
        parser: without one, nothing is in front, and parts of glasses that reach beyond the face stay.
        depths: `(B, 1, S, S)` of the erased region so far.
        hands: for each crop, landmarks `(21, 2)` of the hands around it, in its pixels.

    Returns:
        The new depths, and how much of each pixel is in front, 0…1, `(B, 1, S, S)` each.
    """
    if parser is None:
        return depths, torch.zeros_like(depths)
    likely = parser.probabilities(images).nan_to_num(0)  # unknown pixels count as face
    depths = with_glasses(depths, likely[:, GLASSES : GLASSES + 1])
    return depths, find_what_is_in_front(likely[:, FRONT : FRONT + 1], parser.config.front_threshold, depths, hands)


def with_glasses(depths: Tensor, likely: Tensor) -> Tensor:
    """Add glasses to the erased region, depths `(B, 1, S, S)`, by their probability `likely` `(B, 1, S, S)`, 0…1.

    A new face wears no glasses, and half a lens beside it looks worse than none.
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
    """How much of each pixel is in front of the face, from its probability `likely`; `(B, 1, S, S)`, 0…1 both.

    It is 0 below the threshold `least`, which hardly any skin exceeds, and next to such pixels, because outlines are uncertain.
    From there it fades in, as hard edges look cut out. Things in front reach beyond the face; a part that does not is the
    face itself. The face ends a little inside the erased region, whose `depths` are `(B, 1, S, S)`.

    The parser takes fingers in front of a face for skin, so lower probabilities count where hands were found, with landmarks
    `(21, 2)` in crop pixels. If the parser sees nothing in front there, the face was mistaken for a hand.
    """
    front = on_host(((likely - least) * 2 / max(1 - least, 1e-3)).clamp(0, 1))
    for one, its_likely, its_depths, its_hands in zip(
        front[:, 0], on_host(likely[:, 0]), on_host(depths[:, 0]), hands, strict=True
    ):
        for points in its_hands:
            one[_hand(points, its_likely, least, its_depths > 0)] = 1
        outside = _joined(its_depths <= 0, _border(one.shape))  # without a kept mouth, which is not erased either
        one[~_joined(one > 0, signed_distance(~outside) <= BEYOND * len(one))] = 0
        one[:] = cv2.erode(one, np.ones((3, 3)))
        one *= _faded(one > 0)
    return torch.from_numpy(front).to(likely.device)


def _hand(landmarks: np.ndarray, likely: np.ndarray, least: float, erased_region: np.ndarray) -> np.ndarray:
    """Which pixels `(S, S)` bool show the hand with landmarks `(21, 2)`, by the probability `likely` of something in front.

    Pixels with a probability of at least `least` are no evidence of a hand: they are in front anyway, and may be hair.
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
    """The distance of each pixel `(S, S)` from a region, in pixels; large if the region is empty."""
    return cv2.distanceTransform(np.uint8(~region), cv2.DIST_L2, 5)


def _joined(region: np.ndarray, to: np.ndarray) -> np.ndarray:
    """The connected parts of a region `(S, S)` bool that overlap with another region `to`."""
    _, parts = cv2.connectedComponents(region.astype(np.uint8))
    return region & np.isin(parts, parts[to & region])


def _faded(region: np.ndarray) -> np.ndarray:
    """How much of a region `(S, S)` bool is seen: 0 at its edge, 1 some pixels inside; this smooths edges that follow pixels.

    Parts that are too thin to fade in, such as strands of hair and cords, are seen as they are.
    """
    faded = (2 * cv2.GaussianBlur(np.float32(region), (0, 0), FRONT_SOFTNESS * len(region)) - 1).clip(0, 1)
    reach = round(FRONT_EDGE * len(region))
    solid = cv2.dilate(np.uint8(faded > 0.9), np.ones((2 * reach + 1,) * 2)) > 0
    return np.where(solid, faded, region)


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
    """ρ of crops `(B, 3, S, S)` in [-1, 1], by least squares or by the network; the gaze comes from the irises in both."""
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
    """ρ̂ = {α_f, β_f, δ_d, γ_d, p_f, ω_f} of frames (paper §3.4); skin and light are those of `reference`, a row per frame."""
    light = reference.illumination
    if reconstruction == "network" or follow_light:
        found = find_coefficients(model, reconstructor, images, landmarks, iris, reconstruction)
        light = found.illumination if follow_light else light
    if reconstruction == "fit":  # to landmarks alone: fitted to pixels, α and p would tremble
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
    """The context vector of a face, `(1, context_dim)`, from its surroundings without the face and without `others`."""
    seen = to_tensor([surroundings(picture, face, others)], device)
    return encoder(seen.to(encoder.dtype)).context.float()
