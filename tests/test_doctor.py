"""`diffdeid doctor`, on the released weights and on damaged ones."""

import hashlib
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffdeid import doctor
from diffdeid.cli import app

WEIGHTS = Path(__file__).parents[1] / "weights" / "diffdeid"


def test_a_healthy_installation_is_called_one():
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--model", str(WEIGHTS)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert any("torch 2." in line for line in lines) and any("are as released" in line for line in lines)
    assert sum("a rendered face on cpu" in line and "replaced" in line for line in lines) == 2


def test_weights_that_are_none_are_reported(tmp_path):
    result = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path)])
    assert result.exit_code == 1
    assert [line for line in result.output.splitlines() if line.startswith("BAD")] == [result.output.splitlines()[-1]]


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"x"), Path.unlink])
def test_files_that_are_not_as_released_are_named(tmp_path, spoil):
    for name in ("SHA256SUMS", "face_analyser/attention_mesh.onnx", "lds/diffusion_pytorch_model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(WEIGHTS / name, tmp_path / name)
    sums = [line for line in (tmp_path / "SHA256SUMS").read_text().splitlines() if (tmp_path / line.split("  ")[1]).is_file()]
    (tmp_path / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    assert doctor.check_sums(tmp_path) == (True, f"2 files of `{tmp_path}` are as released")
    spoil(tmp_path / "face_analyser/attention_mesh.onnx")
    good, finding = doctor.check_sums(tmp_path)
    assert not good and finding.endswith("not as released: face_analyser/attention_mesh.onnx")


def test_packages_are_healthy_without_the_reconstructor(tmp_path):
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'x').hexdigest()}  reconstructor/weights\n")
    assert doctor.check_sums(tmp_path)[0]
    (tmp_path / "reconstructor").mkdir()
    assert not doctor.check_sums(tmp_path)[0]
