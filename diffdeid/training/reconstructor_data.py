"""Faces for training the reconstructor: pictures in memory, labels, and augmentation that moves both."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from tqdm import tqdm

from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.geometry.lighting import sh_basis
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import MARGIN, FaceStore
from diffdeid.training.head_statistics import mirror_twins
from diffdeid.training.mirror import mirror_coefficients

EVALUATION_FACES = 128  # of the held-out faces, and of the training faces
BOX_CROP, BOX_DROP = 1.16, 0.05  # side of the square about a detected box, and how much lower it is, in sides of an aligned crop
RENDERED_SHARE = 0.55  # of the samples
ASKEW_SHARE = 0.5  # of the photos
FACELESS_SHARE = 0.03  # of the samples


# Labels: `coefficients` (N, 261); `landmarks` (N, 468, 3) and iris centres `iris` (N, 2, 2) in crop sizes (0…1).


def read_faces(store: FaceStore, names: list[str], sample_size: int) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Read pictures and labels of faces into memory.

    Returns:
        Pictures `(N, S, S, 3)` uint8 with the margin of the store, resized so that the crop proper has `sample_size` pixels;
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
    """The index of each landmark's counterpart on the other side of the face, `(468,)`."""
    return mirror_twins(model.at_landmarks(model.mean))


def mirrored(labels: dict[str, Tensor], twins: Tensor) -> dict[str, Tensor]:
    """The labels of the mirrored pictures."""
    landmarks, iris = labels["landmarks"][:, twins].clone(), labels["iris"].flip(1)
    for points in (landmarks, iris):
        points[..., 0] = 1 - points[..., 0]
    return {"coefficients": mirror_coefficients(labels["coefficients"]), "landmarks": landmarks, "iris": iris}


def picture_landmarks(landmarks: Tensor, pose: Tensor) -> Tensor:
    """Project landmarks of heads `(B, 468, 3)` to the coordinates of FaceMesh, in crop sizes."""
    points = project(to_camera(landmarks, pose), 1)
    return torch.cat([points[..., :2], FOCAL / DISTANCE * points[..., 2:]], dim=-1)


# Jitter: `angle` (…) radians, counter-clockwise; `zoom` (…) above 1 enlarges; `shift` (…, 2) of the window in crop sizes, right
# and down; `gain` (…, 3) of the colours.


def draw_jitter(rng: np.random.Generator, askew: bool = False) -> dict[str, np.ndarray]:
    """A random jitter of a face in an aligned crop; `askew` turns the crop into a square about a detected box."""
    turn, zoom, shift = rng.uniform(-5, 5), rng.uniform(0.96, 1.04), rng.uniform(-0.03, 0.03, 2)
    if askew:
        turn, zoom = np.clip(rng.normal(0, 10), -30, 30), 1 / (BOX_CROP * rng.uniform(0.8, 1.2))
        shift = rng.uniform(-0.14, 0.14, 2) + [0, BOX_DROP]
    return {
        "angle": np.float32(np.deg2rad(turn)),
        "zoom": np.float32(zoom),
        "shift": shift.astype(np.float32),
        "gain": (rng.uniform(0.65, 1.2) * rng.uniform(0.93, 1.07, 3)).astype(np.float32),
    }


NO_JITTER = {"angle": np.float32(0), "zoom": np.float32(1), "shift": np.zeros(2, np.float32), "gain": np.ones(3, np.float32)}


def jittered_labels(labels: dict[str, Tensor], jitter: dict[str, Tensor], centre: Tensor) -> dict[str, Tensor]:
    """Labels of B faces in jittered pictures.

    Turning the picture turns camera, head and light about the optical axis, which is exact. Another window is another direction
    of view, which turns and moves the head, and zooming moves it nearer or farther. This is exact except for the perspective
    within the face (about 1 % of its size at a zoom of 0.7), while landmarks and irises move exactly.

    Args:
        centre: `(3,)`, the point of the head, in its space, at which zooming is exact.
    """
    coefficients = MorphableCoefficients.unpack(labels["coefficients"])
    angle, zoom, shift = jitter["angle"], jitter["zoom"], jitter["shift"]
    zero = torch.zeros_like(angle)
    roll = rotation_matrix(torch.stack([zero, zero, angle], dim=-1))
    away = shift.norm(dim=-1).clamp_min(1e-9)
    aside = shift * (torch.atan(away / FOCAL) / away)[:, None]
    view = rotation_matrix(torch.stack([aside[:, 1], aside[:, 0], zero], dim=-1))
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
    """γ `(B, 27)` under which normals turned by `(B, 3, 3)` look as before: solved for the nine harmonics at 32 directions."""
    directions = normalize(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), dim=-1).to(turn)
    shading = sh_basis(directions) @ illumination.unflatten(-1, (9, 3))
    return torch.linalg.lstsq(sh_basis(directions @ turn.mT), shading).solution.flatten(1)


