"""`diffdeid evaluate` as a user runs it."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from diffdeid import DiffDeIDPipeline, NoFaceFoundError, cli
from diffdeid.cli import app
from tests.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def folders(astronaut, tmp_path_factory):
    """A photo, and the same with its face covered."""
    real, anon = (tmp_path_factory.mktemp(name) for name in ("real", "anon"))
    shutil.copy(astronaut, real / "eileen.png")
    import numpy as np
    from PIL import Image

    covered = np.array(Image.open(astronaut).convert("RGB"))
    covered[30:250, 140:310] = 0
    Image.fromarray(covered).save(anon / "eileen_anonymized.png")
    return real, anon


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_two_folders_as_json(folders):
    result = run(*folders, "--json")
    assert result.exit_code == 0, result.output
    (method,) = json.loads(result.stdout)
    numbers = {metric["name"]: metric["value"] for metric in method["metrics"]}
    assert method["pictures"] == 1
    assert numbers["face found"] == 0 and numbers["EXP"] is None and numbers["faces left as they were"] == 0


def test_a_report_has_a_page_a_table_and_numbers(folders, tmp_path):
    result = run(*folders, "--report", tmp_path / "report", "--export", "hifd")
    assert result.exit_code == 0, result.output
    assert "PRIVACY" in result.stdout and "face found" in result.stdout
    assert {"report.html", "pictures.csv", "metrics.json"} <= {path.name for path in (tmp_path / "report").iterdir()}
    assert (tmp_path / "report/hifd/methods.yaml").exists()


def test_a_method_is_run_first(folders, tmp_path):
    result = run("--method", "mosaic", "--data", folders[0], "--report", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["method"] == "mosaic"
    assert (tmp_path / "mosaic/eileen.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "REAL and ANON"),
        (["--method", "solid"], "--data"),
        (["REAL"], "REAL and ANON"),
        (["REAL", "ANON", "--attacks"], "REAL and ANON"),
        (["REAL", "ANON", "--export", "hifd"], "--report"),
        (["PHOTO", "PHOTO", "--export", "hifd", "--report", "REPORT"], "is for pictures"),
        (["--export", "hifd", "--report", "REPORT"], "REAL and ANON"),
    ],
)
def test_incomplete_requests_are_usage_errors(folders, tmp_path, arguments, words):
    named = {"REAL": folders[0], "ANON": folders[1], "PHOTO": folders[0] / "eileen.png", "REPORT": tmp_path / "report"}
    result = run(*[named.get(argument, argument) for argument in arguments])
    assert not (tmp_path / "report").exists()
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("asked", "attributes"), [([], "context"), (["--attributes", "any"], "any")])
def test_whom_the_new_person_fits_reaches_the_pipeline(folders, tmp_path, monkeypatch, asked, attributes):
    def answer(pipe, picture, **options):
        seen.append((options["attributes"], options["level"]))
        raise NoFaceFoundError("nobody")

    seen = []
    monkeypatch.setattr(DiffDeIDPipeline, "__call__", answer)
    monkeypatch.setattr(cli, "load", lambda *_: tiny_pipeline())
    run("--method", "diffdeid", "--data", folders[0], "--report", tmp_path, "--level", 4, *asked)
    assert seen == [(attributes, 4)]


@pytest.mark.parametrize("asked", [["--attributes", "own"]])
def test_other_words_for_whom_the_new_person_fits_are_usage_errors(folders, asked):
    assert run("--method", "diffdeid", "--data", folders[0], *asked).exit_code == 2


def test_folders_that_do_not_fit_are_one_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(folders[0], tmp_path / "empty")
    assert result.exit_code == 1
    assert "holds no picture" in result.output and "Traceback" not in result.output


def test_an_unknown_method_is_one_line(folders):
    result = run("--method", "pixelate", "--data", folders[0])
    assert result.exit_code == 1 and "pixelate" in result.output
