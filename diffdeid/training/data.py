"""Prepared faces: reading, splitting, augmenting, and turning them into the inputs of the networks.

A store is a folder with one `<name>.safetensors` per face (written by `prepare.py`): the maps of a crop of 288 pixels,
whose central 256 are the crop proper and whose margin allows for jitter, its coefficients and its identity. The augmentation of a
face is drawn on the host, as a few numbers for each sample, and done to whole batches on the device.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from diffdeid.geometry.align import CHIP_SIZE, chip_matrix
from diffdeid.geometry.camera import DISTANCE, FOCAL
from diffdeid.geometry.landmarks import LEFT_EYE, RIGHT_EYE, lip_gap
from diffdeid.geometry.rotation import angle_to_camera
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.mirror import mirror_coefficients

MAPS = {"image": 3, "texture": 3, "render": 3, "normals": 3, "guides": 2, "mask": 2}  # channels, in the order of `maps`
HIDEABLE = {  # inputs that an ablation can leave out, and where they are
    "render": [("spatial_conditions", slice(1, 4))],
    "geometry": [("spatial_conditions", slice(4, 9)), ("coefficients", slice(None))],
    "texture": [("masked_texture", slice(None))],
}
COARSENESS = (1.5, 2.0, 3.0, 4.0)  # factors by which pictures are shrunk and enlarged again, to look like small faces …
COARSE_SHARE = 0.1  # … in this share of the samples
WIDENED_SHARE = 0.5  # of the samples whose erased region is wider on one side, as beside a jaw narrower than the old one …
MOST_WIDENED = 0.12  # … by at most this part of the window at its edge, and by less towards its middle
MARGIN = 16 / 288  # of the stored size, on every side of the crop proper
EXCHANGED = "__exchanged"  # ending of the name of a face that is to be painted as another person's (exchange.py) …
TURNED_NAME = "__turned"  # … and of one that was turned (profiles.py)
DISTANCE_LEVELS = 4  # grey levels of a stored mask per pixel of distance to the outline
TURNED = 20, 45  # degrees between face and camera: up to the first a head does not count as turned, from the second on fully
OPEN_MOUTH = 0.2  # distance of the inner lips, in distances of the outer eye corners; one portrait in 60 has more


class FaceStore:
    """Read access to the faces of a folder by name. `names` are those of photographed faces, without exchanged or turned ones.

    Raises:
        FileNotFoundError: the folder holds no prepared faces.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        stems = (path.stem for path in self.folder.glob("*.safetensors"))
        self.names = sorted(stem for stem in stems if not stem.endswith((EXCHANGED, TURNED_NAME)))
        if not self.names:
            raise FileNotFoundError(f"`{folder}` holds no prepared faces (*.safetensors). Run `diffdeid data prepare` first.")

    def open(self, name: str):
        """The file of a face, for reading single tensors (`get_tensor`) or its `metadata`."""
        return safe_open(self.folder / f"{name}.safetensors", framework="np")

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Load everything about a face.

        `maps` (16, size, size) uint8 are those of `MAPS`. If the store has another frame of the same person, that is the
        `texture`, and `video` is true; otherwise the texture is the picture itself. `exchanged` says that identity, α and the
        renders are another person's. `chip` (2, 3) maps the picture to the recogniser's chip.
        """
        with self.open(name) as file:
            video = "texture" in set(file.keys())
            keys = ["image" if key == "texture" and not video else key for key in MAPS]
            maps = [torch.from_numpy(file.get_tensor(key)) for key in keys]
            face = {key: file.get_tensor(key) for key in ("coefficients", "identity")}
            landmarks = file.get_tensor("landmarks")  # in the crop proper
        chip = chip_matrix(landmarks + MARGIN * len(maps[0])).astype(np.float32)
        maps = torch.cat([plane.permute(2, 0, 1) for plane in maps]).numpy()  # NumPy would take five times as long
        flags = {"video": np.bool_(video), "exchanged": np.bool_(name.endswith(EXCHANGED))}
        return face | {"maps": maps, "chip": chip} | flags

    def is_photo(self, name: str) -> bool:
        """Whether a face comes from a photo, and not from a clip with other frames of the person."""
        return "texture" not in self.open(name).keys()  # noqa: SIM118  no mapping

    def has_open_mouth(self, name: str) -> bool:
        """Whether a face opens its mouth wide, as in shouting or in laughing out loud."""
        landmarks = self.open(name).get_tensor("landmarks")[:, :2]
        right, left = landmarks[[RIGHT_EYE[0], LEFT_EYE[0]]]
        return bool(lip_gap(landmarks) > OPEN_MOUTH * np.linalg.norm(right - left))

    def turn(self, name: str) -> float:
        """How far a head is turned away, 0 to 1, see `TURNED`."""
        pose = MorphableCoefficients.unpack(torch.from_numpy(self.open(name).get_tensor("coefficients"))[None]).pose
        return float(np.interp(angle_to_camera(pose).item(), TURNED, (0, 1)))

    def stack(self, names: list[str], device: torch.device) -> dict[str, Tensor]:
        """Load everything about many faces onto a device; 1.3 MB for each face."""
        first = default_collate([self.load(names[0])])
        stacked = {key: value.new_empty((len(names), *value.shape[1:]), device=device) for key, value in first.items()}
        with ThreadPoolExecutor() as pool:
            for row, face in enumerate(pool.map(self.load, names)):
                for key, value in face.items():
                    stacked[key][row] = torch.as_tensor(value)
        return stacked

    def split(self, validation_names: str | Path | None) -> tuple[list[str], list[str]]:
        """Names for training and for validation: those listed in a file, or every 32nd by the hash of its name."""
        if validation_names is None:
            held_out = {name for name in self.names if zlib.crc32(name.encode()) % 32 == 0}
        else:
            held_out = set(Path(validation_names).read_text().splitlines())
        return [name for name in self.names if name not in held_out], [name for name in self.names if name in held_out]

    def made(self, names: list[str], suffix: str) -> list[str]:
        """The names of the versions with `suffix`, `EXCHANGED` or `TURNED_NAME`, of those of these faces that have one."""
        others = {path.stem for path in self.folder.glob(f"*{suffix}.safetensors")}
        return [name + suffix for name in names if name + suffix in others]


class TrainingFaces(Dataset):
    """An endless stream of faces, each with its augmentation. Sample n depends only on the seed and n, so a run can be resumed
    anywhere.

    Args:
        store: where the faces are.
        names: the faces to use.
        set_weights: sampling weight of a face by the set that it comes from, 1 where not given.
        open_mouth_weight: factor of the sampling weight of a face with a wide-open mouth.
        turned_weight: factor of the sampling weight of a head turned away; nearer to 1 the less it is turned.
        keep_mouth: share of samples whose mouth stays visible.
        identity_dropout: share of samples whose identity is replaced by zeros.
        still_frames: share of the samples with a `texture` that are shown without it, as photos.
        seed: of the stream.
        read: give the faces themselves; otherwise only the `index` of each in `names`, for a caller that holds them already.

    Raises:
        ValueError: all sampling weights are zero.
    """

    def __init__(self, store: FaceStore, names: list[str], set_weights: dict[str, float], open_mouth_weight: float,
                 turned_weight: float, keep_mouth: float, identity_dropout: float, still_frames: float, seed: int,
                 read: bool = True):  # fmt: skip
        self.store, self.names, self.seed, self.read = store, names, seed, read
        self.keep_mouth, self.identity_dropout, self.still_frames = keep_mouth, identity_dropout, still_frames
        self.size = store.load(names[0])["maps"].shape[-1]
        weights = np.array([set_weights.get(store.open(name).metadata()["set"], 1.0) for name in names])
        if open_mouth_weight != 1:  # else every file would be read for nothing
            weights *= [open_mouth_weight if store.has_open_mouth(name) else 1.0 for name in names]
        if turned_weight != 1:
            weights *= [1 + (turned_weight - 1) * store.turn(name) for name in names]
        if not weights.sum() > 0:
            raise ValueError(f"`set_weights` leaves none of the {len(names)} faces of `{store.folder}` to train on.")
        self.cumulative = np.cumsum(weights / weights.sum())

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, n))
        index = min(np.searchsorted(self.cumulative, rng.random(), side="right"), len(self.names) - 1)
        drawn = {
            "window": draw_window(rng, self.size),
            "mirrored": np.bool_(rng.random() < 0.5),
            "keep_mouth": np.bool_(rng.random() < self.keep_mouth),
            "grow": np.float32(rng.uniform(-0.01, 0.03)),
            "anonymous": np.bool_(rng.random() < self.identity_dropout),
            "coarseness": np.float32(COARSENESS[rng.integers(len(COARSENESS))] if rng.random() < COARSE_SHARE else 1),
            "gain": np.float32(rng.uniform(0.8, 1.2)) * rng.uniform(0.95, 1.05, 3).astype(np.float32),
            "still": np.bool_(rng.random() < self.still_frames),
            "widen": draw_widening(rng),
        }
        return drawn | (self.store.load(self.names[index]) if self.read else {"index": np.int64(index)})


class ValidationFaces(Dataset):
    """Faces as they are stored: the crop proper, the mouth kept for every other one."""

    def __init__(self, store: FaceStore, names: list[str]):
        self.store, self.names = store, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        face = self.store.load(self.names[index])
        stored = face["maps"].shape[-1]
        margin = round(MARGIN * stored)
        return face | {
            "window": np.float32([margin, margin, stored - 2 * margin]),
            "mirrored": np.False_,
            "keep_mouth": np.bool_(index % 2 == 0),
            "grow": np.float32(0),
            "anonymous": np.False_,
            "coarseness": np.float32(1),
            "gain": np.ones(3, np.float32),
            "still": np.False_,
            "widen": np.zeros(2, np.float32),
        }


def draw_window(rng: np.random.Generator, stored: int) -> np.ndarray:
    """Left, top and size of a random square within 6 % of the crop proper in size and place, in stored pixels."""
    proper = stored - 2 * round(MARGIN * stored)
    size = min(proper * rng.uniform(0.94, 1.06), stored)
    slack = (stored - size) / 2
    reach = min(slack, 0.06 * proper)
    return np.float32([*(slack + rng.uniform(-reach, reach, 2)), size])


def draw_widening(rng: np.random.Generator) -> np.ndarray:
    """By which part of the window the erased region is wider at its right and its lower edge; negative at the opposite ones."""
    length = rng.uniform(0, MOST_WIDENED) if rng.random() < WIDENED_SHARE else 0.0
    angle = rng.uniform(0, 2 * np.pi)
    return np.float32([length * np.cos(angle), length * np.sin(angle)])


# On the device. `batch` holds B faces as `TrainingFaces` gives them.


def cut_out(batch: dict[str, Tensor], resolution: int) -> dict[str, Tensor]:
    """Cut the windows of faces out: the maps `(B, C, resolution, resolution)` 0…255 by name, `coefficients` and `chip`."""
    maps, window, mirrored = batch["maps"], batch["window"], batch["mirrored"]
    stored, left, top, size = maps.shape[-1], *window.unbind(1)
    side = torch.where(mirrored, -1.0, 1.0)  # of an axis to the right of the cut picture, in the stored one

    # pictures; without aliasing when they shrink
    zero, factor = torch.zeros_like(size), max(1, round((1 - 2 * MARGIN) * stored / resolution))
    centre = (2 * window[:, :2] + size[:, None]) / stored - 1
    affine = torch.stack([side * size / stored, zero, centre[:, 0], zero, size / stored, centre[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, [len(maps), 1, factor * resolution, factor * resolution], align_corners=False)
    planes = F.avg_pool2d(F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False), factor)
    cut = dict(zip(MAPS, planes.split(list(MAPS.values()), dim=1), strict=True))
    cut["normals"][:, 0] = torch.where(mirrored[:, None, None], 255 - cut["normals"][:, 0], cut["normals"][:, 0])

    # The translation as seen in the window, to first order at the origin of the head: depth grows with the size of the window,
    # and x and y follow the shift of its centre.
    proper = (1 - 2 * MARGIN) * stored
    shift = (window[:, :2] + (size[:, None] - stored) / 2) / proper
    coefficients = batch["coefficients"].clone()
    x, y, z = batch["coefficients"][:, 254:257].unbind(1)
    depth = DISTANCE - z
    moved = x - shift[:, 0] * depth / FOCAL, y + shift[:, 1] * depth / FOCAL, DISTANCE - depth * size / proper
    coefficients[:, 254:257] = torch.stack(moved, dim=1)
    coefficients = torch.where(mirrored[:, None], mirror_coefficients(coefficients), coefficients)

    # the chip: cut picture -> stored picture -> chip, the latter mirrored too
    start = torch.where(mirrored, left + size, left)
    rotation, origin = batch["chip"][:, :, :2], batch["chip"][:, :, 2]
    scale = torch.stack([side, torch.ones_like(side)], dim=1) * size[:, None] / resolution
    origin = origin + (rotation @ torch.stack([start, top], dim=1)[..., None])[..., 0]
    chip = torch.cat([rotation * scale[:, None], origin[..., None]], dim=2)
    flipped = torch.stack([chip.new_tensor([0, 0, CHIP_SIZE]) - chip[:, 0], chip[:, 1]], dim=1)
    return cut | {"coefficients": coefficients, "chip": torch.where(mirrored[:, None, None], flipped, chip)}


def erased_region(mask: Tensor, keep_mouth: Tensor, grow: Tensor) -> Tensor:
    """Where faces are erased, `(B, 1, H, W)` 0 or 1.

    Args:
        mask: `(B, 2, H, W)` 0…255: distance to the outline of the face (`DISTANCE_LEVELS`; inside above 127.5), mouth.
        keep_mouth: `(B,)`, leave the mouth visible.
        grow: `(B, 1, H, W)`, where H and W may be 1, stored pixels by which to dilate (erode if negative) the face.
    """
    farthest = (127.5 - DISTANCE_LEVELS * grow).clamp(min=0)  # a stored 0 may be any distance
    face, mouth = mask[:, :1] > farthest, mask[:, 1:] > 127.5
    return (face & ~(mouth & keep_mouth[:, None, None, None])).float()


def widening(widen: Tensor, size: int) -> Tensor:
    """How much wider the erased region is at each pixel, `(B, 1, size, size)`, from `draw_widening`, `(B, 2)`; 0 and more."""
    places = torch.linspace(-1, 1, size, device=widen.device)
    right, down = widen[:, :, None, None].split(1, dim=1)
    return (right * places + down * places[:, None]).clamp(min=0)


def coarsen(pictures: Tensor, coarseness: Tensor) -> Tensor:
    """Pictures `(B, C, H, W)` as if they had `coarseness` `(B,)` times fewer pixels a side; 1 or a value of `COARSENESS`."""
    size = pictures.shape[-1]
    for factor in COARSENESS:
        small = F.interpolate(pictures, round(size / factor), mode="area")
        coarse = F.interpolate(small, size, mode="bilinear", align_corners=False)
        pictures = torch.where((coarseness == factor)[:, None, None, None], coarse, pictures)
    return pictures


def around_openings(openings: Tensor) -> Tensor:
    """Eyes with lids and lashes, and mouths with lips, from their openings; `(B, 1, H, W)`, 0 or 1, both."""
    reach = openings.shape[-1] // 32
    return F.max_pool2d(openings.float(), 2 * reach + 1, stride=1, padding=reach)


def network_inputs(batch: dict[str, Tensor], resolution: int, hidden: Sequence[str] = ()) -> dict[str, Tensor]:
    """The inputs of the networks for a batch, at `resolution` pixels; those in `hidden` (names of `HIDEABLE`) are zero.

    `gain` (B, 3) scales pictures, render and illumination alike, because all of them are in the same gamma-encoded colours.

    Returns:
        `image` (B, 3, H, W), `mask` (B, 1, H, W) 0 or 1, `spatial_conditions` (B, 9, H, W), `masked_texture` (B, 4, H, W): the
        picture without its face, or, for `video` (B,) rows (those of a clip that are not `still`), all of another frame;
        `identity` (B, 128), `coefficients` (B, 261), and for the losses `exchanged` (B,), `openings` (B, 1, H, W) 0 or 1,
        eyes and mouth with what lies around, and `chip` (B, 2, 3).
    """
    cut = cut_out(batch, resolution)
    video = batch["video"] & ~batch["still"]
    cut["texture"] = torch.where(video[:, None, None, None], cut["texture"], cut["image"])
    gain = batch["gain"][:, :, None, None]
    pictures = coarsen(torch.cat([cut["image"], cut["texture"]], dim=1), batch["coarseness"]).split(3, dim=1)
    image, texture, render = ((plane * gain).clamp(0, 255) / 127.5 - 1 for plane in (*pictures, cut["render"]))
    normals, guides = (cut[name] / 127.5 - 1 for name in ("normals", "guides"))
    keep_mouth = batch["keep_mouth"] & ~batch["exchanged"]  # the mouth of an exchanged head is elsewhere
    grow = batch["grow"][:, None, None, None] + widening(batch["widen"], resolution)
    mask = erased_region(cut["mask"], keep_mouth, grow * batch["window"][:, 2, None, None, None])
    erased = mask * ~video[:, None, None, None]

    coefficients = cut["coefficients"]
    coefficients[:, 224:251] *= batch["gain"].repeat(1, 9)
    inputs = {
        "image": image,
        "mask": mask,
        "openings": around_openings(guides[:, 1:] > -1),
        "spatial_conditions": torch.cat([2 * mask - 1, render, normals, guides], dim=1),
        "masked_texture": torch.cat([texture * (1 - erased), 2 * erased - 1], dim=1),
        "coefficients": coefficients,
        "identity": batch["identity"] * ~batch["anonymous"][:, None],
        "video": video,
        "exchanged": batch["exchanged"],
        "chip": cut["chip"],
    }
    for name in hidden:
        for key, channels in HIDEABLE[name]:
            inputs[key][:, channels] = 0
    return inputs
