"""Train the denoiser on a GPU that is lent for minutes and to which only small files can be sent.

    python scripts/lease.py pack FOLDER=STORE ... --out parts               here: pictures as their files, 13 kB a face
    python scripts/lease.py unpack parts/part-0.safetensors ... STORE       there: renders the conditions, on all cores, and
                                                                            those of exchanged people
    python scripts/lease.py train configs/diffdeid_gpu.json OUT --minutes 9 there, loading and compiling included: leaves files
                                                                            of at most 16 MB in OUT, anew at every checkpoint
    python scripts/lease.py merge OUT CHECKPOINT                            here: a checkpoint of these files

FOLDER holds photos of one face each, STORE the faces that `diffdeid data prepare` made of them, 1.1 MB each. A part holds instead
the file of the photo, the place of the crop in it, landmarks, identity and coefficients (crops of clips are sent as WebP). The
prepared faces are made again from these, with only rounding errors.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save, save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_weights

from diffdeid.geometry.align import warp
from diffdeid.io.files import write_whole
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.config import TrainConfig
from diffdeid.training.data import FaceStore
from diffdeid.training.exchange import exchange_people, pool_of_cores
from diffdeid.training.loop import train
from diffdeid.training.maps import FULL, regions, shown

SHARES = 64  # of a part, small enough that all cores finish at about the same time
NETWORKS, NETWORK_FILE = ("unet", "texture_encoder"), "diffusion_pytorch_model.safetensors"
ARRAYS = {"coefficients": np.float32, "identity": np.float16, "landmarks": np.float16, "matrix": np.float32}


def pack(sources: list[tuple[Path, Path]], out: Path, part_bytes: int):
    """Write `part-<n>.safetensors` files of at most about `part_bytes` each from (folder of the photos, store) pairs."""
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict] = []
    size = parts = 0
    stores = [(folder, FaceStore(store)) for folder, store in sources]
    faces = [(folder, store, name) for folder, store in stores for name in store.names]
    random.Random(0).shuffle(faces)  # people can only be exchanged within the parts that have arrived
    for folder, store, name in faces:
        entry = read(folder, store, name)
        weight = len(entry["picture"]) + len(entry["texture"]) + sum(entry[key].nbytes for key in ARRAYS)
        if entries and size + weight > part_bytes:
            write(entries, out / f"part-{parts}.safetensors")
            entries, size, parts = [], 0, parts + 1
        entries.append(entry)
        size += weight
    write(entries, out / f"part-{parts}.safetensors")


def read(folder: Path, store: FaceStore, name: str) -> dict:
    """Read one face, with its pictures as encoded bytes."""
    with store.open(name) as file:
        entry = {key: file.get_tensor(key).astype(dtype) for key, dtype in ARRAYS.items()}
        entry |= {"name": name, "set": file.metadata()["set"], "texture": b""}
        if "texture" in file.keys():  # noqa: SIM118  no mapping
            entry |= {key: _webp(file.get_tensor(stored)) for key, stored in (("picture", "image"), ("texture", "texture"))}
            entry["matrix"] = np.eye(2, 3, dtype=np.float32)
        else:
            entry["picture"] = (folder / name).read_bytes()
    return entry


def _webp(crop: np.ndarray) -> bytes:
    return cv2.imencode(".webp", crop[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes()


def write(entries: list[dict], path: Path):
    """Write one part."""
    blobs = [entry[key] for entry in entries for key in ("picture", "texture")]
    arrays = {key: np.stack([entry[key] for entry in entries]) for key in ARRAYS}
    arrays |= {"blobs": np.frombuffer(b"".join(blobs), np.uint8), "ends": np.cumsum([len(blob) for blob in blobs])}
    names = json.dumps([(entry["name"], entry["set"]) for entry in entries])
    save_file(arrays, path, metadata={"names": names})
    print(f"{path}: {len(entries)} faces, {path.stat().st_size / 2**20:.1f} MiB", flush=True)


def unpack(parts: list[Path], out: Path, validation_names: Path, model: Path):
    """Write the faces of parts into a store, on all cores, and exchange people in it."""
    out.mkdir(parents=True, exist_ok=True)
    shares = [(part, share, SHARES) for part in parts for share in range(SHARES)]
    with pool_of_cores() as pool:
        list(pool.map(partial(unpack_share, out, model), *zip(*shares, strict=True)))
    exchange_people(out, validation_names, model)


def unpack_share(out: Path, model: Path, part: Path, share: int, shares: int):
    """Unpack one of `shares` equal shares of a part."""
    morphable_model = MorphableModel.from_pretrained(model, subfolder="morphable_model").float()
    with safe_open(part, framework="np") as file:
        names = json.loads(file.metadata()["names"])
        arrays = {key: file.get_tensor(key) for key in (*ARRAYS, "blobs", "ends")}
    blobs = np.split(arrays["blobs"], arrays["ends"])
    for row in range(share, len(names), shares):
        picture, texture = (_decoded(blob) for blob in blobs[2 * row : 2 * row + 2])
        coefficients, identity, landmarks, matrix = (arrays[key][row].astype(np.float32) for key in ARRAYS)
        face = {
            "image": warp(picture, matrix, FULL),
            "mask": regions(landmarks),
            "identity": identity,
            "landmarks": landmarks,
        }
        if texture is not None:
            face["texture"] = texture
        face |= shown(morphable_model, MorphableCoefficients.unpack(torch.from_numpy(coefficients)[None]))
        name, set_name = names[row]
        write_whole(out / f"{name}.safetensors", save(face, {"set": set_name}))


def _decoded(blob: np.ndarray) -> np.ndarray | None:
    return cv2.imdecode(blob, cv2.IMREAD_COLOR)[..., ::-1].copy() if len(blob) else None


def run(config: Path, out: Path, minutes: float):
    """Train; each checkpoint replaces the results of the one before in `out`, because a lease can end early."""
    train(replace(TrainConfig.from_file(config), max_minutes=minutes), partial(leave, out))


def leave(out: Path, checkpoint: Path):
    """Write the averaged weights in fp16, the log and the last grids to `out`, where nothing else may be."""
    weights = {
        f"{network}.{key}": value.half().contiguous()
        for network in NETWORKS
        for key, value in load_file(checkpoint / network / NETWORK_FILE).items()
    }
    halves: tuple[dict, dict] = {}, {}
    for key in sorted(weights, key=lambda key: -weights[key].numel()):
        min(halves, key=lambda half: sum(value.numel() for value in half.values()))[key] = weights[key]
    for number, half in enumerate(halves):
        save_weights(half, out / f"weights-{number}.safetensors")
    shutil.copy(checkpoint.parent / "log.jsonl", out)
    for old in out.glob("samples-*.png"):
        old.unlink()
    for grid in sorted(checkpoint.parent.glob("samples-*.png"))[-3:]:
        shutil.copy(grid, out)


def merge(out: Path, checkpoint: Path, model: Path):
    """Turn the files of `leave` into a folder with `unet/`, `texture_encoder/` and `scheduler/`."""
    weights = load_file(out / "weights-0.safetensors") | load_file(out / "weights-1.safetensors")
    for network in NETWORKS:
        shutil.copytree(model / network, checkpoint / network, ignore=shutil.ignore_patterns("*.safetensors"))
        own = {key.removeprefix(f"{network}."): value for key, value in weights.items() if key.startswith(f"{network}.")}
        save_weights(own, checkpoint / network / NETWORK_FILE, metadata={"format": "pt"})
    shutil.copytree(model / "scheduler", checkpoint / "scheduler")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing, unpacking, training, merging = (commands.add_parser(name) for name in ("pack", "unpack", "train", "merge"))
    packing.add_argument("sources", nargs="+", metavar="FOLDER=STORE")
    packing.add_argument("--out", type=Path, required=True)
    packing.add_argument("--part-megabytes", type=float, default=15)
    unpacking.add_argument("parts", nargs="+", type=Path)
    unpacking.add_argument("store", type=Path)
    unpacking.add_argument("--validation-names", type=Path, required=True)
    training.add_argument("config", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--minutes", type=float, required=True)
    merging.add_argument("out", type=Path)
    merging.add_argument("checkpoint", type=Path)
    for command in (unpacking, merging):
        command.add_argument("--model", type=Path, default=Path("weights/diffdeid"))
    arguments = parser.parse_args()
    match arguments.command:
        case "pack":
            pairs = [tuple(map(Path, source.split("=", 1))) for source in arguments.sources]
            pack(pairs, arguments.out, int(arguments.part_megabytes * 1e6))
        case "unpack":
            unpack(arguments.parts, arguments.store, arguments.validation_names, arguments.model)
        case "train":
            run(arguments.config, arguments.out, arguments.minutes)
        case "merge":
            merge(arguments.out, arguments.checkpoint, arguments.model)
