"""The documentation builds, its code runs, and it says what the program does."""

import ast
import html
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import diffdeid
from diffdeid.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\b(?:benchmarks|configs|diffdeid|pipelines|scripts)/[\w./]*\.(?:json|md|py)\b")
of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(command, name: str = "diffdeid") -> dict[str, set[str]]:
    """The options of a command and of those in it, by the words that call them."""
    found = {name: {"--help"}.union(*(param.opts + param.secondary_opts for param in command.params if param.opts[0][0] == "-"))}
    for child in getattr(command, "commands", {}).values():
        found |= commands(child, f"{name} {child.name}")
    return found


COMMANDS = commands(get_command(app))


def calls(text: str) -> Iterator[str]:
    """The calls of `diffdeid` in a page: lines of its fences, and code in its sentences."""
    for _, _, block in FENCE.findall(text):
        yield from (line for line in block.splitlines() if line.startswith("diffdeid "))
    yield from re.findall(r"`(diffdeid [^`]+)`", FENCE.sub("", text))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert site / "index.html" in pages
    for page in pages:
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:https?:)?//[^>]*>", page.read_text()), page


def test_pages_do_not_say_where_they_were_built(site):
    assert not [page for page in site.rglob("*.html") if str(ROOT) in page.read_text()]


def test_every_public_name_is_in_the_reference(site):
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    public = {name: getattr(diffdeid, name) for name in diffdeid.__all__ if name not in ("WEIGHTS", "__version__")}
    missing = [name for name, thing in public.items() if f'id="{thing.__module__}.{name}"' not in reference]
    assert not missing and all(f"diffdeid.{name}" in reference for name in ("WEIGHTS", "__version__"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_the_reference(site, name):
    page = html.unescape(re.sub("<[^>]+>", "", (site / "reference" / "cli.html").read_text()))
    [section] = re.findall(rf"Usage: {name} [\[{{](.*?)(?=Usage: |\Z)", page, re.DOTALL)
    assert not [option for option in COMMANDS[name] if not re.search(rf"{option}\b", section)]


@of_every_page
def test_python_in_a_page_compiles(page):
    for _, language, block in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(block)


@of_every_page
def test_calls_in_a_page_name_commands_and_options_that_exist(page):
    for call in calls(page.read_text()):
        words = shlex.split(call, comments=True)
        name = words.pop(0)
        while words and f"{name} {words[0]}" in COMMANDS:
            name += f" {words.pop(0)}"
        is_group = any(other.startswith(f"{name} ") for other in COMMANDS)
        assert not (is_group and words) or words[0].startswith("-"), f"`{call}`: there is no such command"
        options = {word.split("=")[0] for word in words[: words.index("--") if "--" in words else None] if word[0] == "-"}
        assert options <= COMMANDS[name], f"`{call}`: there is no such option"


def test_links_and_pictures_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", (ROOT / "README.md").read_text())
    assert links
    for path, anchor in links:
        if path == "https://openreview.net/forum?id=Bz9wjvToCS":  # the paper; nothing else lies elsewhere
            continue
        assert (ROOT / path).exists(), path
        headings = re.findall("^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], f"{path}#{anchor}"


def test_files_that_the_readme_and_the_tutorials_name_exist():
    for page in (ROOT / "README.md", *(DOCS / "tutorials").glob("*.md"), DOCS / "training.md"):
        for name in FILE.findall(page.read_text()):
            assert (ROOT / name).is_file(), f"{page}: {name}"


def test_the_report_is_made_of_its_numbers():
    """Run `python scripts/make_report.py` after a change of the numbers, of the note on them or of the words around them."""
    pages = runpy.run_path(str(ROOT / "scripts/make_report.py"))["pages"]
    numbers = json.loads((DOCS / "report/numbers.json").read_text())
    for name, page in pages(numbers).items():
        assert (DOCS / "report" / name).read_text() == page


def test_the_notebook_has_no_outputs_and_runs():
    cells = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    source = "\n".join("".join(cell["source"]) for cell in code)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in conftest.py
    ran = subprocess.run([sys.executable, "-c", source], cwd=DOCS, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "diffusion" in ran.stdout
