"""Faces for training the face parser: labelled crops, over which things are drawn that hide a face or may fool a network.

A folder holds crops and, in `labels/`, PNGs of the same names with the 19 classes of CelebAMask-HQ. All of it stays in memory.
A sample depends only on the seed and its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffdeid.geometry.align import between_centres, compose, ffhq_matrix
from diffdeid.geometry.mask import erased, fixed_point
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_parser import BACKGROUND, FACE, FRONT, GLASSES
from diffdeid.training.occluders import (
    Scene,
    borrow_hair,
    cast_shadow,
    draw_cap,
    draw_cloth,
    draw_glasses,
    draw_hand,
    draw_mask,
    draw_strands,
    draw_thing,
    mark_skin,
    paste,
)

UNKNOWN = 255  # class of pixels without a known class
FACE_LABELS = (1, 2, 4, 5, 6, 7, 10, 11, 12)  # of CelebAMask-HQ: skin, nose, eyes, brows, mouth, lips
GLASSES_LABEL, FRONT_LABELS = 3, (13, 14)  # in front are hair and hats; ears, jewellery, neck and clothes are background
CROP_FACTOR = 0.8  # of the crops, as the pipeline cuts them
# These are the shares of the occluders:
KINDS = {"hand": 0.4, "mask": 0.1, "thing": 0.12, "cloth": 0.1, "strands": 0.06, "hair": 0.06, "cap": 0.16}
LAYERS = (0.15, 0.55, 0.3)  # shares of samples with none, one and two occluders


@dataclass
class LabelledFace:
    """A labelled crop in memory.

    Attributes:
        picture: `(H, W, 3)` uint8 RGB.
        classes: `(H, W)` uint8, classes of the face parser or `UNKNOWN`.
        landmarks: `(468, 2)` in the pixels of the picture.
    """

    picture: np.ndarray
    classes: np.ndarray
    landmarks: np.ndarray


def read_faces(folder: str | Path, landmarks: dict[str, np.ndarray], names: Sequence[str]) -> list[LabelledFace]:
    """Read the labelled crops of these names; `landmarks` come from `find_landmarks`."""
    folder = Path(folder)
    paths = {path.stem: path for path in folder.iterdir() if path.is_file()}
    faces = []
    for name in names:
        picture = cv2.cvtColor(cv2.imread(str(paths[name])), cv2.COLOR_BGR2RGB)
        labels = cv2.imread(str(folder / "labels" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        labels = cv2.resize(labels, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        faces.append(LabelledFace(picture, to_classes(labels, landmarks[name]), landmarks[name]))
    return faces


def to_classes(labels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Labels `(H, W)` of CelebAMask-HQ, or `UNKNOWN`, -> classes of the face parser.

    CelebAMask-HQ has no label for hands and things in front of a face, so unlabelled pixels inside the face are unknown.
    """
    table = np.full(256, BACKGROUND, np.uint8)
    table[list(FACE_LABELS)] = FACE
    table[GLASSES_LABEL] = GLASSES
    table[list(FRONT_LABELS)] = FRONT
    table[UNKNOWN] = UNKNOWN
    classes = table[labels]
    hull = np.zeros_like(labels)
    cv2.fillConvexPoly(hull, fixed_point(cv2.convexHull(landmarks[:, :2].astype(np.float32))[:, 0]), 1, cv2.LINE_8, 4)
    classes[(labels == 0) & (hull > 0)] = UNKNOWN
    return classes


def find_landmarks(folder: str | Path, analyser: FaceAnalyserModel) -> dict[str, np.ndarray]:
    """Landmarks `(468, 2)` of the face nearest to the middle of each labelled crop of a folder, by name, where one is found."""
    folder, found = Path(folder), {}
    labelled = {path.stem for path in (folder / "labels").iterdir()}
    for path in sorted(path for path in folder.iterdir() if path.stem in labelled and path.is_file()):
        picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        middle = np.array(picture.shape[1::-1]) / 2
        points = [face.landmarks[:, :2].astype(np.float32) for face in analyser(picture) if face.landmarks is not None]
        if points:
            found[path.stem] = min(points, key=lambda face: np.linalg.norm(face.mean(0) - middle))
    return found


def is_held_out(name: str) -> bool:
    """Whether a name is held out for measuring: every tenth is, by the last digit of its number."""
    return name.endswith("7")


