"""Measure the speed on videos by steps, precision, number of faces and length, and whether memory grows with the length.

    python benchmarks/video.py [--model weights/diffdeid] [--threads 2] [--device cpu] [--long 60]

The clips show the demo photo moving about: 480×480 pixels a face, 25 frames a second. Each line is measured in a process of its
own. Compare lines with each other: shares of the first line carry over to other machines, seconds do not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from diffdeid import DeidentifyOptions, DiffDeIDVideoPipeline, VideoWriter
from diffdeid.io.video_reader import Frame
from diffdeid.pipelines.loading import precisions

ROOT = Path(__file__).parents[1]
RATE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--long", type=float, default=60, help="seconds of the long clip")
    args = parser.parse_args()
    lines = [
        ("default", None, DeidentifyOptions.num_inference_steps, 1, 4.0),
        ("--dtype float32", torch.float32, DeidentifyOptions.num_inference_steps, 1, 4.0),
        ("two faces", None, DeidentifyOptions.num_inference_steps, 2, 4.0),
        ("--steps 2, 5 s", None, 2, 1, 5.0),
        (f"--steps 2, {args.long:g} s", None, 2, 1, args.long),
    ]
    first = None
    for name, *options in lines:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            measured = pool.apply(measure, (args.model, args.threads, args.device, *options, Path(folder)))
        first = first or measured
        share = measured["s/frame"] / first["s/frame"]
        print(f"{name:20} {share:5.2f}  {1 / measured['s/frame']:5.2f} frames/s  {json.dumps(measured)}", flush=True)


def measure(
    model: Path, threads: int, device: str, denoiser: torch.dtype | None, steps: int, faces: int, seconds: float, folder: Path
) -> dict[str, float]:
    """Seconds a frame of both passes (the second includes the check of the file), and the peak memory of the process in GiB."""
    torch.set_num_threads(threads)
    source = write_clip(folder / "source.mp4", seconds, (480 * faces, 480))
    dtype = precisions(device, denoiser)
    pipe = DiffDeIDVideoPipeline.from_pretrained(model, dtype=dtype, reconstructor=None).to(device)
    pipe.set_progress_bar_config(disable=True)
    times: dict[str, float] = {}

    def note(stage: str, done: int, total: int) -> None:
        times[stage] = time.perf_counter()

    started = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    output = pipe(source, folder / "out.mp4", num_inference_steps=steps, generator=generator, callback_on_frame=note)
    ended = time.perf_counter()
    frames = output.num_frames
    return {
        "s/frame": round((ended - started) / frames, 3),
        "analyse": round((times["analyse"] - started) / frames, 3),
        "render": round((ended - times["analyse"]) / frames, 3),
        "frames": frames,
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def write_clip(path: Path, seconds: float, size: tuple[int, int]) -> Path:
    """Write a clip of the demo photo moving about, repeated side by side as often as it fits into `size` (width, height)."""
    width, height = size
    photo = Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB").resize((height, height), Image.Resampling.LANCZOS)
    with VideoWriter(path, Fraction(RATE)) as writer:
        for number in range(round(seconds * RATE)):
            turn = cv2.getRotationMatrix2D((height / 2, height / 2), 4 * np.sin(number / 11), 1 + 0.03 * np.sin(number / 17))
            turn[:, 2] += 8 * np.sin(number / 7), 6 * np.sin(number / 9)
            head = cv2.warpAffine(np.asarray(photo), turn, (height, height), borderMode=cv2.BORDER_REFLECT_101)
            row = np.concatenate([head] * (width // height), axis=1)
            beside = ((0, 0), (0, width - row.shape[1]), (0, 0))
            writer.write(Frame(np.pad(row, beside, mode="symmetric"), Fraction(number, RATE)))
    return path


if __name__ == "__main__":
    main()
