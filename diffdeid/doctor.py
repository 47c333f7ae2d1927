"""The checks of `diffdeid doctor`: is everything installed that DiffDeID needs, and does it work?"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffdeid import __version__
from diffdeid.geometry.pixels import on_host, to_bytes
from diffdeid.models.conditioning import render_conditions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.structures import Face, MorphableCoefficients

NEEDED = ("torch", "diffusers", "accelerate", "huggingface-hub", "safetensors", "numpy", "onnxruntime", "av")
OPTIONAL = ("gradio", "pillow-heif", "pytorch3d", "xformers")
BRIGHT = (0.9, 0, 0.3, 0, 0, 0, 0, 0, 0)  # spherical harmonics: light from all sides, and more from the viewer


def examine(model: str, load: Callable[[], DiffDeIDPipeline]) -> Iterator[tuple[bool, str]]:
    """Yield, check by check, whether it passed and a line that says what was found; `load` gives the pipeline of `model`."""
    yield True, f"diffdeid {__version__}, Python {platform.python_version()}, {platform.system()} on {platform.machine()}"
    for name in NEEDED:
        found = _version(name)
        yield found is not None, f"{name} {found or 'is missing: install diffdeid with pip'}"
    for name in OPTIONAL:
        yield True, f"{name} {_version(name) or 'is not installed (optional)'}"
    yield True, f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield True, f"GPU {number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if Path(model).is_dir():
        yield check_sums(Path(model))

    started = time.perf_counter()
    try:
        pipe = load()
    except Exception as error:  # every failure becomes a line of the report
        yield False, f"weights `{model}` do not load: {error}"
        return
    yield True, f"weights `{model}` load in {time.perf_counter() - started:.1f} s"
    picture, faces = average_person(pipe)
    for run in ("first", "second"):
        started = time.perf_counter()
        report = pipe(picture, faces=faces, generator=torch.Generator().manual_seed(0)).faces[0][0]
        what = "replaced" if report.method == "diffusion" else f"covered: {report.reason}"
        yield (
            report.method == "diffusion",
            f"a rendered face on {pipe.device} ({run} run): {what}, {time.perf_counter() - started:.2f} s",
        )


def check_sums(folder: Path) -> tuple[bool, str]:
    """Check a folder of weights against its `SHA256SUMS`. It may lack all of `reconstructor`, as packages come without it."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return True, f"`{folder}` has no SHA256SUMS to check its files by"
    expected = dict(reversed(line.split("  ", 1)) for line in sums.read_text().splitlines())
    optional = set() if (folder / "reconstructor").exists() else {name for name in expected if name.startswith("reconstructor/")}
    wrong = [name for name, digest in expected.items() if name not in optional and _digest(folder / name) != digest]
    if wrong:
        return False, f"these files of `{folder}` are missing or not as released: {', '.join(wrong)}"
    without = " (without `reconstructor`, which is optional)" if optional else ""
    return True, f"{len(expected) - len(optional)} files of `{folder}` are as released{without}"


def average_person(pipe: DiffDeIDPipeline) -> tuple[Image.Image, list[Face]]:
    """A picture of the mean head under plain light, and where its face is: a photo of nobody."""
    coefficients = MorphableCoefficients.unpack(torch.zeros(1, sum(MorphableCoefficients.SIZES), device=pipe.device))
    coefficients.illumination.copy_(torch.tensor(BRIGHT).repeat_interleave(3))
    head = render_conditions(pipe.morphable_model, coefficients, 512)
    pixels, points = on_host(to_bytes(head.maps[:, :3])[0]), on_host(head.landmarks[0])
    return Image.fromarray(pixels), [Face(np.float32([*points.min(0), *points.max(0)]))]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
