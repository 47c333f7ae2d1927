"""No network, one thread (small tensors are not worth the barriers), and the fixtures that several folders share."""

import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, request):
    if "hub" in request.keywords:
        return

    def at_home_only(connect):
        def checked(self, address, *rest):
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "localhost", "::1"):
                raise AssertionError(f"a test tried to connect to {address}")
            return connect(self, address, *rest)

        return checked

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, at_home_only(getattr(socket.socket, name)))


@pytest.fixture(scope="session")
def astronaut() -> Path:
    """The demo photo: one face, 512×512 RGB."""
    return ROOT / "tests" / "assets" / "astronaut.png"


@pytest.fixture(scope="session")
def pipeline():
    """The pipeline on the weights that ship."""
    from diffdeid import DiffDeIDPipeline

    pipeline = DiffDeIDPipeline.from_pretrained(ROOT / "weights" / "diffdeid")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
