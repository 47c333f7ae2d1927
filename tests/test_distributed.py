"""Runs on a Ray cluster of this machine, with real weights and a worker that is killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner

from diffdeid import FileOptions, VideoOptions, distributed
from diffdeid.batch import How, Task
from diffdeid.cli import app
from diffdeid.errors import ConfigurationError
from diffdeid.planning import Job

ROOT = Path(__file__).parents[1]
OPTIONS = ["photos", "-o", "out", "--seed", "3", "--steps", "2", "--device", "cpu", "--dtype", "float32", "--json"]
NUMBER = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory, astronaut) -> Path:
    """A folder with pictures of a face, and one without a face."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "photos").mkdir()
    face = Image.open(astronaut).convert("RGB").crop((100, 0, 356, 256))
    for number in range(NUMBER - 1):
        face.crop((number, 0, 248 + number, 248)).save(folder / "photos" / f"{number}.png")
    Image.new("RGB", (64, 64)).save(folder / "photos" / "nobody.png")
    return folder


def on_ray(folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-c", "from diffdeid.cli import app; app()", "ray", *OPTIONS, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def workers(root: int) -> list[int]:
    """The ids of the processes with networks that descend from a process."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue

    def descends(number: int) -> bool:
        return number == root or number in parents and descends(parents[number])

    return [number for number, name in names.items() if name.startswith(b"ray::MapWorker") and descends(number)]


def test_a_worker_is_killed_and_every_file_is_there_once_as_without_a_cluster(folder, monkeypatch):
    with on_ray(folder, "--workers", "2", "--manifest", "done.jsonl") as process:
        records = [json.loads(process.stdout.readline())]
        finished = {path: path.stat().st_mtime_ns for path in [folder / records[0]["output"]]} if records[0]["output"] else {}
        killed = workers(process.pid)
        assert killed
        os.kill(killed[0], signal.SIGKILL)
        records += map(json.loads, process.stdout)
    assert process.returncode == 3  # there is nobody in one of them
    assert sorted(record["input"] for record in records) == sorted(
        str(path.relative_to(folder)) for path in (folder / "photos").iterdir()
    )
    assert [record["input"] for record in records if record["status"] not in ("ok", "fallback")] == ["photos/nobody.png"]
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())  # it was not done again
    names = sorted(path.name for path in (folder / "out").iterdir() if not path.name.startswith(".diffdeid-"))
    assert names == [f"{number}_anonymized.png" for number in range(NUMBER - 1)]

    outputs = {name: (folder / "out" / name).read_bytes() for name in names}
    monkeypatch.chdir(folder)
    again = CliRunner().invoke(app, ["anonymize", *OPTIONS, "--existing", "replace"])
    assert again.exit_code == 3 and outputs == {name: (folder / "out" / name).read_bytes() for name in names}
    faces = {record["input"]: record["faces"] for record in map(json.loads, again.stdout.splitlines())}
    assert faces == {record["input"]: record["faces"] for record in records}
    assert "seed" not in (folder / "done.jsonl").read_text()


def test_what_is_done_needs_no_cluster(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "photos" / "nobody.png").unlink()
    result = CliRunner().invoke(app, ["ray", *OPTIONS, "--manifest", "done.jsonl", "--address", "nowhere:1"])
    assert result.exit_code == 0
    assert {json.loads(line)["status"] for line in result.stdout.splitlines()} == {"skipped"}


@pytest.mark.parametrize(
    ("there_are", "workers", "device", "expected"),
    [
        ({"CPU": 4.0}, None, "auto", (4, 0)),
        ({"CPU": 4.0, "GPU": 2.0}, None, "auto", (2, 1)),
        ({"CPU": 4.0, "GPU": 2.0}, 3, "cpu", (3, 0)),
        ({"CPU": 4.0}, 5, "auto", None),
        ({"CPU": 4.0}, None, "cuda", None),
        ({}, None, "auto", None),
    ],
)
def test_a_worker_for_each_device_and_none_that_would_wait_for_ever(monkeypatch, there_are, workers, device, expected):
    monkeypatch.setattr("ray.cluster_resources", lambda: there_are)
    if expected is None:
        with pytest.raises(ConfigurationError, match="--workers"):
            distributed._pool(workers, device)
    else:
        pool = distributed._pool(workers, device)
        assert (pool["size"], pool["num_gpus"]) == expected


def test_a_part_of_pictures_fills_batches_and_a_video_is_a_part(tmp_path, monkeypatch):
    names, how = (
        ["a.png", "b.png", "c.mp4", "d.png", "e.png"],
        How(VideoOptions(), FileOptions(), on_no_face="skip", verify=False),
    )
    tasks = {
        number: Task(Job(tmp_path / name, (tmp_path / f"new_{name}",), Path(name)), how) for number, name in enumerate(names)
    }
    parts = distributed._parts(tasks, 3)
    assert [list(part) for part in parts] == [[2], [0, 1, 3], [4]]

    groups = []

    def pipe(images, **_):
        groups.append(len(images))
        return SimpleNamespace(images=images, faces=[[]] * len(images), errors=[None] * len(images))

    pipe.engine = SimpleNamespace(mixed_batch_size=2)
    monkeypatch.setattr(distributed, "load", lambda *_: pipe)
    monkeypatch.setattr(distributed, "for_videos", lambda _: None)
    monkeypatch.chdir(tmp_path)  # the worker goes where it is told
    for number in (0, 1):  # the other one is not there
        Image.new("RGB", (8, 8)).save(tasks[number].job.source)
    for number in (0, 1, 3):
        tasks[number].missing = list(tasks[number].job.outputs)
    done = distributed._Worker(str(tmp_path), "", "", "", "")({"tasks": pickle.dumps(parts[1])})
    statuses = {number: record["status"] for number, (record,) in json.loads(done["records"])}
    assert statuses == {0: "no_face", 1: "no_face", 3: "error"} and groups == [2]
