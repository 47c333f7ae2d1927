"""Time of each stage for one face in a 1-megapixel photo, and peak memory.

    python benchmarks/stages.py [--model weights/diffdeid] [--steps 8] [--threads 2] [--device cpu]

Times are medians of five runs after a warm-up, in milliseconds and as a share of the whole: shares compare between machines.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffdeid import DiffDeIDPipeline
from diffdeid.geometry.registration import displace
from diffdeid.geometry.seam import match
from diffdeid.pipelines.loading import precisions

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid")
    parser.add_argument("--steps", type=int, default=8)
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

    pipe._guidance_scale = 1.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        faces = pipe.detect_faces(picture)
        source = pipe.reconstruct(picture, faces).one(0)
        identity = pipe.sample_identity(source, 7, "context", generator)
        texture = pipe.encode_texture(source.images, source.masks)
        coefficients, maps = pipe.prepare_conditioning(source.coefficients, identity.shape, source.masks, True)
        latents = pipe.prepare_latents(1, generator)
        inputs = (source.images, source.masks, maps, identity.embedding, coefficients.pack(), texture)
        generated = pipe.denoise(latents, *inputs, args.steps)
        result = pipe.composite(source, generated)[2]
        face = ((generated[0].float().cpu().clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        stages = {
            "detect, landmarks, iris": lambda: pipe.detect_faces(picture),
            "crop, fit, embed, context": lambda: pipe.reconstruct(picture, faces),
            "of which context": lambda: pipe.encode_context(picture, faces),
            "sample identity": lambda: pipe.sample_identity(source, 7, "context", generator),
            "encode texture": lambda: pipe.encode_texture(source.images, source.masks),
            "render conditions": lambda: pipe.prepare_conditioning(source.coefficients, identity.shape, source.masks, True),
            f"denoise, {args.steps} steps": lambda: pipe.denoise(latents, *inputs, args.steps),
            "register": lambda: displace(generated, pipe.measure_offsets(source, generated, coefficients)),
            "match the seam": lambda: match(face, source.crops[0].image, source.masks[0, 0].numpy()),
            "composite": lambda: pipe.composite(source, generated),
            "verify": lambda: pipe.verify(source, result),
        }
        times = {name: median_time(stage) for name, stage in stages.items()}
        total = sum(times.values()) - times["of which context"]
        for name, seconds in times.items():
            print(f"{name:26} {1000 * seconds:8.0f} ms {seconds / total:6.1%}")
        print(f"{'sum, one attempt':26} {1000 * total:8.0f} ms")
        report = pipe(photo, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)).faces[0][0]
        whole = median_time(lambda: pipe(photo, num_inference_steps=args.steps, generator=torch.Generator().manual_seed(0)))
        print(f"{'whole call':26} {1000 * whole:8.0f} ms ({report.method}, {report.attempts} attempt(s))")
        print(f"{'detect, 12 megapixels':26} {1000 * median_time(lambda: pipe.detect_faces(twelve)):8.0f} ms")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def median_time(function) -> float:
    function()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
