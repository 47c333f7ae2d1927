"""Aligned crops: similarity transforms from landmarks, and warping pictures with them.

Matrices are `(2, 3)` float64 and map continuous pixel coordinates, (0, 0) being the top-left corner of the top-left pixel, from
source to target. OpenCV counts from pixel centres; `between_centres` converts.

Sources: S. Umeyama, PAMI 1991 (least-squares similarity); the FFHQ alignment, Karras et al. 2019; dlib's `get_face_chip_details`
(Boost licence).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.landmarks import LEFT_EYE, RIGHT_EYE

CHIN_ROOM = 0.03  # part of the side by which FFHQ's centre is moved down; else our tighter square would cut chins of open mouths
FINEST = 8  # most samples that `warp` takes for a target pixel along each axis
CHIP_SIZE = 150
CHIP_PADDING = 0.25
CHIP_LANDMARKS = (263, 362, 33, 133, 2)  # left eye outer, inner, right eye outer, inner corner, base of the nose
CHIP_TEMPLATE = (  # the same points in dlib's mean face, whose square is padded by CHIP_PADDING on all sides
    (0.8595674595992, 0.2134981538014),
    (0.6460604764104, 0.2289674387677),
    (0.1205750620789, 0.2137274526848),
    (0.3340850613712, 0.2290642403242),
    (0.4901123135679, 0.6277975316475),
)


def similarity_transform(source_points: np.ndarray, target_points: np.ndarray) -> np.ndarray:
    """The least-squares rotation, uniform scale and shift (no mirroring) `(2, 3)` that maps `(N, 2)` points onto others.

    Raises:
        ValueError: all source points are the same.

    >>> similarity_transform([[0, 0], [1, 0]], [[5, 5], [5, 7]]).round(6) + 0.0
    array([[ 0., -2.,  5.],
           [ 2.,  0.,  5.]])
    """
    source, target = (np.asarray(points, np.float64) for points in (source_points, target_points))
    # As complex numbers a similarity is z -> a z + b, and least squares has a closed form.
    z, w = source @ (1, 1j), target @ (1, 1j)
    centred = z - z.mean()
    energy = np.vdot(centred, centred).real
    if energy == 0:
        raise ValueError("`source_points` must not all be the same point.")
    a = np.vdot(centred, w) / energy
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a `(2, 3)` matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The affine map `(2, 3)` that applies `inner` first, then `outer`."""
    return np.concatenate([outer[:, :2] @ inner[:, :2], (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


def scale_of(matrix: np.ndarray) -> float:
    """The scale of a `(2, 3)` matrix: target pixels per source pixel."""
    return math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def square_matrix(centre: np.ndarray, right: np.ndarray, side: float, size: int) -> np.ndarray:
    """The similarity that maps a square of the picture onto `(0, 0)…(size, size)`.

    Args:
        centre: `(2,)`, middle of the square.
        right: `(2,)`, direction (of any length) that becomes +x.
        side: length of its sides in picture pixels.
        size: side of the target in pixels.
    """
    x, y = np.asarray(right, np.float64) / np.hypot(*right) * (size / side)
    linear = np.array([[x, y], [-y, x]])
    return np.concatenate([linear, (size / 2 - linear @ centre)[:, None]], axis=1)


def upright(eye_to_eye: np.ndarray, eye_to_mouth: np.ndarray) -> np.ndarray:
    """A face's horizontal, `(2,)`, which points to the right of an upright picture; two vectors make it hold for profiles too."""
    return eye_to_eye + (eye_to_mouth[1], -eye_to_mouth[0])


def right_of(keypoints: np.ndarray) -> np.ndarray:
    """A face's horizontal, `(2,)`, as `upright` gives it, from the detector's five points `(5, 2)`."""
    right_eye, left_eye, _, right_mouth, left_mouth = keypoints
    return upright(left_eye - right_eye, (right_mouth + left_mouth - right_eye - left_eye) / 2)


def ffhq_matrix(landmarks: np.ndarray, size: int = 256, crop_factor: float = 0.8) -> np.ndarray:
    """Picture -> crop: a square `crop_factor` times that of FFHQ, rotated with the face, moved down by `CHIN_ROOM`.

    Args:
        landmarks: `(468, 2 or 3)` FaceMesh landmarks in the picture.
        size: side of the crop in pixels.
        crop_factor: side of the crop in FFHQ squares.
    """
    points = np.asarray(landmarks, np.float64)[:, :2]
    right_eye, left_eye = points[list(RIGHT_EYE)].mean(axis=0), points[list(LEFT_EYE)].mean(axis=0)
    eyes, mouth = (right_eye + left_eye) / 2, (points[61] + points[291]) / 2
    eye_to_eye, eye_to_mouth = left_eye - right_eye, mouth - eyes
    side = 2 * crop_factor * max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    right = upright(eye_to_eye, eye_to_mouth)
    down = np.array([-right[1], right[0]]) / np.hypot(*right)
    return square_matrix(eyes + 0.1 * eye_to_mouth + CHIN_ROOM * side * down, right, side, size)


def chip_matrix(landmarks: np.ndarray) -> np.ndarray:
    """The matrix `(2, 3)` to the 150-pixel chip that `FaceRecognitionModel` was trained on.

    Args:
        landmarks: `(468, 2 or 3)`, in the coordinates of the picture or crop that the chip is sampled from.
    """
    template = (np.array(CHIP_TEMPLATE) + CHIP_PADDING) / (1 + 2 * CHIP_PADDING) * CHIP_SIZE
    return invert(similarity_transform(template, np.asarray(landmarks)[list(CHIP_LANDMARKS), :2]))  # dlib fits in this direction


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: int | tuple[int, int],
    border: int = cv2.BORDER_REFLECT_101,
    interpolation: int = cv2.INTER_CUBIC,
) -> np.ndarray:
    """Resample a picture through a similarity, without aliasing when it shrinks.

    It interpolates on an integer multiple of the target grid, then takes the mean over each target pixel. Where that multiple
    would be larger than `FINEST`, the picture is shrunk first: an extreme matrix must not take all memory.

    Args:
        image: `(H, W)` or `(H, W, C)`, uint8 or float32.
        matrix: source -> target.
        size: side, or (width, height), of the target in pixels.
        border: OpenCV's rule for pixels outside the picture; mirrored by default, zero with `BORDER_CONSTANT`.
        interpolation: OpenCV's; cubic keeps fine detail, and linear takes less than half of the time.
    """
    width, height = (size, size) if isinstance(size, int) else size
    factor = max(1, math.ceil(1 / scale_of(matrix) - 0.01))
    if factor > FINEST:
        shrunk = [max(1, round(side * FINEST / factor)) for side in image.shape[1::-1]]
        matrix = np.column_stack([matrix[:, :2] * np.divide(image.shape[1::-1], shrunk), matrix[:, 2]])
        image, factor = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA), FINEST
    centred = between_centres(matrix * factor)
    fine = cv2.warpAffine(image, centred, (width * factor, height * factor), flags=interpolation, borderMode=border)
    return fine if factor == 1 else cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)


