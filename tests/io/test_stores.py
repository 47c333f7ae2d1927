import os
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from diffdeid import planning
from diffdeid.io import stores
from diffdeid.io.stores import Copies, location, version
from diffdeid.planning import plan


@pytest.fixture(params=["memory", "local", "whole"])
def store(request, tmp_path, monkeypatch):
    """A new folder of a store: in memory, on the disk, or in memory but treated as a store that takes files whole."""
    if request.param == "whole":
        monkeypatch.setattr(stores, "_PUTS_WHOLE", {"memory"})
    return location(f"local://{tmp_path}/store" if request.param == "local" else f"memory://{uuid4().hex}")


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fill(folder, *names: str) -> None:
    for name in names:
        folder.fs.makedirs((folder / name).parent.path, exist_ok=True)
        folder.fs.pipe_file((folder / name).path, name.encode())


def files(folder) -> list[str]:
    return sorted(str(name).removeprefix(folder.path).lstrip("/") for name in folder.fs.find(folder.path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing://a/b.png", "nothing"), ("s3://a/b.png", "Install s3fs"), ("simplecache::memory://a.png", "chain of URLs")],
)
def test_what_cannot_be_reached_is_said(monkeypatch, name, said):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=said):
        plan([name], None, 1)


@pytest.mark.parametrize(
    "name",
    [
        "ftp://me:hunter2@host/a.png",
        "s3://key:hunt/er2@bucket/*",
        "x::sftp://me:hunter2@host/",
        "https://host/a.png?sig=hunter2",
        "https://hunter2@host/a.png",
    ],
)
def test_secrets_in_urls_are_refused_and_not_told(name):
    with pytest.raises(ValueError, match="give it to the driver") as refused:
        plan([name], None, 1)
    assert "hunt" not in str(refused.value)


@pytest.mark.parametrize("name", ["memory://host:80/a@b.png", "memory://c@account.net/a:b?.png", "memory://a/b@v1/c:d.png"])
def test_other_urls_are_no_secrets(name):
    assert location(name).name == name.rsplit("/")[-1]


def test_files_of_two_servers_are_two(monkeypatch):
    """As text, the names of their files leave the servers out."""
    one, other = (UPath(f"ftp://{host}/a.png") for host in ("here", "there"))
    monkeypatch.setattr(planning, "location", lambda name: one if "here" == name else other)
    monkeypatch.setattr(type(one), "is_file", lambda _: True)
    assert [file for file, _ in planning.find(["here", "there", "here"])] == [one, other]


def test_folders_patterns_and_files_are_found_as_on_a_disk(store):
    fill(store, "in/a.jpg", "in/x[1].png", "in/deep/b.mp4", "in/a_anonymized.jpg", "in/.hidden.jpg", "in/notes.txt")

    def planned(name: str, output) -> dict[str, str]:
        return {str(job.source): str(job.outputs[0]) for job in plan([f"{store}/{name}"], output, 1)}

    mirrored = {
        f"{store}/in/a.jpg": f"{store}/out/a_anonymized.jpg",
        f"{store}/in/x[1].png": f"{store}/out/x[1]_anonymized.png",
        f"{store}/in/deep/b.mp4": f"{store}/out/deep/b_anonymized.mp4",
    }
    assert planned("in", store / "out") == planned("in/", store / "out") == planned("in/**/*", store / "out") == mirrored
    assert planned("in/x[1].png", None) == {f"{store}/in/x[1].png": f"{store}/in/x[1]_anonymized.png"}
    assert planned("in/deep", Path("here")) == {f"{store}/in/deep/b.mp4": "here/b_anonymized.mp4"}
    with pytest.raises(ValueError, match="matches no picture"):
        planned("nowhere", None)
    with pytest.raises(ValueError, match="never written to"):
        planned("in/a.jpg", store / "in/a.jpg")


