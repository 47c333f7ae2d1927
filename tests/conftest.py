"""No network, one thread (small tensors are not worth the barriers), and the fixtures that several folders share."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

from tests.loopback import stay_home

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    if "hub" in request.keywords:
        return

    stay_home(monkeypatch.setattr)


@pytest.fixture(scope="session")
def astronaut() -> Path:
    """The demo photo: one face, 512×512 RGB."""
    return ROOT / "tests" / "assets" / "astronaut.png"


@pytest.fixture(scope="session")
def pipeline():
    """The pipeline on the released weights."""
    from diffdeid import DiffDeIDPipeline

    pipeline = DiffDeIDPipeline.from_pretrained(ROOT / "weights" / "diffdeid")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
