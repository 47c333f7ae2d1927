import json
import os
from pathlib import Path

import pytest

from diffdeid.io.manifest import Manifest


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "a.png").write_bytes(b"source")
    return tmp_path / "a.png"


@pytest.fixture
def output(tmp_path) -> Path:
    (tmp_path / "b.png").write_bytes(b"result")
    return tmp_path / "b.png"


def manifest(source: Path, seed: int | None = 0) -> Manifest:
    return Manifest(source.with_name("done.jsonl"), {"seed": seed, "engine": "weights"})


def record(source: Path, output: Path | None, status: str = "ok") -> dict:
    return {"input": str(source), "output": output and str(output), "status": status, "error": None, "faces": ["secret"]}


def add(source: Path, output: Path | None, status: str = "ok", options: str = "options") -> None:
    entered = manifest(source)
    entered.add([record(source, output, status)], entered.digest(source, options), filter(None, [output]))


def held(source: Path, output: Path, seed: int = 0, options: str = "options", on_no_face: str = "error") -> bool:
    read = manifest(source, seed)
    return read.holds(source, output, read.digest(source, options), on_no_face)


def test_what_was_added_is_held_by_the_next_run(source, output):
    assert not held(source, output)
    add(source, output)
    assert held(source, output)


@pytest.mark.parametrize("change", ["seed", "options", "source", "touched", "output", "gone"])
def test_what_depends_on_something_else_is_not_held(source, output, change):
    add(source, output)
    if change == "source":
        source.write_bytes(b"another source")
    elif change == "touched":
        os.utime(source, ns=(0, 0))
    elif change == "output":
        output.write_bytes(b"somebody else's")
    elif change == "gone":
        output.unlink()
    assert not held(source, output, seed=int(change == "seed"), options="others" if change == "options" else "options")


def test_the_last_entry_of_an_output_counts(source, output):
    add(source, output)
    add(source, output, options="others")
    assert held(source, output, options="others") and not held(source, output)


def test_a_source_without_a_face_is_done_for_those_who_asked_for_that(source, output):
    add(source, output, "no_face")
    assert [held(source, output, on_no_face=choice) for choice in ("error", "skip", "copy")] == [False, False, True]
    output.unlink()
    add(source, None, "no_face")
    assert [held(source, output, on_no_face=choice) for choice in ("error", "skip", "copy")] == [False, True, False]
    output.write_bytes(b"mine")
    assert not held(source, output, on_no_face="skip")


def test_errors_and_what_was_skipped_are_not_added(source, output):
    entered = manifest(source)
    entered.add([record(source, output, "skipped"), record(source, None, "error") | {"error": "bad"}], "digest", [])
    assert len(entered.path.read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_line_that_was_cut_off_is_not_held_and_those_before_and_after_are(source, output, cut):
    add(source, output)
    add(source, output.with_name("c.png") if output.rename(output.with_name("c.png")) else None)
    path = source.with_name("done.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    output.write_bytes(b"result")
    assert held(source, output) and not held(source, output.with_name("c.png"))
    add(source, output.with_name("c.png"))
    assert held(source, output) and held(source, output.with_name("c.png"))
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8 a photo", b'{"input": "a.png"}\n', b'{"manifest": 2}\n', b"[1]\n", b'{"manifest": 1}']
)
def test_another_file_is_no_manifest_and_stays(source, content):
    path = source.with_name("done.jsonl")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="--manifest"):
        manifest(source)
    assert path.read_bytes() == content


def test_the_message_on_another_file_is_a_sentence(source):
    source.with_name("done.jsonl").write_text('{"input": "a.png"}\n')
    with pytest.raises(ValueError, match="its first line does not say that it is one") as error:
        manifest(source)
    assert "Error" not in str(error.value)


def test_it_holds_neither_seed_nor_options_nor_faces_nor_an_unsalted_hash(source, output):
    add(source, output)
    path = source.with_name("done.jsonl")
    head, entry = map(json.loads, path.read_text().splitlines())
    assert head.keys() == {"manifest", "salt"} and entry.keys() == {"input", "output", "status", "size", "digest"}
    path.unlink()
    add(source, output)
    assert json.loads(path.read_text().splitlines()[1])["digest"] != entry["digest"]