def test_a_name_in_a_store_leads_out_of_no_folder():
    root = location(f"memory://{uuid4().hex}")
    for name in ("/a.png", "../b.png", "x/../../c.png"):
        root.fs.store[f"{root.path}/in/{name}"] = root.fs.open("/elsewhere", "wb")
    outputs = [job.outputs[0] for job in plan([f"{root}/in"], Path("out"), 1)]
    assert outputs == [Path("out/a_anonymized.png")]


def test_a_file_on_this_disk_is_not_written_to_by_its_url(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="never written to"):
        plan([str(tmp_path / "a.png")], location(f"file://{tmp_path}/a.png"), 1)


@pytest.mark.filterwarnings("ignore:UPath 'memo'")
def test_an_input_is_not_written_to_by_another_name_of_its_store():
    class Memory(MemoryFileSystem):
        protocol = "memory", "memo"

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("memo://", "memory://"))

    fsspec.register_implementation("memo", Memory, clobber=True)
    name = f"{uuid4().hex}/a.png"
    location(f"memory://{name}").fs.pipe_file(f"/{name}", b"")
    with pytest.raises(ValueError, match="never written to"):
        plan([f"memory://{name}"], location(f"memo://{name}"), 1)


def test_another_file_of_the_same_size_is_another_version(store):
    fill(store, "a.png")
    before = version(store / "a.png")
    assert version(store / "a.png") == before
    store.fs.pipe_file((store / "a.png").path, b"b.png")
    assert version(store / "a.png") != before
    with pytest.raises(FileNotFoundError):
        version(store / "b.png")


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_copy_is_private_and_goes(store, private, end):
    fill(store, "a.png")
    copies = Copies()
    copy = copies.fetch(store / "a.png")
    assert copy.read_bytes() == b"a.png" and copy.is_relative_to(private) and copy.suffix == ".png"
    if os.name == "posix":
        assert copy.parent.stat().st_mode & 0o077 == 0
    assert copies.with_urls(f"`{copy}` is bad") == f"`{store}/a.png` is bad"
    if end == "close":
        copies.close()
    del copies
    assert not list(private.iterdir())


def test_a_source_that_is_gone_is_an_error_with_its_url(store):
    with pytest.raises(OSError, match=f"`{store}/a.png` cannot be downloaded"):
        Copies().fetch(store / "a.png")


def test_an_output_is_there_at_the_end_and_replaces_none_unless_told(store):
    copies = Copies()
    with copies.output(store / "new/a.png", overwrite=False) as file:
        file.write_bytes(b"one")
        assert not files(store)
    with pytest.raises(FileExistsError, match="--existing replace"):
        with copies.output(store / "new/a.png", overwrite=False) as file:
            file.write_bytes(b"two")
    assert files(store) == ["new/a.png"] and (store / "new/a.png").read_bytes() == b"one"
    with copies.output(store / "new/a.png", overwrite=True) as file:
        file.write_bytes(b"two")
    assert files(store) == ["new/a.png"] and (store / "new/a.png").read_bytes() == b"two" and not file.exists()


@pytest.mark.parametrize("fails", ["block", "put", "interrupted", "name"])
def test_an_output_that_fails_leaves_nothing(store, monkeypatch, fails):
    error = KeyboardInterrupt if fails == "interrupted" else ValueError("no room")

    def fail(*given, **options):
        if store.protocol == "local":
            Path(given[1]).write_bytes(b"half")
        raise error

    whole = stores._PUTS_WHOLE == {"memory"}
    if fails != "block":
        monkeypatch.setattr(type(store.fs), "mv" if fails == "name" and not whole else "put_file", fail)
    with pytest.raises((OSError, ValueError, KeyboardInterrupt), match=None if fails == "interrupted" else "no room"):
        with Copies().output(store / "a.png", overwrite=True) as file:
            file.write_bytes(b"result")
            if fails == "block":
                raise error
    assert not files(store) and not file.exists()
