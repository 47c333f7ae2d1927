"""Measure DiffDeID and `deface` (PyPI) on the same pictures and clips, in one run: ratios carry over to other machines.

    pip install deface                       # without it, only DiffDeID is measured
    python benchmarks/versus.py [--model weights/diffdeid] [--dtype auto] [--photos 100] [--seconds 4]

All files are made from the demo photo. Pictures are timed in the process (medians of five runs after a warm-up), folders and
clips by the two commands, including their start. Both run with their defaults.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from stages import median_time
from video import RATE, write_clip

from diffdeid import DiffDeIDPipeline
from diffdeid.evaluation.methods import deface_command
from diffdeid.pipelines.loading import precisions

ROOT = Path(__file__).parents[1]
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of our denoiser")
    parser.add_argument("--photos", type=int, default=100, help="in the folder")
    parser.add_argument("--seconds", type=float, default=4, help="of the clips")
    args = parser.parse_args()
    photo = Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB")
    pictures = {"1 face, .4 megapixels": face(photo, 640), "1 face, 1 megapixel": face(photo, 1000),
                "20 faces, 12 megapixels": crowd(photo)}  # fmt: skip
    print(f"{CORES} cores, seconds: ours, deface, times as long")

    ours, theirs = ours_of(args.model, args.dtype), deface()
    seconds = {}
    for name, picture in pictures.items():
        seconds[name] = median_time(partial(ours, picture))
        show(name, seconds[name], theirs and median_time(partial(theirs, picture)))
    print(f"{'20 faces, times 1 face':32} {seconds['20 faces, 12 megapixels'] / seconds['1 face, 1 megapixel']:8.1f}")

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "photos")
        folder.mkdir()
        for number in range(args.photos):
            Image.fromarray(face(photo, 1000)).save(folder / f"{number:03}.jpg", quality=95)
        show(f"folder of {args.photos}, 1 megapixel", *run(args, folder, Path(place, "photos_out")))
        for name, size in (("480 x 480", (480, 480)), ("1920 x 1080", (1920, 1080))):
            clip = write_clip(Path(place, f"{size[0]}.mp4"), args.seconds, size)
            both = run(args, clip, clip.with_name("out.mp4"))
            show(f"clip of {args.seconds:g} s, {name}", *both)
            print(f"{'of which frames a second':32} {args.seconds * RATE / both[0]:8.2f}")
            clip.with_name("out.mp4").unlink()


def face(photo: Image.Image, side: int) -> np.ndarray:
    return np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS))


def crowd(photo: Image.Image) -> np.ndarray:
    """A picture of 4000 x 3000 with five by four heads of at least 170 pixels."""
    tile = np.pad(face(photo, 750), ((0, 0), (0, 50), (0, 0)), mode="reflect")
    return np.tile(tile, (4, 5, 1))


def ours_of(model: Path, dtype: str) -> Callable[[np.ndarray], object]:
    pipe = DiffDeIDPipeline.from_pretrained(model, dtype=precisions("cpu", None if dtype == "auto" else getattr(torch, dtype)))
    pipe.set_progress_bar_config(disable=True)
    return lambda picture: pipe(picture, generator=torch.Generator().manual_seed(0), output_type="np")


def deface() -> Callable[[np.ndarray], object] | None:
    """A function that does what the command `deface` does with a frame; `None` if it is not installed."""
    try:
        from deface.centerface import CenterFace
        from deface.deface import anonymize_frame
    except ImportError:
        return None
    detector = CenterFace()

    def anonymize(picture: np.ndarray) -> None:
        found, _ = detector(picture, threshold=0.2)
        anonymize_frame(found, picture.copy(), mask_scale=1.3, replacewith="blur", ellipse=True, draw_scores=False,
                        replaceimg=None, mosaicsize=20)  # fmt: skip

    return anonymize


def run(args: argparse.Namespace, source: Path, output: Path) -> tuple[float, float | None]:
    """Run and time both commands; prints how busy ours keeps the cores."""
    command = [sys.executable, "-m", "diffdeid", "anonymize", source, "-o", output, "--dtype", args.dtype, "--model", args.model]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    ours, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / (ours * CORES)
    print(f"{source.name}: ours keeps {busy:.0%} of {CORES} cores busy", flush=True)
    if deface_command() is None:
        return ours, None
    started = time.perf_counter()
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    subprocess.run([deface_command(), *files], check=True, capture_output=True)
    return ours, time.perf_counter() - started


def show(name: str, ours: float, theirs: float | None) -> None:
    beside = "" if theirs is None else f" {theirs:8.3f} {ours / theirs:8.1f}"
    print(f"{name:32} {ours:8.3f}{beside}", flush=True)


if __name__ == "__main__":
    main()
