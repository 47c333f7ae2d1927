"""A Hub for each test, and users: separate processes that can reach this Hub and nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hub.server import Hub, running
from tests.tiny import tiny_lds_pipeline

HOME_ALONE = "from tests.loopback import stay_home; stay_home()\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> Callable[..., str]:
    """Runs Python code, or a script and its arguments, as a user; returns what it prints."""

    def run(*command: str, offline: bool = False, token: str | None = None, fails: bool = False) -> str:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_XET": "1",  # the Hub's other way of moving files, which is not spoken here
            "PYTHONPATH": str(ROOT),
        }
        environment.pop("HF_TOKEN", None)
        if token:
            environment["HF_TOKEN"] = token
        arguments = command if len(command) > 1 else ("-c", HOME_ALONE + command[0])
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return (done.stderr if fails else done.stdout).strip()

    return run


@pytest.fixture(scope="session")
def lds_folder(tmp_path_factory) -> Path:
    """The folder of a tiny `LDSPipeline`, as it would be published."""
    folder = tmp_path_factory.mktemp("lds")
    tiny_lds_pipeline().save_pretrained(folder)
    return folder
