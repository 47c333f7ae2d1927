"""Imports point downwards only, as docs/architecture.svg shows, and no default is written twice."""

import ast
import runpy
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from diffdeid.cli import app
from diffdeid.command_line import VIDEOS
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffdeid"
DRAWING = runpy.run_path(str(ROOT / "scripts/draw_architecture.py"))
ROWS = DRAWING["ROWS"]
FLOORS = {part: -number for number, row in enumerate(ROWS) for part in row} | {"__main__": 0}
BESIDE = {*ROWS[0], *ROWS[-1], "__main__"}  # of these, some import their neighbours
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported_parts(path: Path) -> set[str]:
    """The parts of the package (first name after `diffdeid.`) that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), (
            f"{path}: write `from diffdeid…` instead of a relative import"
        )
    return DRAWING["imported_parts"](path) & FLOORS.keys()


def test_no_import_runs_in_a_circle():
    """This includes imports inside functions."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    imported = {}
    for module, path in modules.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {name for node in nodes for alias in node.names for name in (node.module, f"{node.module}.{alias.name}")}
        imported[module] = names & modules.keys() - {module}
    TopologicalSorter(imported).prepare()  # raises `CycleError`


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_parts(path) - {part}:
        beside = FLOORS[other] == FLOORS[part] and {part, other} <= BESIDE
        assert FLOORS[other] < FLOORS[part] or beside, f"{part} (floor {FLOORS[part]}) imports {other} (floor {FLOORS[other]})"
        assert other != "conversion" or part == "cli", "conversion is imported by the command line only"


def test_the_picture_of_the_architecture_is_that_of_the_code():
    assert (ROOT / "docs/architecture.svg").read_text() == DRAWING["draw"](), "run scripts/draw_architecture.py"


def test_the_defaults_of_calls_are_those_of_the_options():
    source = ast.parse((PACKAGE / "pipelines/pipeline_diffdeid.py").read_text())
    (call,) = (node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "__call__")
    written = dict(
        zip([argument.arg for argument in call.args.args][-len(call.args.defaults) :], call.args.defaults, strict=True)
    )
    for name in DeidentifyOptions.names():
        assert ast.unparse(written[name]) == f"DeidentifyOptions.{name}"  # read from there, not written again


def test_the_options_of_the_command_are_the_choices_with_their_defaults_and_help():
    import typer

    params = {param.name: param for param in typer.main.get_command(app).commands["anonymize"].params}
    for entry in (*fields(VideoOptions), *fields(FileOptions)):
        param = params[entry.name]
        assert param.default == entry.default and param.help == entry.metadata["help"]
        assert (param.rich_help_panel == VIDEOS) == (entry.name not in DeidentifyOptions.names())
