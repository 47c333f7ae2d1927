"""Prepared faces: reading, splitting, augmenting, and turning them into what the networks see.

A store is a folder with one `<name>.safetensors` per face (written by `prepare.py`): the maps of a crop of 288 pixels,
whose central 256 are the crop proper and whose margin allows for jitter, its coefficients and its identity.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from diffdeid.geometry.align import chip_matrix, compose
from diffdeid.geometry.camera import DISTANCE, FOCAL
from diffdeid.training.mirror import MAPS, mirror

HIDEABLE = {  # inputs that an ablation can leave out, and where they are
    "render": [("spatial_conditions", slice(1, 4))],
    "geometry": [("spatial_conditions", slice(4, 9)), ("coefficients", slice(None))],
    "texture": [("masked_texture", slice(None))],
}
COARSE_SHARE = 0.1  # of the samples come from a picture of lower resolution, as small faces do
MARGIN = 16 / 288  # of the stored size, on every side of the crop proper


class FaceStore:
    """Read access to the faces of a folder by name."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.names = sorted(path.stem for path in self.folder.glob("*.safetensors"))
        if not self.names:
            raise FileNotFoundError(f"`{folder}` holds no prepared faces (*.safetensors). Run `diffdeid data prepare` first.")

    def open(self, name: str):
        """The file of a face, for reading single tensors (`get_tensor`) or its `metadata`."""
        return safe_open(self.folder / f"{name}.safetensors", framework="np")

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Everything about a face.

        `texture` is another frame of the same person, and `video` true, where the store has one; else the picture itself.
        `chip` (2, 3) maps the picture to the chip that the recogniser is shown.
        """
        with self.open(name) as file:
            stored = set(file.keys())
            names = (*MAPS, "coefficients", "identity")
            face = {key: file.get_tensor(key if key in stored else "image") for key in names}
            landmarks = file.get_tensor("landmarks")  # in the crop proper
        chip = chip_matrix(landmarks + MARGIN * len(face["image"])).astype(np.float32)
        return face | {"chip": chip, "video": np.bool_("texture" in stored)}

    def split(self, validation_names: str | Path | None) -> tuple[list[str], list[str]]:
        """Names for training and for validation: those listed in a file, or every 32nd by the hash of its name."""
        if validation_names is None:
            held_out = {name for name in self.names if zlib.crc32(name.encode()) % 32 == 0}
        else:
            held_out = set(Path(validation_names).read_text().splitlines())
        return [name for name in self.names if name not in held_out], [name for name in self.names if name in held_out]


class TrainingFaces(Dataset):
    """An endless stream of augmented faces. Sample n depends only on the seed and n, so a run can be resumed anywhere.

    Args:
        store: where the faces are.
        names: the ones to use.
        resolution: pixels.
        set_weights: sampling weight of a face by the set it comes from, 1 where not given.
        keep_mouth: share of samples whose mouth stays visible.
        identity_dropout: share of samples whose identity is replaced by zeros.
        seed: of the stream.
    """

    def __init__(self, store: FaceStore, names: list[str], resolution: int, set_weights: dict[str, float],
                 keep_mouth: float, identity_dropout: float, seed: int):  # fmt: skip
        self.store, self.names, self.resolution, self.seed = store, names, resolution, seed
        self.keep_mouth, self.identity_dropout = keep_mouth, identity_dropout
        weights = np.array([set_weights.get(store.open(name).metadata()["set"], 1.0) for name in names])
        if not weights.sum() > 0:
            raise ValueError(f"`set_weights` leaves none of the {len(names)} faces of `{store.folder}` to train on.")
        self.cumulative = np.cumsum(weights / weights.sum())

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, n))
        index = min(np.searchsorted(self.cumulative, rng.random(), side="right"), len(self.names) - 1)
        face = self.store.load(self.names[index])
        if rng.random() < 0.5:
            face = mirror(face)
        face = crop_jittered(face, self.resolution, rng)
        face["mask"] = erased_region(face["mask"], keep_mouth=rng.random() < self.keep_mouth, grow=rng.uniform(-0.01, 0.03))
        if rng.random() < self.identity_dropout:
            face["identity"] = np.zeros_like(face["identity"])
        if rng.random() < COARSE_SHARE:
            face = coarsen(face, round(self.resolution / rng.uniform(1.5, 4)))
        face["gain"] = np.float32(rng.uniform(0.8, 1.2)) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
        return face


class ValidationFaces(Dataset):
    """Faces as they are stored: the crop proper, the mouth kept for every other one."""

    def __init__(self, store: FaceStore, names: list[str], resolution: int):
        self.store, self.names, self.resolution = store, names, resolution

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        face = self.store.load(self.names[index])
        stored = face["image"].shape[0]
        margin = round(MARGIN * stored)
        face = crop(face, margin, margin, stored - 2 * margin, self.resolution)
        face["mask"] = erased_region(face["mask"], keep_mouth=index % 2 == 0)
        return face | {"gain": np.ones(3, np.float32)}


def crop(face: dict[str, np.ndarray], left: int, top: int, size: int, resolution: int) -> dict[str, np.ndarray]:
    """A square of the maps, resized, and the chip in it; the coefficients stay."""
    window = np.s_[top : top + size, left : left + size]
    resized = {
        name: cv2.resize(np.ascontiguousarray(face[name][window]), (resolution, resolution), interpolation=cv2.INTER_AREA)
        for name in MAPS
    }
    scale = size / resolution
    chip = compose(face["chip"], np.float32([[scale, 0, left], [0, scale, top]]))
    return face | resized | {"chip": chip}


def crop_jittered(face: dict[str, np.ndarray], resolution: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random square within 6 % of the crop proper in size and place, and the translation t that the camera sees in it."""
    stored = face["image"].shape[0]
    proper = stored - 2 * round(MARGIN * stored)
    size = min(round(proper * rng.uniform(0.94, 1.06)), stored)
    slack = (stored - size) / 2
    reach = min(slack, 0.06 * proper)
    left, top = np.round(slack + rng.uniform(-reach, reach, 2)).astype(int).clip(0, stored - size)
    face = crop(face, left, top, size, resolution)

    # To first order at the origin of the head: depth grows with the window, the rest follows the shift of its centre.
    shift = (np.array([left, top]) + (size - stored) / 2) / proper
    coefficients = face["coefficients"].copy()
    translation = coefficients[..., 254:257]
    depth = DISTANCE - translation[2]
    translation[:] = (
        translation[0] - shift[0] * depth / FOCAL,
        translation[1] + shift[1] * depth / FOCAL,
        DISTANCE - depth * size / proper,
    )
    return face | {"coefficients": coefficients}


