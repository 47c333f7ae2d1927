import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from diffdeid import WEIGHTS, __version__, read_image

ROOT = Path(__file__).parents[1]
SHIPPED = {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()}
SHIPPED -= {name for name in SHIPPED if name.startswith("reconstructor/")}


def in_a_new_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_requirements_are_the_core_and_app_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["app"]
    assert (ROOT / "requirements.txt").read_text().splitlines() == declared


def test_importing_the_package_loads_nothing_heavy():
    in_a_new_python("import sys, diffdeid; assert not {'torch', 'numpy', 'PIL', 'diffusers'} & sys.modules.keys()")


def test_importing_the_command_line_loads_nothing_heavy():
    in_a_new_python("import sys, diffdeid.cli; assert not {'torch', 'numpy', 'PIL', 'diffusers'} & sys.modules.keys()")


def test_inference_needs_no_training_package():
    in_a_new_python(
        "import sys, diffdeid; diffdeid.DiffDeIDPipeline; "
        "assert not [n for n in sys.modules if n.startswith(('diffdeid.training', 'diffdeid.conversion', 'gradio'))]"
    )


def test_importing_the_pipelines_changes_no_global_state():
    in_a_new_python(
        """
import random, warnings, numpy, torch, diffusers
def state():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.initial_seed(), numpy.random.get_state()[1].tolist(), random.getstate(), numpy.geterr())
before = state()
import diffdeid
for name in diffdeid.__all__:
    getattr(diffdeid, name)
assert state() == before
"""
    )


def test_the_space_uses_a_gradio_within_the_bounds():
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["app"]
    version = re.search(r"^sdk_version: (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)[1]
    assert version in Requirement(app[0]).specifier


def test_the_package_has_all_of_its_folders():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "diffdeid").rglob("*.py")}
    assert set(packages) == folders | {"diffdeid.weights"}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel of this working tree and, in `SOURCES.txt`, what an sdist of it holds."""
    out, work = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("build")
    (work / "distutils.cfg").write_text(f"[build]\nbuild_base = {work}\n[egg_info]\negg_base = {work}\n")  # not in the tree
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--wheel-dir", str(out), "--no-deps", "--no-build-isolation"]
    made = subprocess.run(
        command, cwd=work, env=os.environ | {"DIST_EXTRA_CONFIG": str(work / "distutils.cfg")}, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (work / "diffdeid.egg-info/SOURCES.txt").rename(out / "SOURCES.txt")
    return out


def test_the_wheel_holds_the_package_and_what_deidentifying_needs(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size < 80e6
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "diffdeid").rglob("*") if path.suffix in (".py", ".jinja")}
    assert names == code | {f"diffdeid/weights/{name}" for name in SHIPPED}


def test_an_sdist_holds_what_the_wheel_is_made_of(built):
    sources = set((built / "SOURCES.txt").read_text().splitlines())
    assert {"LICENSE", "README.md", "diffdeid/cli.py", "diffdeid/evaluation/report.html.jinja"} <= sources
    assert {name for name in sources if name.startswith("weights/")} == {f"weights/diffdeid/{name}" for name in SHIPPED}


def needed(requirements: list[str]) -> set[str]:
    """The names of all distributions that requirements bring, by what is installed here."""
    found, waiting = set(), [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (requirement.name, wanted) not in found:
                found.add((requirement.name, wanted))
                waiting += [(Requirement(text), wanted) for text in distribution(requirement.name).requires or ()]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A fresh environment with the wheel and the dependencies that it declares, linked from ours to save a download of torch."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    for name in needed(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]):
        for top in {file.parts[0] for file in distribution(name).files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(distribution(name).locate_file(top)))
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin/python")]
    for command in (["install", "--no-index", "--no-deps", str(wheel)], ["check"]):
        ran = subprocess.run([*pip, *command], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return home


def test_an_installed_command_deidentifies_far_from_the_clone(installed, tmp_path, astronaut):
    (tmp_path / "photo.png").write_bytes(astronaut.read_bytes())
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str) -> subprocess.CompletedProcess:
        environment = clean | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [installed / "bin" / words[0], *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    where = run("python", "-c", "import diffdeid; print(diffdeid.WEIGHTS)")
    assert Path(where.stdout.strip()).is_relative_to(installed), where.stderr
    assert run("diffdeid", "--version").stdout == f"diffdeid {__version__}\n"
    ran = run("diffdeid", "anonymize", "photo.png", "--steps", "2", "--seed", "0")
    assert ran.stdout == "photo.png -> photo_anonymized.png (1 diffusion)\n", ran.stderr
    before, after = (np.asarray(read_image(tmp_path / name).image) for name in ("photo.png", "photo_anonymized.png"))
    assert before.shape == after.shape and (before != after)[57:175, 178:270].any(-1).mean() > 0.5
