"""Faces for the training of the network that reconstructs them: pictures in memory, labels, and augmentation that moves both."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from tqdm import tqdm

from diffdeid.geometry.camera import DISTANCE, FOCAL
from diffdeid.geometry.lighting import sh_basis
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import MARGIN, FaceStore
from diffdeid.training.head_statistics import mirror_twins
from diffdeid.training.mirror import mirror_coefficients

EVALUATION_FACES = 128  # held out, and as many of the training faces


# Labels: `coefficients` (N, 261); `landmarks` (N, 468, 3) and iris centres `iris` (N, 2, 2) in crop sizes (0…1).


def read_faces(store: FaceStore, names: list[str], sample_size: int) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Pictures and labels of faces, for keeping in memory.

    Returns:
        pictures `(N, S, S, 3)` uint8 with the margin of the store, resized so that the crop proper has `sample_size` pixels;
        and the labels.
    """
    if not names:
        raise ValueError("`validation_names` leaves no face to train on or none to validate with.")
    side = round(sample_size / (1 - 2 * MARGIN))
    pictures = np.empty((len(names), side, side, 3), np.uint8)
    labels: dict[str, list] = {"coefficients": [], "landmarks": [], "iris": []}
    for picture, name in zip(pictures, tqdm(names, desc="reading", unit="face", disable=None), strict=True):
        with store.open(name) as file:
            image = file.get_tensor("image")
            proper = image.shape[0] * (1 - 2 * MARGIN)
            cv2.resize(image, (side, side), dst=picture, interpolation=cv2.INTER_AREA)
            labels["coefficients"].append(file.get_tensor("fit"))  # all of δ
            labels["landmarks"].append(file.get_tensor("landmarks") / proper)
            labels["iris"].append(file.get_tensor("iris")[:, 0] / proper)
    return pictures, {name: torch.from_numpy(np.stack(values)).float() for name, values in labels.items()}


def landmark_twins(model: MorphableModel) -> Tensor:
    """For each of the 468 landmarks the one on the other side of the face."""
    return mirror_twins(model.at_landmarks(model.mean))


def mirrored(labels: dict[str, Tensor], twins: Tensor) -> dict[str, Tensor]:
    """The labels of the mirrored pictures."""
    landmarks, iris = labels["landmarks"][:, twins].clone(), labels["iris"].flip(1)
    for points in (landmarks, iris):
        points[..., 0] = 1 - points[..., 0]
    return {"coefficients": mirror_coefficients(labels["coefficients"]), "landmarks": landmarks, "iris": iris}


# Jitter: `angle` (…) radians, counter-clockwise; `zoom` (…) above 1 enlarges; `shift` (…, 2) of the window in crop sizes, right
# and down; `gain` (…, 3) of the colours.


def draw_jitter(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random jitter of one face."""
    return {
        "angle": np.float32(np.deg2rad(rng.uniform(-5, 5))),
        "zoom": np.float32(rng.uniform(0.96, 1.04)),
        "shift": rng.uniform(-0.03, 0.03, 2).astype(np.float32),
        "gain": (rng.uniform(0.65, 1.2) * rng.uniform(0.93, 1.07, 3)).astype(np.float32),
    }


NO_JITTER = {"angle": np.float32(0), "zoom": np.float32(1), "shift": np.zeros(2, np.float32), "gain": np.ones(3, np.float32)}


def jittered_labels(labels: dict[str, Tensor], jitter: dict[str, Tensor], centre: Tensor) -> dict[str, Tensor]:
    """Labels of B faces in jittered pictures.

    Turning the picture turns camera, head and light about the optical axis: exact. Another window is another direction of view,
    which turns and moves the head, and zooming brings it nearer: exact but for the perspective within the face (about 0.3 % of
    the distances in the picture), while landmarks and irises move exactly.

    Args:
        centre: `(3,)`, the point of the head, in its space, at which zooming is exact.
    """
    coefficients = MorphableCoefficients.unpack(labels["coefficients"])
    angle, zoom, shift = jitter["angle"], jitter["zoom"], jitter["shift"]
    zero = torch.zeros_like(angle)
    roll = rotation_matrix(torch.stack([zero, zero, angle], dim=-1))
    view = rotation_matrix(torch.stack([shift[:, 1] / FOCAL, shift[:, 0] / FOCAL, zero], dim=-1))  # small: tan a = a
    turn = roll @ view

    camera = turn.new_tensor([0, 0, DISTANCE])
    rotation = turn @ rotation_matrix(coefficients.pose[:, :3])
    translation = (turn @ (coefficients.pose[:, 3:] - camera)[..., None])[..., 0] + camera
    depth = DISTANCE - translation[:, 2] - (rotation @ centre)[:, 2]
    translation[:, 2] += depth * (1 - 1 / zoom)

    # Points in the window: zoom · R (u - centre of the window) + 1/2, with R of the picture, whose y points down.
    flat = (zoom[:, None, None] * roll[:, :2, :2]).mT
    points = {}
    for name in ("landmarks", "iris"):
        points[name] = (labels[name][..., :2] - 0.5 - shift[:, None]) @ flat.mT + 0.5
    points["landmarks"] = torch.cat([points["landmarks"], zoom[:, None, None] * labels["landmarks"][..., 2:]], dim=-1)

    light = turned_light(coefficients.illumination, turn) * jitter["gain"].repeat(1, 9)
    pose = torch.cat([rotation_vector(rotation), translation], dim=-1)
    groups = (coefficients.shape, coefficients.expression, coefficients.albedo, light, pose, coefficients.gaze)
    return points | {"coefficients": torch.cat(groups, dim=-1)}


def turned_light(illumination: Tensor, turn: Tensor) -> Tensor:
    """γ `(B, 27)` under which normals turned by `(B, 3, 3)` look as before: what 32 directions say of the nine harmonics."""
    directions = normalize(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), dim=-1).to(turn)
    shading = sh_basis(directions) @ illumination.unflatten(-1, (9, 3))
    return torch.linalg.lstsq(sh_basis(directions @ turn.mT), shading).solution.flatten(1)


def jittered_picture(picture: np.ndarray, jitter: dict[str, np.ndarray], size: int) -> np.ndarray:
    """The window of a picture with margin `(S, S, 3)` that `jittered_labels` describes, `(size, size, 3)`."""
    cos, sin = jitter["zoom"] * np.cos(jitter["angle"]), jitter["zoom"] * np.sin(jitter["angle"])
    linear = np.array([[cos, sin], [-sin, cos]])
    scale = size / (len(picture) * (1 - 2 * MARGIN))
    middle = len(picture) * (0.5 + (1 - 2 * MARGIN) * jitter["shift"]) - 0.5  # OpenCV counts from pixel centres
    offset = size / 2 - 0.5 - scale * linear @ middle
    matrix = np.concatenate([scale * linear, offset[:, None]], axis=1)
    window = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(window * jitter["gain"], 0, 255).round().astype(np.uint8)


def degraded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What cameras, networks and hands do to a picture `(S, S, 3)` uint8 without changing the face."""
    size, occur = len(picture), rng.random(6) < (0.4, 0.3, 0.25, 0.25, 0.3, 0.3)
    if occur[0]:
        picture = occluded(picture, rng)
    if occur[1]:
        picture = cv2.convertScaleAbs(picture, alpha=(contrast := rng.uniform(0.6, 1.4)), beta=128 * (1 - contrast))
    if occur[2]:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.5) * size / 128)
    if occur[3]:
        small = cv2.resize(picture, (round(size * rng.uniform(0.25, 0.9)),) * 2, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    if occur[4]:
        noise = rng.standard_normal(picture.shape, np.float32) * rng.uniform(2, 15)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if occur[5]:
        _, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 95))))
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return picture


