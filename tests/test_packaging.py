import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def in_a_new_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_requirements_are_the_core_and_app_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["app"]
    assert (ROOT / "requirements.txt").read_text().split() == declared


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