class OccludedFaces(Dataset):
    """Sample number -> a jittered crop, occluded or not, as `image` `(S, S, 3)` uint8, `classes` and `erased` `(S, S)` uint8."""

    def __init__(self, faces: Sequence[LabelledFace], hands: np.ndarray, size: int, seed: int):
        self.faces, self.hands, self.size, self.seed = faces, hands, size, seed
        self.textures = [face.picture for face in faces]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        scene = self.scene(self.faces[rng.integers(len(self.faces))], rng)
        for kind in rng.choice(list(KINDS), rng.choice(len(LAYERS), p=LAYERS), p=list(KINDS.values())):
            self.occlude(scene, kind, rng)
        return self.finish(scene, rng)

    def scene(self, face: LabelledFace, rng: np.random.Generator) -> Scene:
        """The jittered crop of a face, at times with drawn glasses, paint or shadows."""
        scene = place(face, jitter(face.landmarks, self.size, rng), self.size)
        if rng.random() < 0.12:
            mark_skin(scene, rng)
        if rng.random() < 0.18 and (scene.classes == GLASSES).sum() < 50:
            paste(scene, draw_glasses(scene, rng), rng)
        if rng.random() < 0.18:
            cast_shadow(scene, self.hands, rng)
        return scene

    def occlude(self, scene: Scene, kind: str, rng: np.random.Generator) -> np.ndarray:
        """Put something of a kind of `KINDS` in front of the face; gives its pixels, `(S, S)` bool."""
        if kind == "hand":
            layer = draw_hand(scene, self.hands, rng)
        elif kind == "mask":
            layer = draw_mask(scene, rng)
        elif kind == "thing":
            layer = draw_thing(scene, self.textures, rng)
        elif kind == "cloth":
            layer = draw_cloth(scene, self.textures, rng)
        elif kind == "cap":
            layer = draw_cap(scene, self.textures, rng)
        elif kind == "strands":
            layer = draw_strands(scene, rng)
        else:
            other = self.faces[rng.integers(len(self.faces))]
            layer = borrow_hair(scene, place(other, ffhq_matrix(other.landmarks, self.size, CROP_FACTOR), self.size), rng)
        if rng.random() < 0.3:
            layer.alpha = cv2.GaussianBlur(layer.alpha, (0, 0), rng.uniform(0.4, 1.5))
        paste(scene, layer, rng)
        return layer.region

    def finish(self, scene: Scene, rng: np.random.Generator) -> dict[str, Tensor]:
        """The sample of a scene: photographed, and mirrored every other time."""
        image = photograph(scene.image, rng)
        hull = erased(scene.landmarks, self.size).astype(np.uint8)
        sample = {"image": image, "classes": scene.classes, "erased": hull}
        if rng.random() < 0.5:
            sample = {name: values[:, ::-1] for name, values in sample.items()}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in sample.items()}


def place(face: LabelledFace, matrix: np.ndarray, size: int) -> Scene:
    """The crop of a face, by a matrix `(2, 3)` picture -> crop."""
    centred = between_centres(matrix)
    image = cv2.warpAffine(face.picture, centred, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    classes = cv2.warpAffine(face.classes, centred, (size, size), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    return Scene(image.astype(np.float32) / 255, classes, face.landmarks @ matrix[:, :2].T + matrix[:, 2])


def jitter(landmarks: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The matrix `(2, 3)` of a crop that is turned by up to 20°, shifted and scaled a little."""
    angle = math.radians(rng.uniform(-20, 20) if rng.random() < 0.4 else rng.normal(0, 4))
    scale = math.exp(rng.normal(0, 0.06))
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    shift = size / 2 + rng.normal(0, 0.03, 2) * size - linear @ (size / 2, size / 2)
    return compose(np.column_stack([linear, shift]), ffhq_matrix(landmarks, size, CROP_FACTOR))


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop `(S, S, 3)` in [0, 1] as a worse camera, other light or compression would change it, uint8."""
    size = len(image)
    if rng.random() < 0.25:  # coloured or uneven light
        low = 1 + rng.uniform(0.05, 0.35) * rng.standard_normal((3, 3, 3), np.float32)
        image = image * cv2.resize(low, (size, size), interpolation=cv2.INTER_CUBIC)
    gain, gamma = math.exp(rng.normal(0, 0.15)), math.exp(rng.normal(0, 0.2))
    tint = np.exp(rng.normal(0, 0.06 if rng.random() < 0.8 else 0.25, 3))
    levels = (np.arange(256) / 255)[:, None] ** gamma * gain * tint
    pixels = (image * 255).clip(0, 255).astype(np.uint8)
    pixels = cv2.LUT(pixels, (levels * 255).clip(0, 255).astype(np.uint8)[None])
    if rng.random() < 0.12:
        pixels = np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    draw = rng.random()
    if draw < 0.2:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 2.2))
    elif draw < 0.5:  # a small face
        small = cv2.resize(pixels, None, fx=(share := rng.uniform(0.2, 0.8)), fy=share, interpolation=cv2.INTER_AREA)
        small = _compressed(small, rng) if rng.random() < 0.5 else small
        pixels = cv2.resize(small, (size, size), interpolation=rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    elif draw < 0.56:  # motion
        length = int(rng.integers(3, 9))
        kernel = np.zeros((length, length), np.float32)
        end = (np.array([np.cos(angle := rng.uniform(0, np.pi)), np.sin(angle)]) * length / 2).round().astype(int)
        cv2.line(kernel, tuple((length // 2 - end).tolist()), tuple((length // 2 + end).tolist()), 1)
        pixels = cv2.filter2D(pixels, -1, kernel / kernel.sum())
    if rng.random() < 0.3:
        grain = rng.standard_normal((size, size, 1 if rng.random() < 0.5 else 3), np.float32)
        pixels = (pixels + rng.uniform(1, 14) * grain).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        pixels = _compressed(pixels, rng)
    return pixels


def _compressed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))])
    return cv2.imdecode(code, cv2.IMREAD_COLOR)
