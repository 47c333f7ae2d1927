"""Export what the networks say about every face for the package `hifd` (PyPI, MIT; schema 1.0 of its version 0.1.0).

The package computes its own scores of privacy and utility from the predictions on originals and on results:

    hifd run-all --methods METHODS --estimators ESTIMATORS --data-dir FOLDER --out SCORES

with `methods.yaml` and `estimators.yaml` of the folder. `docs/evaluation.md` tells which of its tasks are not served.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffdeid.evaluation.examiner import EMOTIONS, FILTER, ExaminedFace
from diffdeid.evaluation.structures import Evaluation
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.io.files import write_whole
from diffdeid.metrics.utility import gaze_direction

SCHEMA_VERSION = "1.0"


class Estimator(NamedTuple):
    """A network, the task of `hifd` that it serves, and its prediction for a face: numbers by field, NaN without a face."""

    task: str
    name: str
    predict: Callable[[ExaminedFace], dict[str, np.ndarray | float]]
    class_names: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.task}-{self.name}.json"


def estimators(recognisers: Sequence[str]) -> list[Estimator]:
    """All estimators; those of embeddings are the recognisers of these names."""
    return [
        Estimator("age", "faceres", lambda face: {"value": face.age}),
        Estimator("gender", "faceres", lambda face: {"probs": [1 - face.femininity, face.femininity]}, ("male", "female")),
        Estimator("macro_exp", "emotion", lambda face: {"probs": face.emotion}, EMOTIONS),
        Estimator("landmark", "attention_mesh", _landmarks),
        Estimator("gaze", "head_fit", lambda face: {"direction": gaze_direction(face.coefficients)}),
        *(
            Estimator("face_embedding", name, lambda face, name=name: {"embedding": face.embeddings[name]})
            for name in recognisers
        ),
    ]


def export(folder: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write the predictions on the originals and on the results of each method, `methods.yaml` and `estimators.yaml`.

    The files name the pictures and hold embeddings of the originals, so they are as confidential as these. A face that is no
    longer found has embeddings only. A network that finds no face in any result of a method has no file there, as `hifd` expects.

    Args:
        evaluations: of pictures.
    """
    originals = {pair.name: pair.source for evaluation in evaluations for pair in evaluation.pairs}
    results = {f"result-{number}": evaluation for number, evaluation in enumerate(evaluations, start=1)}
    recognisers = [name for name in evaluations[0].pairs[0].source.embeddings if name != FILTER]  # the method's own
    tasks: dict[str, dict[str, Any]] = {}
    for network in estimators(recognisers):
        files = {"name": network.name, "orig_json": network.file, "deid_json": network.file}
        tasks.setdefault(network.task, {"estimators": []})["estimators"].append(files)
        _write_predictions(folder / "original", "original", network, originals)
        for place, evaluation in results.items():
            _write_predictions(folder / place, "deid", network, {pair.name: pair.result for pair in evaluation.pairs})
    methods = [{"name": evaluation.method, "base_path": place} for place, evaluation in results.items()]
    _write_json(folder / "methods.yaml", {"original": {"base_path": "original"}, "methods": methods})
    _write_json(folder / "estimators.yaml", {"tasks": tasks})


def _write_predictions(folder: Path, source: str, network: Estimator, faces: dict[str, ExaminedFace]) -> None:
    seen = {name: face for name, face in faces.items() if face.found or network.task == "face_embedding"}
    path = folder / network.file
    if not seen:
        path.unlink(missing_ok=True)  # an earlier evaluation may have left one
        return
    predictions = {
        name: {field: np.round(value, 6).tolist() for field, value in network.predict(face).items()}
        for name, face in seen.items()
    }
    envelope = {"task": network.task, "source": source, "estimator": network.name, "schema_version": SCHEMA_VERSION}
    classes = {"class_names": network.class_names} if network.class_names else {}
    _write_json(path, envelope | classes | {"predictions": predictions})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, which is also valid YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, ensure_ascii=False, allow_nan=False).encode())


def _landmarks(face: ExaminedFace) -> dict[str, np.ndarray]:
    points = face.face.landmarks[:, :2].astype(float)
    right, left = (points[list(corners)].mean(0) for corners in EYE_CORNERS)
    return {"points": points, "left_eye_center": left, "right_eye_center": right}
