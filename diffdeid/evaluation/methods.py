"""Methods to compare: DiffDeID, covers, and the simplest ways to replace a face.

diffdeid    this project, with the given options
fill, solid, mosaic, blur   covers of `geometry.cover`
inpaint     the face filled from its surroundings (Telea 2004, OpenCV): what a picture looks like without a generator
swap-mean   the mean head of the morphable model, rendered with the pose, expression, gaze, light and skin tone of the source
deface      the tool of that name (PyPI), with its defaults, when it is installed
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffdeid.errors import ConfigurationError, NoFaceFoundError
from diffdeid.geometry.composite import paste
from diffdeid.geometry.cover import cover
from diffdeid.geometry.pixels import on_host, to_bytes, to_tensor
from diffdeid.io.images import read_image, write_image
from diffdeid.models.conditioning import exchange_shape, hide_skin_details, render_conditions
from diffdeid.options import Cover, DeidentifyOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.stages.compose import lay_over_crops
from diffdeid.stages.detect import why_covered
from diffdeid.structures import Face, FaceBatch, FaceJob

COVERS = get_args(Cover)
METHODS = ("diffdeid", *COVERS, "inpaint", "swap-mean", "deface")
INPAINT_RADIUS = 5  # pixels of a 256-pixel crop


def available_methods() -> tuple[str, ...]:
    """All methods; `deface` only where it is installed."""
    return METHODS if deface_command() else METHODS[:-1]


def deface_command() -> str | None:
    return shutil.which("deface", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def run_method(name: str, pipe: DiffDeIDPipeline, pictures: dict[str, Path], out: Path, seed: int, **options: Any) -> list[dict]:
    """De-identify pictures by a method, as PNG files in a folder. Results that are there already are not made again.

    But a result is made again if the picture, the seed, an option or the weights have changed.

    Args:
        name: one of `METHODS`.
        pipe: finds faces, and de-identifies them for the method "diffdeid".
        pictures: files, by name.
        out: the folder; its `costs.jsonl` records what each picture took.
        seed: picture number n is made with seed + n, so that a result does not depend on which others exist already.
        options: of `DiffDeIDPipeline.__call__`.

    Returns:
        For each picture its `name`, `seconds`, the number of `faces`, how many were `covered`, and `evaluations` of the network.

    Raises:
        ConfigurationError: the method "deface" is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    costs, weights = out / "costs.jsonl", pipe.engine.digest()
    recipes = {
        key: _digest(path.read_bytes(), repr((weights, seed + number, sorted(options.items()))).encode())
        for number, (key, path) in enumerate(pictures.items())
    }
    done = {row["name"]: row for row in map(json.loads, costs.read_text().splitlines())} if costs.exists() else {}
    missing = {
        key: path
        for key, path in pictures.items()
        if done.get(key, {}).get("recipe") != recipes[key] or not (out / f"{key}.png").exists()
    }
    if name == "deface":
        rows = _deface(missing, out)
    else:
        rows = (
            _one(pipe, name, key, path, out / f"{key}.png", seed + number, options)
            for number, (key, path) in enumerate(pictures.items())
            if key in missing
        )
    with costs.open("a") as file:
        for row in tqdm(rows, total=len(missing), desc=name, unit="picture", disable=None):
            row["recipe"] = recipes[row["name"]]
            done[row["name"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
    return [done[key] for key in pictures]


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def _one(pipe: DiffDeIDPipeline, name: str, key: str, path: Path, target: Path, seed: int, options: dict) -> dict:
    picture = np.asarray(read_image(path).image)
    started = time.perf_counter()
    result, covered, faces, evaluations = picture, 0, 0, 0
    try:
        if name == "diffdeid":
            generator = torch.Generator().manual_seed(seed)
            output = pipe(picture, generator=generator, output_type="np", **options)
            (result,), (reports,) = output.images, output.faces
            covered, faces = sum(report.method != "diffusion" for report in reports), len(reports)
            evaluations = sum(report.attempts for report in reports) * options.get(
                "num_inference_steps", DeidentifyOptions.num_inference_steps
            )
        else:
            found = pipe.detect_faces(picture)
            faces = len(found)
            covered = faces if name in COVERS else sum(why_covered(face) is not None for face in found)
            for face in found:
                result = BASELINES[name](pipe, result, face)
    except NoFaceFoundError:
        pass  # the picture is left as it is; the coverage of the evaluation counts it
    seconds = time.perf_counter() - started
    target.parent.mkdir(parents=True, exist_ok=True)
    write_image(target, Image.fromarray(result), overwrite=True)
    return {"name": key, "seconds": seconds, "faces": faces, "covered": covered, "evaluations": evaluations}


def _covering(method: str) -> Callable[[DiffDeIDPipeline, np.ndarray, Face], np.ndarray]:
    return lambda pipe, picture, face: cover(picture, [face], method)


def inpaint(pipe: DiffDeIDPipeline, picture: np.ndarray, face: Face) -> np.ndarray:
    """Fill a face from its surroundings; a face without landmarks gets a solid cover."""
    if why_covered(face):
        return cover(picture, [face], "solid")
    source = _reconstructed(pipe, picture, face)
    return _replaced(picture, source, _filled(source))


@torch.no_grad()
def swap_mean(pipe: DiffDeIDPipeline, picture: np.ndarray, face: Face) -> np.ndarray:
    """Paste the rendered mean head over a face; a face without landmarks gets a solid cover."""
    if why_covered(face):
        return cover(picture, [face], "solid")
    source = _reconstructed(pipe, picture, face)
    shown = hide_skin_details(pipe.morphable_model, source.coefficients)
    mean = exchange_shape(pipe.morphable_model, shown, torch.zeros_like(shown.shape), range(468))
    maps = render_conditions(pipe.morphable_model, mean, pipe.size).maps
    head = maps[:, 3:6].abs().amax(1, keepdim=True) > 0  # normals are zero beside the head
    return _replaced(picture, source, torch.where(head, maps[:, :3], _filled(source)))


@torch.no_grad()
def _reconstructed(pipe: DiffDeIDPipeline, picture: np.ndarray, face: Face) -> FaceBatch:
    return pipe.engine.reconstruct([FaceJob(picture, face)], DeidentifyOptions(attributes="any"))


def _filled(source: FaceBatch) -> Tensor:
    erased = on_host(source.masks[0, 0].byte())
    filled = cv2.inpaint(source.crops[0].image, erased, INPAINT_RADIUS, cv2.INPAINT_TELEA)
    return to_tensor([filled], source.images.device)


def _replaced(picture: np.ndarray, source: FaceBatch, generated: Tensor) -> np.ndarray:
    _, opacity = lay_over_crops(generated, source.images, source.depths)
    return paste(picture, on_host(to_bytes(generated)[0]), on_host(opacity[0, 0]), source.crops[0].matrix)


BASELINES: dict[str, Callable[[DiffDeIDPipeline, np.ndarray, Face], np.ndarray]] = {
    **{method: _covering(method) for method in COVERS},
    "inpaint": inpaint,
    "swap-mean": swap_mean,
}


def _deface(pictures: dict[str, Path], out: Path) -> list[dict]:
    """Run the `deface` command once on copies of all pictures, because it writes beside its inputs."""
    command = deface_command()
    if command is None:
        raise ConfigurationError("The method `deface` needs the tool of that name: `pip install deface`.")
    with tempfile.TemporaryDirectory() as folder:
        copies = {key: Path(folder, f"{number}.png") for number, key in enumerate(pictures)}
        for key, copy in copies.items():
            write_image(copy, read_image(pictures[key]).image)
        started = time.perf_counter()
        if copies:
            subprocess.run([command, *map(str, copies.values())], check=True, capture_output=True)
        seconds = (time.perf_counter() - started) / max(1, len(copies))
        for key, copy in copies.items():
            target = out / f"{key}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(copy.with_name(f"{copy.stem}_anonymized.png"), target)
    return [{"name": key, "seconds": seconds, "faces": 0, "covered": 0, "evaluations": 0} for key in pictures]
