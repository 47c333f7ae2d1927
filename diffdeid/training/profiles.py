"""Add photos of a store once more, with heads turned to the side, up or down, because photographs of such heads are rare.

A person who looks past the camera by 20 to 40° shows nearly all of one side of the face. The photo is laid on the fitted head and
rendered from that side (`head_renders`), in front of another, blurred photo. Identity and α stay.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.io.files import write_whole
from diffdeid.models.conditioning import hide_skin_details
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.stages.reconstruct import crop_matrix
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import TURNED_NAME, FaceStore
from diffdeid.training.exchange import pool_of_cores
from diffdeid.training.head_renders import HeadMap, head_map, render_some
from diffdeid.training.maps import FULL, SIZE, regions, shown

LEAST, MOST = 8, 60  # degrees to the side in the photos that are used
FARTHEST = 95  # most degrees to the side in renders …
LEAST_TURN, PROFILE = 15, 42  # … which are at least so many more than in the photo, and so many in all
TILTED_SHARE, TILTED = 0.3, (15, 42)  # share of the faces that look up or down, with any turn; degrees up or down
HAIR_VOLUME = 0.2  # decimetres
OVERSAMPLING = 2
BLUR = 6, 14, 30  # pixels by which the background is blurred, at twice the size
CHUNK = 6  # faces rendered at a time


def turn_photos(
    folder: str | Path, validation_names: str | Path | None = None, model: str | Path = "weights/diffdeid", seed: int = 0
):
    """Add every photo for training that shows enough of a side to a store once more, turned, on all cores.

    Photos that have such a version already are skipped.

    Args:
        folder: the store.
        validation_names: as in `TrainConfig`; those people are left out.
        model: folder of the released models.
        seed: of the angles and the backgrounds.

    Raises:
        ValueError: no photo shows enough of a side.
    """
    store = FaceStore(folder)
    training, _ = store.split(validation_names)
    names = [name for name in training if store.is_photo(name) and _shows_a_side(store, name)]
    if not names:
        raise ValueError(f"`{folder}` holds no photo for training of a head that looks {LEAST} to {MOST}° to the side.")
    done = set(store.made(names, TURNED_NAME))
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]  # the same each time: they share a seed
    missing = [chunk for chunk in chunks if any(name + TURNED_NAME not in done for name in chunk)]
    with pool_of_cores() as pool:
        list(pool.map(partial(_turn, store, names, model, seed), missing))


def _shows_a_side(store: FaceStore, name: str) -> bool:
    pose = MorphableCoefficients.unpack(torch.from_numpy(store.open(name).get_tensor("fit"))[None]).pose
    return LEAST < abs(yaw(pose).item()) < MOST


def yaw(pose: Tensor) -> Tensor:
    """How far heads of poses p `(B, 6)` look to the side, `(B,)` degrees; positive is to the right of the picture."""
    forward = rotation_matrix(pose[:, :3])[:, :, 2]
    return torch.atan2(forward[:, 0], forward[:, 2]).rad2deg()


def _turn(store: FaceStore, backgrounds: Sequence[str], model: str | Path, seed: int, names: Sequence[str]):
    morphable_model = MorphableModel.from_pretrained(model, subfolder="morphable_model").float()
    for name, face in turned_faces(store, names, backgrounds, morphable_model, head_map(morphable_model), seed).items():
        write_whole(store.folder / f"{name}{TURNED_NAME}.safetensors", save(face, {"set": "turned"}))


@torch.no_grad()
def turned_faces(
    store: FaceStore, names: Sequence[str], backgrounds: Sequence[str], model: MorphableModel, where: HeadMap, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of turned photos, by their names, like those of `prepare.prepare_face` but without irises and matrix."""
    rng = np.random.default_rng((seed, zlib.crc32(names[0].encode())))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    stored = [{key: store.open(name).get_tensor(key) for key in ("image", "fit", "identity")} for name in names]
    photos = torch.stack([torch.from_numpy(face["image"]).permute(2, 0, 1).float() / 255 for face in stored])
    fits = MorphableCoefficients.unpack(torch.from_numpy(np.stack([face["fit"] for face in stored])).float())
    angles = draw_angles(fits.pose, rng)
    window = partial(crop_matrix, size=1)
    renders, labels = render_some(model, where, fits, photos, angles, window, OVERSAMPLING * SIZE, HAIR_VOLUME, generator)
    faces = {}
    for row, name in enumerate(names):
        behind = store.open(backgrounds[rng.integers(len(backgrounds))]).get_tensor("image")
        rho = MorphableCoefficients.unpack(labels["coefficients"][row, None])
        landmarks = (SIZE * labels["landmarks"][row]).numpy()
        faces[name] = {
            "image": laid_over(renders[row], behind, rng),
            "mask": regions(landmarks),
            "fit": labels["coefficients"][row].numpy(),
            "identity": stored[row]["identity"],
            "landmarks": landmarks,
        } | shown(model, hide_skin_details(model, rho))
    return faces


def draw_angles(pose: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Draw angles `(B, 3)` in degrees, about x, y and z, for heads photographed in poses p `(B, 6)`; the side stays."""
    count, before = len(pose), yaw(pose).numpy()
    tilted = rng.random(count) < TILTED_SHARE
    pitch = np.where(tilted, rng.choice([-1, 1], count) * rng.uniform(*TILTED, count), rng.normal(0, 8, count))
    profile = rng.uniform(np.maximum(PROFILE, np.abs(before) + LEAST_TURN), FARTHEST)
    aside = np.where(tilted, rng.uniform(0, MOST, count), profile)
    return np.stack([pitch, np.sign(before) * aside, rng.normal(0, 6, count)], axis=1)


def laid_over(render: np.ndarray, behind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A render `(S, S, 4)` uint8 in front of a blurred picture, with some noise, as a crop with its margin."""
    side = len(render)
    behind = cv2.resize(np.float32(behind[:, :: rng.choice([-1, 1])]), (side, side))
    behind = cv2.GaussianBlur(behind, (0, 0), float(rng.choice(BLUR)))
    opacity = cv2.GaussianBlur(np.float32(render[..., 3]) / 255, (0, 0), 1.2)[..., None]
    picture = cv2.resize(opacity * render[..., :3] + (1 - opacity) * behind, (FULL, FULL), interpolation=cv2.INTER_AREA)
    return (picture + rng.normal(0, 2.5 * rng.random(), picture.shape)).round().clip(0, 255).astype(np.uint8)
