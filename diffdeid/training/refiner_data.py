"""Pairs for the refiner: photographed faces of 512 pixels, and the same as the denoiser paints them with 256.

The denoiser starts from the photo itself under so much noise that everything fine is its own work, and everything coarse is still
the photo's. So both pictures show the same face, one of them in the softness of new faces. A pair is one file,
`<file name>.safetensors`, uint8: `target` (512, 512, 3), `softened` (n, 256, 256, 3), `render` (256, 256, 3), `mask` (256, 256).
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from diffdeid.engine.faces import Engine, split
from diffdeid.errors import ImageError
from diffdeid.geometry.align import scale_of
from diffdeid.geometry.pixels import from_bytes, on_host, to_bytes
from diffdeid.io.files import write_whole
from diffdeid.io.images import read_image
from diffdeid.models.refiner import SCALE
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.loading import precisions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.condition import Conditions, render_new_heads
from diffdeid.stages.denoise import Callbacks, denoise
from diffdeid.stages.detect import why_covered
from diffdeid.stages.reconstruct import crop_face, crop_matrix
from diffdeid.structures import FaceBatch, FaceJob
from diffdeid.training.prepare import PHOTOS

STEPS, STARTS = 8, (4, 5)  # the schedule, and the steps at which softening begins: at a log SNR of 0.9 and of 3.7
LEAST_SIZE = 500  # pixels that a crop must have in its picture
BATCH = 4  # faces

logger = logging.getLogger(__name__)


@torch.no_grad()
def soften_photos(folder: str | Path, out: str | Path, model: str | Path = "weights/diffdeid", seed: int = 0):
    """Make a pair of each photo in a folder, of its largest face. Photos that have one already are skipped.

    Photos that cannot be read, whose face is not found, or whose crop would have less than `LEAST_SIZE` pixels, make none.

    Args:
        folder: of photos.
        out: where the pairs go.
        model: folder of the released models.
        seed: of the noise.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DiffDeIDPipeline.from_pretrained(model, dtype=precisions(device)).to(device)
    photos = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in PHOTOS]
    missing = [path for path in photos if not (out / f"{path.name}.safetensors").exists()]
    for paths in tqdm(list(split(missing, BATCH)), desc="photos", unit="batch"):
        jobs = {path.name: job for path in paths if (job := find_large_face(pipeline, path)) is not None}
        for name, pair in soften_faces(pipeline, jobs, seed).items():
            write_whole(out / f"{name}.safetensors", save(pair))


def find_large_face(pipeline: DiffDeIDPipeline, path: Path) -> FaceJob | None:
    """The largest face of a photo; `None`, with a warning, if it is not large, or nothing can be done with it."""
    try:
        picture = np.asarray(read_image(path).image)
    except ImageError as error:
        logger.warning("%s is skipped: %s", path.name, error)
        return None
    faces = pipeline.detect_faces(picture)
    if not faces or why_covered(faces[0]) is not None:
        logger.warning("%s is skipped: no face is found in it that could be replaced.", path.name)
        return None
    side = 1 / scale_of(crop_matrix(faces[0].landmarks, 1, pipeline.config.crop_factor))
    if side < LEAST_SIZE:
        logger.warning("%s is skipped: the crop of its face has %d pixels, and %d are needed.", path.name, side, LEAST_SIZE)
        return None
    return FaceJob(picture, faces[0])