def between_centres(matrix: np.ndarray) -> np.ndarray:
    """The same map between coordinates that count from the centre of the top-left pixel, as OpenCV does."""
    shift = 0.5 * matrix[:, :2].sum(axis=1) - 0.5
    return np.column_stack([matrix[:, :2], matrix[:, 2] + shift])


def sample(images: Tensor, matrices: Tensor, size: int) -> Tensor:
    """`warp` for batches of tensors, differentiable in the images.

    It samples bilinearly on a grid of twice the size, then takes the mean of each 2×2: free of aliasing down to half the source
    resolution.

    Args:
        images: `(B, C, H, W)`.
        matrices: `(B, 2, 3)`, image -> output pixels.
        size: side of the output in pixels.

    Returns:
        `(B, C, size, size)`; the border pixel is repeated outside the images.
    """
    height, width = images.shape[2:]
    centres = (torch.arange(2 * size, device=images.device) + 0.5) / 2
    targets = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).view(1, -1, 2)
    matrices = matrices.to(images.device, torch.float32)
    points = (targets - matrices[:, None, :, 2]) @ torch.linalg.inv(matrices[:, :, :2]).mT
    grid = 2 * points / points.new_tensor([width, height]) - 1
    grid = grid.view(-1, 2 * size, 2 * size, 2)
    fine = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)  # half floats cannot hold a grid
    return F.avg_pool2d(fine, 2).to(images.dtype)
