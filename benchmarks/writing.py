"""Measure the cost of writing a JPEG in which only a face changed, and how near each format is to its source elsewhere.

    python benchmarks/writing.py [PHOTO]

The photo, by default the demo photo, is scaled to 1 and to 12 megapixels and gets the noise of a camera. A box of an eighth of
its area is replaced by another part of the photo. Times are CPU times, in one thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffdeid.io.images import read_image, write_image

DEMO = Path(__file__).parents[1] / "tests/assets/astronaut.png"


def main() -> None:
    photo = Image.open(sys.argv[1] if len(sys.argv) > 1 else DEMO).convert("RGB")
    with tempfile.TemporaryDirectory() as folder:
        print("| megapixels | quality of the source | like it, ms | without, ms | size to the source's | without |")
        print("|---|---|---|---|---|---|")
        for megapixels in (1, 12):
            for quality in (75, 92):
                print("| " + " | ".join(costs(photo, megapixels, quality, Path(folder))) + " |")
        print("\n| file | largest difference beside the box | mean | within the box | mean |\n|---|---|---|---|---|")
        for name in ("a.jpg", "a.png", "a.tif", "a.webp", "a.heic"):
            for quality in (30, 50, 75, 95) if name == "a.jpg" else (95,):
                print("| " + " | ".join(nearness(photo, quality, Path(folder), name)) + " |")


def prepared(photo: Image.Image, megapixels: float, quality: int, source: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write a source; gives its pixels, the pixels with another face, and where they may differ."""
    side = round((megapixels * 1e6) ** 0.5 / 16) * 16
    noise = np.random.default_rng(0).normal(0, 3, (side, side, 3))
    Image.fromarray((np.asarray(photo.resize((side, side))) + noise).clip(0, 255).astype(np.uint8)).save(source, quality=quality)
    before = np.asarray(read_image(source).image)
    box, after = slice(side // 3, side // 3 + round(side * 0.35)), before.copy()
    after[box, box] = before[: after[box].shape[0], : after[box].shape[0]]
    inside = np.zeros((side, side), bool)
    inside[box, box] = True
    return before, after, inside


def costs(photo: Image.Image, megapixels: float, quality: int, folder: Path) -> list[str]:
    source = folder / "source.jpg"
    _, after, _ = prepared(photo, megapixels, quality, source)
    image, seconds, sizes = Image.fromarray(after), [], []
    for like in (source, None):
        target, fastest = folder / "target.jpg", np.inf
        for _ in range(5):
            started = time.process_time()
            write_image(target, image, overwrite=True, source=like)
            fastest = min(fastest, time.process_time() - started)
        seconds.append(f"{1000 * fastest:.0f}")
        sizes.append(f"{target.stat().st_size / source.stat().st_size:.2f}")
    return [str(megapixels), str(quality), *seconds, *sizes]


def nearness(photo: Image.Image, quality: int, folder: Path, name: str) -> list[str]:
    source, target = folder / "source.jpg", folder / name
    before, after, inside = prepared(photo, 1, quality, source)
    write_image(target, Image.fromarray(after), overwrite=True, source=source)
    shown = np.asarray(read_image(target).image).astype(int)
    beside, within = np.abs(shown - before)[~inside], np.abs(shown - after)[inside]
    label = f"{target.suffix[1:]}, source of quality {quality}" if name == "a.jpg" else target.suffix[1:]
    return [label, *(f"{value:.2f}" for part in (beside, within) for value in (part.max(), part.mean()))]


if __name__ == "__main__":
    main()