def soften_faces(pipeline: DiffDeIDPipeline, jobs: dict[str, FaceJob], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """The pairs of faces by name, see the top of the module."""
    engine, faces = pipeline.engine, list(jobs.values())
    if not faces:
        return {}
    batch = engine.reconstruct(faces, DeidentifyOptions(attributes="any"))
    shape = batch.coefficients.shape
    changed, maps = render_new_heads(engine.morphable_model, batch.coefficients, shape, batch.masks, keep_mouth=False)
    conditions = Conditions(maps, batch.embedding, changed.pack(), engine.encode_texture(batch.images, batch.masks))
    seeds = [zlib.crc32(f"{seed} {name}".encode()) for name in jobs]
    softened = np.stack([on_host(to_bytes(repaint(engine, batch, conditions, start, seeds))) for start in STARTS], axis=1)
    renders, masks = (on_host(to_bytes(part)) for part in (maps[:, 1:4], maps[:, :1]))
    pairs = {}
    for row, (name, job) in enumerate(jobs.items()):
        target = crop_face(job.picture, job.face, SCALE * engine.size, engine.crop_factor).image
        pairs[name] = {"target": target, "softened": softened[row], "render": renders[row], "mask": masks[row, ..., 0]}
    return pairs


def repaint(engine: Engine, batch: FaceBatch, conditions: Conditions, start: int, seeds: Sequence[int]) -> Tensor:
    """Faces of a batch as the denoiser paints them from step `start` of `STEPS` on, `(B, 3, S, S)` in [-1, 1]."""
    scheduler = copy(engine.scheduler)
    scheduler.set_timesteps(STEPS, device=engine.device)
    scheduler.set_begin_index(start)
    noise = engine.prepare_latents([torch.Generator().manual_seed(seed) for seed in seeds])
    latents = scheduler.add_noise(batch.images, noise, scheduler.timesteps[start : start + 1].expand(len(noise)))
    rest = Callbacks(progress=lambda timesteps: timesteps[start:])
    return denoise(engine.unet, scheduler, latents, batch, conditions, 1.0, rest).clamp(-1, 1)


class RefinerPairs(Dataset):
    """Parts of pairs, mirrored at random. Sample n depends only on the seed and n, so that a run can be resumed anywhere.

    Args:
        folder: of the pairs.
        names: of the pairs to use.
        patch: side of the parts, in pixels of the generated face.
        seed: of the stream.
    """

    def __init__(self, folder: str | Path, names: list[str], patch: int, seed: int):
        self.folder, self.names, self.patch, self.seed = Path(folder), names, patch, seed

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """A part of a pair around a pixel of the face, as `read_pair` gives it."""
        rng = np.random.default_rng((self.seed, number))
        pair = read_pair(self.folder / f"{self.names[rng.integers(len(self.names))]}.safetensors", rng)
        row, column = self._corner(pair["mask"][0].numpy() > 0, rng)
        part = {}
        for name, image in pair.items():
            scale = SCALE if name == "target" else 1
            place = (slice(scale * row, scale * (row + self.patch)), slice(scale * column, scale * (column + self.patch)))
            part[name] = image[:, *place]
        return {name: image.flip(2) for name, image in part.items()} if rng.random() < 0.5 else part

    def _corner(self, face: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """The top left corner of a part that has a random pixel of the face at its centre, if the border allows."""
        row, column = rng.choice(np.argwhere(face)) - self.patch // 2
        return tuple(int(np.clip(one, 0, len(face) - self.patch)) // 2 * 2 for one in (row, column))


def read_pair(path: Path, rng: np.random.Generator | None = None) -> dict[str, Tensor]:
    """A pair as `face` and `render` `(3, S, S)`, `target` `(3, 2 S, 2 S)`, all in [-1, 1], and `mask` `(1, S, S)`, 0 or 1.

    The `face` is one of the softened ones, without `rng` the first.
    """
    with safe_open(path, framework="np") as file:
        softened = file.get_slice("softened")
        number = 0 if rng is None else int(rng.integers(softened.get_shape()[0]))
        images = {"face": softened[number], "render": file.get_tensor("render"), "target": file.get_tensor("target")}
        mask = file.get_tensor("mask")
    pair = {name: from_bytes(torch.from_numpy(image)[None])[0] for name, image in images.items()}
    return pair | {"mask": (torch.from_numpy(mask)[None] > 127).float()}


def split_pairs(folder: str | Path, validation_names: str | Path | None) -> tuple[list[str], list[str]]:
    """Names of pairs for training and for validation: those listed in a file, or every 32nd by the hash of its name.

    Raises:
        ValueError: one of the two has no pairs.
    """
    names = sorted(path.stem for path in Path(folder).glob("*.safetensors"))
    if validation_names is None:
        held_out = {name for name in names if zlib.crc32(name.encode()) % 32 == 0}
    else:
        held_out = set(Path(validation_names).read_text().splitlines())
    parts = [name for name in names if name not in held_out], [name for name in names if name in held_out]
    if not all(parts):
        raise ValueError(f"`{folder}` has {len(parts[0])} pairs to train on and {len(parts[1])} to validate with.")
    return parts
