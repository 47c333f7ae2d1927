"""Add faces of a store once more, with the identity of somebody else, as in de-identification.

A photo shows only its own person, whose α, β and z_id come from the same pixels and agree. Those of a sampled person do not agree
with p and the expression of the source, for which β' is found anew, and there is no picture of the right result. But the losses
that need none (identity, geometry, landmarks) can still tell what is wrong with a result.
"""

from __future__ import annotations

import multiprocessing
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import save

from diffdeid.io.files import write_whole
from diffdeid.models.conditioning import exchange_shape
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import EXCHANGED, FaceStore
from diffdeid.training.maps import shown

CHUNK = 16  # faces that a process does at a time


def exchange_people(
    folder: str | Path, validation_names: str | Path | None = None, model: str | Path = "weights/diffdeid", seed: int = 0
):
    """Add every photo for training to a store once more, with the identity of a random other one, on all cores.

    Photos that have such a version already are skipped.

    Args:
        folder: the store.
        validation_names: as in `TrainConfig`; those people are left out.
        model: folder of the released models.
        seed: of the choice of people.

    Raises:
        ValueError: there are fewer than two photos.
    """
    store = FaceStore(folder)
    names, _ = store.split(validation_names)
    photos = [name for name in names if store.is_photo(name)]
    if len(photos) < 2:
        raise ValueError(f"`{folder}` holds {len(photos)} photos for training; exchanging people needs at least two.")
    done = set(store.made(photos, EXCHANGED))
    missing = [name for name in photos if name + EXCHANGED not in done]
    draws = (np.random.default_rng((seed, zlib.crc32(name.encode()))) for name in missing)
    place = {name: row for row, name in enumerate(photos)}
    pairs = [(name, photos[place[name] - rng.integers(1, len(photos))]) for name, rng in zip(missing, draws, strict=True)]
    chunks = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    with pool_of_cores() as pool:
        list(pool.map(partial(_exchange, store, model), chunks))


def _exchange(store: FaceStore, model: str | Path, pairs: list[tuple[str, str]]):
    morphable_model = MorphableModel.from_pretrained(model, subfolder="morphable_model").float()
    for name, other in pairs:
        exchange_person(store, name, other, morphable_model)


@torch.no_grad()
def exchange_person(store: FaceStore, name: str, other: str, morphable_model: MorphableModel):
    """Add to the store the face `name` with the identity and the head shape of `other`."""
    with store.open(name) as file:
        face = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    with store.open(other) as file:
        identity, theirs = file.get_tensor("identity"), file.get_tensor("coefficients")
    own, theirs = (MorphableCoefficients.unpack(torch.from_numpy(packed)[None]) for packed in (face["coefficients"], theirs))
    changed = exchange_shape(morphable_model, own, theirs.shape, range(468))
    face |= {"identity": identity} | shown(morphable_model, changed)
    write_whole(store.folder / f"{name}{EXCHANGED}.safetensors", save(face, {"set": "exchanged"}))


def pool_of_cores() -> ProcessPoolExecutor:
    """A pool of single-threaded processes, one for each core, forked from a process without threads, as other forks can hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(mp_context=context, initializer=_single_threaded)


def _single_threaded():
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
