"""De-identify hard pictures, chosen by a fixed rule, and show them beside their sources, to be judged by eye.

    python benchmarks/gallery.py DATA OUTPUT [--model weights/diffdeid] [--seed 0] [--only hats_09 …]

    DATA    holds `hard/`, `val/` and `video/hands/`: all pictures of the first, every thirtieth of the second, two frames of each
            clip of the third
    OUTPUT  gets a PNG of each pair, `sheet-NN.png` of twelve pairs each, and `outcomes.json`: what became of each face, and why

Count by eye: good results, monsters, covers (faces with a method other than "diffusion"), and faces left as they were.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from diffdeid import DiffDeIDPipeline
from diffdeid.errors import NoFaceFoundError
from diffdeid.io.images import read_image
from diffdeid.io.video_reader import VideoReader

ROOT = Path(__file__).parents[1]
HEIGHT, COLUMNS, ROWS = 400, 2, 6  # of a picture, pixels; of a sheet, pairs
EVERY, FRAMES = 30, (0.35, 0.7)  # pictures of `val`; parts of a clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default=ROOT / "weights/diffdeid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="names of pictures")
    args = parser.parse_args()
    pipe = DiffDeIDPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    args.output.mkdir(parents=True, exist_ok=True)
    outcomes, pairs = {}, []
    for name, picture in pictures(args.data):
        if args.only and name not in args.only:
            continue
        result, outcomes[name] = deidentified(pipe, picture, args.seed)
        pairs.append(labelled(np.hstack([of_height(picture), of_height(result)]), name))
        cv2.imwrite(str(args.output / f"{name}.png"), pairs[-1][:, :, ::-1])
    (args.output / "outcomes.json").write_text(json.dumps(outcomes, indent=1))
    for start in range(0, len(pairs), COLUMNS * ROWS):
        sheet = tiled(pairs[start : start + COLUMNS * ROWS])
        cv2.imwrite(str(args.output / f"sheet-{start // (COLUMNS * ROWS):02}.png"), sheet[:, :, ::-1])


def deidentified(pipe: DiffDeIDPipeline, picture: np.ndarray, seed: int) -> tuple[np.ndarray, list[dict[str, object]]]:
    """The result, and what became of each face; a picture without a found face stays as it is."""
    try:
        made = pipe(picture, generator=torch.Generator().manual_seed(seed))
    except NoFaceFoundError:
        return picture, []
    return np.asarray(made.images[0]), [
        {"box": np.round(face.box).tolist(), "method": face.method, "reason": face.reason, "attempts": face.attempts}
        for face in made.faces[0]
    ]


def pictures(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pixels of the pictures chosen by the rule."""
    for path in [*sorted((data / "hard").glob("*.jpg")), *sorted((data / "val").glob("*.*p*g*"))[::EVERY]]:
        yield path.stem, np.asarray(read_image(path).image)
    for path in sorted((data / "video/hands").iterdir()):
        frames = list(VideoReader(path))
        for number, part in enumerate(FRAMES):
            yield f"{path.stem}_{number}", frames[int(part * len(frames))].picture


def of_height(picture: np.ndarray) -> np.ndarray:
    scale = HEIGHT / picture.shape[0]
    return cv2.resize(picture, (round(picture.shape[1] * scale), HEIGHT), interpolation=cv2.INTER_AREA)


def labelled(pair: np.ndarray, name: str) -> np.ndarray:
    strip = np.full((24, pair.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, pair])


def tiled(pairs: list[np.ndarray]) -> np.ndarray:
    width = max(pair.shape[1] for pair in pairs)
    padded = [np.pad(pair, ((0, 0), (0, width - pair.shape[1]), (0, 0)), constant_values=255) for pair in pairs]
    padded += [np.full_like(padded[0], 255)] * (-len(padded) % COLUMNS)
    return np.vstack([np.hstack(padded[row : row + COLUMNS]) for row in range(0, len(padded), COLUMNS)])


if __name__ == "__main__":
    main()