def jittered_picture(
    picture: np.ndarray, jitter: dict[str, np.ndarray], size: int, border: int = cv2.BORDER_REPLICATE
) -> np.ndarray:
    """The window `(size, size, C)` of a picture with margin `(S, S, C)` as in `jittered_labels`, without the gain."""
    cos, sin = jitter["zoom"] * np.cos(jitter["angle"]), jitter["zoom"] * np.sin(jitter["angle"])
    linear = np.array([[cos, sin], [-sin, cos]])
    scale = size / (len(picture) * (1 - 2 * MARGIN))
    middle = len(picture) * (0.5 + (1 - 2 * MARGIN) * jitter["shift"]) - 0.5  # OpenCV counts from pixel centres
    offset = size / 2 - 0.5 - scale * linear @ middle
    matrix = np.concatenate([scale * linear, offset[:, None]], axis=1)
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=border)


def brightened(picture: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """A picture `(S, S, 3)` uint8 times `gain` `(3,)`."""
    return np.clip(picture * gain, 0, 255).round().astype(np.uint8)


def backdrop(pictures: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A background `(size, size, 3)` uint8: a corner of another picture, a blurred one, a gradient or noise."""
    kind, other = rng.random(), pictures[rng.integers(len(pictures))]
    if kind < 0.4:
        side = int(len(other) * rng.uniform(0.15, 0.25))
        corner = other[-side:] if rng.random() < 0.5 else other[:side]
        part = corner[:, -side:] if rng.random() < 0.5 else corner[:, :side]
    elif kind < 0.6:
        part = cv2.resize(other, (int(rng.integers(3, 9)),) * 2, interpolation=cv2.INTER_AREA)
    else:
        part = rng.integers(0, 256, (*rng.integers(1, 12, 2), 3)).astype(np.uint8)
    picture = cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        noise = rng.standard_normal(picture.shape, np.float32) * rng.uniform(2, 25)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return picture


def behind(picture: np.ndarray, opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A background `(S, S, 3)` at times with clothes, and with hair around the head, whose `opacity` is `(S, S)`."""
    size = len(picture)
    picture = picture.copy()
    if rng.random() < 0.6:
        centre = (rng.uniform(0.2, 0.8) * size, rng.uniform(1, 1.25) * size)
        axes = (rng.uniform(0.7, 1.6) * size, rng.uniform(0.5, 1) * size)
        cv2.ellipse(picture, (centre, axes, rng.uniform(-20, 20)), rng.integers(0, 256, 3).tolist(), thickness=-1)
    if rng.random() < 0.3:
        reach = (rng.uniform(0.02, 0.14, 2) * size).astype(int)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1).tolist())
        grown = cv2.dilate(np.roll(opacity, rng.integers(0, size // 8), axis=0), kernel) > 127
        picture[grown] = strands(size, rng)[grown]
    return picture


def strands(size: int, rng: np.random.Generator) -> np.ndarray:
    """A texture of hair, `(size, size, 3)` uint8."""
    colour = rng.uniform(15, 120) * np.array([1, rng.uniform(0.65, 1), rng.uniform(0.4, 1)])
    fine = rng.uniform(0.6, 1.4, (2, int(rng.uniform(0.2, 1) * size)) if rng.random() < 0.5 else (8, 16)).astype(np.float32)
    shades = cv2.resize(fine, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(shades[..., None] * colour, 0, 255).astype(np.uint8)


def covered(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture `(S, S, 3)` with locks of hair or a hand over a part of it."""
    size = len(picture)
    mask = np.zeros((size, size), np.uint8)
    if rng.random() < 0.5:  # locks, from above
        side = rng.choice([-1, 1])
        for _ in range(rng.integers(1, 7)):
            x = size * (0.5 + side * rng.uniform(0.1, 0.5))
            drift = rng.normal(0, 0.05) * size
            knots = np.array([[x + drift * row, size * (row / 4 - 0.1)] for row in range(int(rng.integers(3, 6)))])
            cv2.polylines(mask, [knots.round().astype(np.int32)], False, 1, int(rng.integers(1, size // 8)))
        cover = strands(size, rng)
    else:
        x, y = rng.uniform(0.1, 0.9, 2) * size
        turn, width = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.09) * size
        cv2.ellipse(mask, ((x, y), (4 * width, 4.5 * width), math.degrees(turn)), 1, thickness=-1)
        for finger in range(4):
            angle = turn + (finger - 1.5) * rng.uniform(0.15, 0.3)
            length = width * rng.uniform(4, 6.5)
            tip = (int(x + length * math.cos(angle)), int(y + length * math.sin(angle)))
            cv2.line(mask, (int(x), int(y)), tip, 1, max(1, int(0.9 * width)))
        skin = rng.uniform(60, 230) * np.array([1, rng.uniform(0.65, 0.85), rng.uniform(0.5, 0.75)])
        light = cv2.resize(rng.uniform(0.75, 1.15, (3, 3)).astype(np.float32), (size, size))
        cover = np.clip(light[..., None] * skin, 0, 255).astype(np.uint8)
    return np.where(mask[..., None] > 0, cover, picture)


def degraded(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Degrade a picture `(S, S, 3)` uint8 at random: hair, hands, rectangles, contrast, blur, size, noise and JPEG."""
    size, occur = len(picture), rng.random(7) < (0.25, 0.3, 0.25, 0.25, 0.3, 0.3, 0.25)
    if occur[6]:
        picture = covered(picture, rng)
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

    A sample has `image` (the input of the network) and `picture` (the same without `degraded`), both `(size, size, 3)` uint8;
    its jitter; `grey` (0 or 1); `face` (0 if there is none, and labels mean nothing); and `index`, the row of its labels. Labels
    of N photos and M renders are followed by those of their mirror images.

    Args:
        pictures: `(N, S, S, 3)` uint8 with margin.
        renders: `(M, S, S, 4)` uint8 with margin and opacity (`head_renders`).
        size: pixels of a sample.
        seed: of the stream.
    """

    def __init__(self, pictures: np.ndarray, renders: np.ndarray, size: int, seed: int):
        self.pictures, self.renders, self.size, self.seed = pictures, renders, size, seed

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, n))
        rendered = len(self.renders) > 0 and rng.random() < RENDERED_SHARE
        faces = self.renders if rendered else self.pictures
        row, mirror = int(rng.integers(len(faces))), rng.random() < 0.5
        stored = np.ascontiguousarray(faces[row][:, ::-1]) if mirror else faces[row]
        index = row + rendered * len(self.pictures) + mirror * (len(self.pictures) + len(self.renders))
        jitter = draw_jitter(rng, askew=not rendered and rng.random() < ASKEW_SHARE)
        face = rng.random() >= FACELESS_SHARE
        if not face:
            picture = behind(backdrop(self.pictures, self.size, rng), np.zeros((self.size, self.size), np.uint8), rng)
        elif rendered or rng.random() < 0.5:
            if not rendered:
                stored = np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)])
            window = jittered_picture(stored, jitter, self.size, cv2.BORDER_CONSTANT)
            ground = backdrop(self.pictures, self.size, rng)
            ground = behind(ground, window[..., 3], rng) if rendered else ground
            transparency = 1 - window[..., 3:] / np.float32(255)
            picture = np.clip(window[..., :3] + transparency * ground, 0, 255).astype(np.uint8)
        else:
            border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_REFLECT
            picture = jittered_picture(stored, jitter, self.size, border)
        picture = brightened(picture, jitter["gain"])
        grey = rng.random() < 0.08
        if grey:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        flags = {"index": index, "grey": np.float32(grey), "face": np.float32(face)}
        return jitter | flags | {"picture": picture, "image": degraded(picture, rng)}


def plain_batches(pictures: np.ndarray, labels: dict[str, Tensor], size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Evenly spaced faces without augmentation, with their labels. Renders have a black background."""
    rows = torch.arange(0, len(pictures), math.ceil(len(pictures) / EVALUATION_FACES))
    images = torch.from_numpy(np.stack([jittered_picture(pictures[row, ..., :3], NO_JITTER, size) for row in rows]))
    faces = {name: values[rows] for name, values in labels.items()}
    faces |= {"image": images, "picture": images, "grey": torch.zeros(len(rows)), "face": torch.ones(len(rows))}
    parts = {name: values.to(device).split(32) for name, values in faces.items()}
    return [{name: parts[name][number] for name in parts} for number in range(len(parts["image"]))]
