"""Building what is published."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def release(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "scripts/release.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["diffdeid", "diffdeid_lds", "diffdeid_video"])
def test_every_pipeline_has_a_card_and_names_its_class(name):
    from diffdeid.pipelines import pipeline_diffdeid, pipeline_lds, pipeline_video

    source = (ROOT / "pipelines" / name / "pipeline.py").read_text()
    line = next(line for line in source.splitlines() if line.startswith("from diffdeid"))
    cls = line.split("import ")[1].split()[0]
    assert any(hasattr(module, cls) for module in (pipeline_diffdeid, pipeline_lds, pipeline_video))
    card = (ROOT / "pipelines" / name / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n") and cls in card


def test_a_folder_is_built_checked_and_never_overwritten(tmp_path):
    built = release("diffdeid_lds", tmp_path / "lds")
    assert built.returncode == 0, built.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lds"]
    names = {path.relative_to(tmp_path / "lds").as_posix() for path in (tmp_path / "lds").rglob("*") if path.is_file()}
    assert names == {
        "LICENSES.md", "README.md", "pipeline.py", "model_index.json", "scheduler/scheduler_config.json",
        "lds/config.json", "lds/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert json.loads((tmp_path / "lds/model_index.json").read_text())["_class_name"] == "LDSPipeline"
    size = (ROOT / "weights/diffdeid/lds/diffusion_pytorch_model.safetensors").stat().st_size
    assert (tmp_path / "lds/lds/diffusion_pytorch_model.safetensors").stat().st_size == pytest.approx(size, rel=0.01)
    again = release("diffdeid_lds", tmp_path / "lds")
    assert again.returncode != 0 and "exists" in again.stderr