def occluded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture `(S, S, 3)` with a plain or noisy rectangle or ellipse over up to a third of it."""
    size = len(picture)
    side, aspect = size * math.sqrt(rng.uniform(0.02, 1 / 3)), math.sqrt(rng.uniform(0.4, 2.5))
    box = (rng.uniform(0, size, 2).tolist(), (side * aspect, side / aspect), rng.uniform(0, 180))
    mask = np.zeros((size, size), np.uint8)
    if rng.random() < 0.5:
        cv2.ellipse(mask, box, 1, thickness=-1)
    else:
        cv2.fillPoly(mask, [cv2.boxPoints(box).round().astype(np.int32)], 1)
    cover = np.broadcast_to(rng.integers(0, 256, 3), picture.shape)
    if rng.random() < 0.5:
        cells = rng.integers(0, 256, (*rng.integers(2, 33, 2), 3), dtype=np.uint8)  # from spots to fine grain
        cover = cv2.resize(cells, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.where(mask[..., None] > 0, cover, picture).astype(np.uint8)


class ReconstructorFaces(Dataset):
    """An endless stream of augmented pictures. Sample n depends only on the seed and n, so a run can be resumed anywhere.

    A sample has `image` (what the network sees), `picture` (without what `degraded` does), both `(size, size, 3)` uint8, its
    jitter, `grey` (0 or 1), and `index`, the row of its labels: those of N faces are followed by those of their mirror images.

    Args:
        pictures: `(N, S, S, 3)` uint8 with margin.
        size: pixels of a sample.
        seed: of the stream.
    """

    def __init__(self, pictures: np.ndarray, size: int, seed: int):
        self.pictures, self.size, self.seed = pictures, size, seed

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, n))
        index = int(rng.integers(2 * len(self.pictures)))
        stored = self.pictures[index % len(self.pictures)]
        if index >= len(self.pictures):
            stored = np.ascontiguousarray(stored[:, ::-1])
        jitter = draw_jitter(rng)
        picture = jittered_picture(stored, jitter, self.size)
        grey = rng.random() < 0.08
        if grey:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return jitter | {"index": index, "picture": picture, "image": degraded(picture, rng), "grey": np.float32(grey)}


def plain_batches(pictures: np.ndarray, labels: dict[str, Tensor], size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Evenly spaced faces without augmentation, with their labels."""
    rows = torch.arange(0, len(pictures), math.ceil(len(pictures) / EVALUATION_FACES))
    images = torch.from_numpy(np.stack([jittered_picture(pictures[row], NO_JITTER, size) for row in rows]))
    faces = {name: values[rows] for name, values in labels.items()}
    faces |= {"image": images, "picture": images, "grey": torch.zeros(len(rows))}
    parts = {name: values.to(device).split(32) for name, values in faces.items()}
    return [{name: parts[name][number] for name in parts} for number in range(len(parts["image"]))]
