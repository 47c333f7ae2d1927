"""A server with the page, and a clip to send to it."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import app
from diffdeid import VideoWriter
from diffdeid.io.video_reader import Frame


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders in which Gradio and `tempfile` put files while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        folders = tmp_path_factory.mktemp("gradio"), tmp_path_factory.mktemp("temporary")
        patch.setenv("GRADIO_TEMP_DIR", str(folders[0]))
        patch.setattr(tempfile, "tempdir", str(folders[1]))
        yield folders


@pytest.fixture(scope="module")
def serve(pipeline, folders):
    """`f(cache)`: the address of a server whose files are deleted as `cache` says."""
    demos = []

    def serve(cache: tuple[int, int]) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "CACHE", cache)
            demos.append(app.build_demo(pipeline).queue())
        launched = demos[-1].launch(prevent_thread_lock=True, quiet=True, show_error=False, max_file_size="100mb", css=app.CSS)
        return launched[1]

    yield serve
    for demo in demos:
        demo.close()


@pytest.fixture
def started() -> Callable:
    """`with started(cwd, temporary) as (process, address)`: `python app.py` in a folder, with files in another one."""

    @contextmanager
    def started(cwd: Path, temporary: Path) -> Iterator[tuple[subprocess.Popen, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        temporary.mkdir()
        environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "TMPDIR": str(temporary)}
        environment.pop("PYTHONPATH", None)
        with subprocess.Popen([sys.executable, "app.py"], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert any("Running on" in line for line in process.stdout)
                yield process, f"http://127.0.0.1:{port}"
            finally:
                process.kill()

    return started


@pytest.fixture(scope="package")
def clip(astronaut, tmp_path_factory) -> Path:
    """Six frames of the demo photo, shrunk."""
    return filmed(Image.open(astronaut).resize((256, 256)), tmp_path_factory.mktemp("clips") / "talk.mp4")


@pytest.fixture(scope="package")
def clip_of_two(astronaut, tmp_path_factory) -> Path:
    """Six frames of two people, 256 pixels each."""
    picture = Image.new("RGB", (512, 256))
    for place, photo in enumerate((astronaut, astronaut.with_name("anna.jpg"))):
        picture.paste(Image.open(photo).convert("RGB").resize((256, 256)), (256 * place, 0))
    return filmed(picture, tmp_path_factory.mktemp("clips") / "two.mp4")


def filmed(picture: Image.Image, path: Path) -> Path:
    with VideoWriter(path, 25) as writer:
        for number in range(6):
            writer.write(Frame(np.asarray(picture), number / writer.rate))
    return path
