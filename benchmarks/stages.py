"""Measure the time of each stage for one face in a 1-megapixel photo, and the peak memory.

    python benchmarks/stages.py [--model weights/diffdeid] [--steps 8] [--threads 2] [--device cpu]

Times are medians of five runs after a warm-up, in milliseconds and as a share of the whole: shares compare between machines.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffdeid import DeidentifyOptions, DiffDeIDPipeline, NewIdentity
from diffdeid.pipelines.loading import precisions
from diffdeid.stages.identity import face_generators
from diffdeid.stages.reconstruct import encode_context
from diffdeid.structures import FaceJob

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid")
    parser.add_argument("--steps", type=int, default=DeidentifyOptions.num_inference_steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    pipe = DiffDeIDPipeline.from_pretrained(args.model, dtype=precisions(args.device)).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    print(f"load {time.perf_counter() - started:.2f} s")
    photo = Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB").resize((1000, 1000), Image.Resampling.LANCZOS)
    picture = np.asarray(photo)
    twelve = np.asarray(photo.resize((3464, 3464)))

    engine, options = pipe.engine, DeidentifyOptions(num_inference_steps=args.steps)
    seed, (people, noise) = [0], face_generators(0)
    with torch.no_grad():
        faces = pipe.detect_faces(picture)
        jobs = [FaceJob(picture, face, faces, seed) for face in faces]
        source = engine.reconstruct(jobs, options, may_refine=True)
        texture, latents = engine.encode_texture(source.images, source.masks), engine.prepare_latents([noise])

        def sample() -> NewIdentity:
            (casting,) = engine.castings(source, [people], options, [True])
            return casting.draw(source.embedding, options.level, engine.identity_limit)

        identity = NewIdentity.cat([sample()], source.embedding)
        painted = engine.paint(source, identity, texture, latents, options)
        stages = {
            "detect, landmarks, iris": lambda: pipe.detect_faces(picture),
            "crop, fit, embed, context": lambda: engine.reconstruct(jobs, options, may_refine=True),
            "of which context": lambda: encode_context(engine.context_encoder, picture, faces[0], faces, engine.device),
            "sample identity": sample,
            "encode texture": lambda: engine.encode_texture(source.images, source.masks),
            f"condition, denoise, {args.steps} steps": lambda: engine.paint(source, identity, texture, latents, options),
            "register, seam, refine, verify": lambda: engine.finish(painted, [source.embedding]),
        }
        times = {name: median_time(stage) for name, stage in stages.items()}
        total = sum(times.values()) - times["of which context"]
        for name, seconds in times.items():
            print(f"{name:28} {1000 * seconds:8.0f} ms {seconds / total:6.1%}")
        print(f"{'sum, one attempt':28} {1000 * total:8.0f} ms")
        report = pipe(photo, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)).faces[0][0]
        whole = median_time(lambda: pipe(photo, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)))
        print(f"{'whole call':28} {1000 * whole:8.0f} ms ({report.method}, {report.attempts} attempt(s))")
        print(f"{'detect, 12 megapixels':28} {1000 * median_time(lambda: pipe.detect_faces(twelve)):8.0f} ms")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def median_time(function: Callable[[], object]) -> float:
    """The median of five runs after a warm-up, in seconds."""
    function()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
