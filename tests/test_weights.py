"""The released weights are complete, licensed, small, and nothing but data."""

import hashlib
import json
from pathlib import Path

import pytest

WEIGHTS = Path(__file__).parents[1] / "weights" / "diffdeid"
EVALUATORS = WEIGHTS.with_name("evaluators")


@pytest.mark.parametrize("folder", [WEIGHTS, EVALUATORS], ids=lambda folder: folder.name)
def test_every_file_has_its_checksum(folder):
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in (".safetensors", ".onnx")}
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_there_is_only_data_under_the_size_limit():
    files = [path for path in WEIGHTS.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".onnx", ".json", ".md", ""}
    assert sum(path.stat().st_size for path in files) < 150 * 2**20


def test_no_config_tells_where_it_was_made():
    configs = [json.loads(path.read_text()) for path in WEIGHTS.rglob("*.json")]
    assert not any(config.get("_name_or_path") for config in configs)


def test_the_networks_keep_to_their_budget(pipeline):
    models = (pipeline.unet, pipeline.texture_encoder)
    assert sum(parameter.numel() for model in models for parameter in model.parameters()) <= 32e6


def test_every_component_has_a_licence():
    text = (WEIGHTS / "LICENSES.md").read_text()
    assert all(f"`{folder.name}`" in text for folder in WEIGHTS.iterdir() if folder.is_dir() and "scheduler" not in folder.name)


def test_every_evaluator_has_a_licence():
    text = (EVALUATORS / "LICENSES.md").read_text()
    assert all(f"`{path.name}`" in text for path in EVALUATORS.iterdir() if path.suffix in (".safetensors", ".onnx"))