def coarsen(face: dict[str, np.ndarray], resolution: int) -> dict[str, np.ndarray]:
    """The face as if its pictures had only had `resolution` pixels."""
    pictures = {}
    for name in ("image", "texture"):
        coarse = cv2.resize(face[name], (resolution, resolution), interpolation=cv2.INTER_AREA)
        pictures[name] = cv2.resize(coarse, face[name].shape[:2], interpolation=cv2.INTER_LINEAR)
    return face | pictures


def erased_region(mask: np.ndarray, keep_mouth: bool, grow: float = 0.0) -> np.ndarray:
    """Where a face is erased, `(size, size)` 0 or 1, from the channels whole face and mouth of a stored mask.

    Args:
        mask: `(size, size, 2)` uint8.
        keep_mouth: leave the mouth visible.
        grow: dilate (erode if negative) the whole face by this share of the picture.
    """
    face, mouth = np.ascontiguousarray(mask[..., 0] > 127, np.uint8), mask[..., 1] > 127
    radius = round(abs(grow) * mask.shape[0])
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    face = (cv2.dilate if grow > 0 else cv2.erode)(face, kernel)
    return face * ~mouth if keep_mouth else face


def eye_surroundings(openings: Tensor) -> Tensor:
    """Where the eyes are with their lids and lashes, 0 or 1, from where they are open, `(B, 1, H, W)`."""
    reach = openings.shape[-1] // 32
    return F.max_pool2d(openings.float(), 2 * reach + 1, stride=1, padding=reach)


def network_inputs(batch: dict[str, Tensor], hidden: Sequence[str] = ()) -> dict[str, Tensor]:
    """What the networks see of a batch of uint8 maps, on the batch's device, but for what is `hidden` (of `HIDEABLE`).

    `gain` (B, 3) brightens pictures, render and illumination alike: none of them has its gamma undone, so all are linear in it.

    Returns:
        `image` (B, 3, H, W), `mask` (B, 1, H, W) 0 or 1, `spatial_conditions` (B, 9, H, W), `masked_texture` (B, 4, H, W): the
        picture without its face, or, for `video` (B,) rows, all of another frame; `identity` (B, 128), `coefficients` (B, 261),
        and for the losses `eyes` (B, 1, H, W) 0 or 1 and `chip` (B, 2, 3).
    """
    planes = {name: batch[name].permute(0, 3, 1, 2).float() for name in ("image", "texture", "render", "normals", "guides")}
    gain = batch["gain"][:, :, None, None]
    image, texture, render = ((planes[name] * gain).clamp(0, 255) / 127.5 - 1 for name in ("image", "texture", "render"))
    normals, guides = (planes[name] / 127.5 - 1 for name in ("normals", "guides"))
    mask = batch["mask"][:, None].float()
    erased = mask * ~batch["video"][:, None, None, None]

    coefficients = batch["coefficients"].clone()
    coefficients[:, 224:251] *= batch["gain"].repeat(1, 9)
    inputs = {
        "image": image,
        "mask": mask,
        "eyes": eye_surroundings(guides[:, 1:] > -1),
        "spatial_conditions": torch.cat([2 * mask - 1, render, normals, guides], dim=1),
        "masked_texture": torch.cat([texture * (1 - erased), 2 * erased - 1], dim=1),
        "coefficients": coefficients,
    } | {name: batch[name] for name in ("identity", "video", "chip")}
    for name in hidden:
        for key, channels in HIDEABLE[name]:
            inputs[key][:, channels] = 0
    return inputs
