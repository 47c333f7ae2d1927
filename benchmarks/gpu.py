"""Measure faces a second on an accelerator, the denoiser's share of the time, and how much of the arithmetic it uses.

    python benchmarks/gpu.py [--model weights/diffdeid] [--device cuda] [--faces 256]

Landmarks are known beforehand: crops, fit, identities, painting, registration and checks are timed, detection is not. The limit
is the speed of products of large matrices on the same device in the precision of the denoiser. It also runs on a CPU, for a try.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from diffdeid import DeidentifyOptions, DiffDeIDPipeline
from diffdeid.pipelines.loading import precisions
from diffdeid.structures import FaceJob

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--faces", type=int, default=256)
    args = parser.parse_args()

    pipe = DiffDeIDPipeline.from_pretrained(args.model, dtype=precisions(args.device), reconstructor=None).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    picture = np.asarray(Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB"))
    faces, engine, options = pipe.detect_faces(picture), pipe.engine, DeidentifyOptions()
    jobs = [FaceJob(picture, faces[0], faces, [seed]) for seed in range(args.faces)]

    def run(count: int) -> Callable[[], object]:
        return lambda: list(engine.deidentify(jobs[:count], options))

    batch = min(engine.batch_size, args.faces)
    run(batch)()  # kernels are chosen and memory is taken
    seconds = timed(args.device, run(args.faces)) / args.faces
    print(f"{args.faces} faces, {batch} at once: {1 / seconds:.1f} a second, {1000 * seconds:.1f} ms each")

    clock = Clock(args.device, pipe.unet)
    seconds, unet = timed(args.device, run(args.faces)) / args.faces, clock.seconds / args.faces
    with FlopCounterMode(display=False) as counter:
        run(args.faces)()
    operations = sum(counter.get_flop_counts()[type(pipe.unet).__name__].values()) / args.faces
    limit = products_a_second(args.device, pipe.unet.dtype)
    share = f"{1000 * unet:.1f} ms, {unet / seconds:.0%}"
    print(f"of which the U-Net has {share} (each call waited for, {1000 * seconds:.1f} ms a face)")
    print(f"and does {operations / unet / 1e12:.2f} of {limit / 1e12:.2f} Tflop/s, {operations / unet / limit:.0%} of the limit")


class Clock:
    """Adds up the time spent in a module."""

    def __init__(self, device: str, module: torch.nn.Module):
        self.device, self.seconds = device, 0.0
        module.register_forward_pre_hook(lambda *_: self.add(-1))
        module.register_forward_hook(lambda *_: self.add(1))

    def add(self, sign: int) -> None:
        synchronize(self.device)
        self.seconds += sign * time.perf_counter()


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: str, function: Callable[[], object]) -> float:
    """Seconds until all work on the device is done."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def products_a_second(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of matrix products, the best of five runs."""
    side = 16384 if torch.device(device).type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / min(timed(device, lambda: matrix @ matrix) for _ in range(5))


if __name__ == "__main__":
    main()
