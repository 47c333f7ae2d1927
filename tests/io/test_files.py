"""Files appear complete or not at all, and existing files are replaced only on request."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffdeid import ImageError, VideoError, VideoWriter, write_image
from diffdeid.io import files, video_writer
from diffdeid.io.files import put, write_whole
from diffdeid.io.video_reader import Frame


@pytest.fixture(params=["hard links", "no hard links"])
def file_system(request, monkeypatch):
    def refuse(*_):
        raise OSError("Operation not supported")

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)


def test_a_file_gets_a_name_that_is_free(tmp_path, file_system):
    write_whole(tmp_path / "a", b"one", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_a_name_that_is_taken_is_taken_over_only_when_asked(tmp_path, file_system):
    (tmp_path / "a").write_bytes(b"one")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"two", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]
    write_whole(tmp_path / "a", b"two", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"two" and os.listdir(tmp_path) == ["a"]


def appearing(module, monkeypatch):
    """Another program writes the file after all checks."""

    def late(temporary: Path, path: Path, overwrite: bool) -> None:
        path.write_bytes(b"theirs")
        put(temporary, path, overwrite)

    monkeypatch.setattr(module, "put", late)


def test_a_picture_that_appears_meanwhile_is_not_replaced(tmp_path, file_system, monkeypatch):
    appearing(files, monkeypatch)
    with pytest.raises(ImageError, match="exists"):
        write_image(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    assert (tmp_path / "a.png").read_bytes() == b"theirs" and os.listdir(tmp_path) == ["a.png"]


def test_a_video_that_appears_meanwhile_is_not_replaced(tmp_path, file_system, monkeypatch):
    appearing(video_writer, monkeypatch)
    with pytest.raises(VideoError, match="exists"), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(Frame(np.zeros((32, 32, 3), np.uint8), 0))
    assert (tmp_path / "a.mp4").read_bytes() == b"theirs" and os.listdir(tmp_path) == ["a.mp4"]
