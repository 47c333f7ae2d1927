"""A hook of mkdocs: the line `<!-- commands -->` of a page becomes what `--help` says of every command of `diffdeid`."""

from collections.abc import Iterator
from pathlib import Path

import typer

from diffdeid.cli import app

ROOT = Path(__file__).parents[1]


def commands(command, name: str = "diffdeid") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Names and commands, the groups before what is in them."""
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from commands(child, f"{name} {child.name}")


def describe(name: str, command) -> str:
    """A section with the help of one command."""
    command.rich_markup_mode = None  # plain text
    for param in command.params:
        if param.default and Path(str(param.default)).is_relative_to(ROOT):
            param.default = str(Path(param.default).relative_to(ROOT))  # as in a clone, not where this one lies
    return f"## {name}\n\n```text\n{command.get_help(typer.Context(command, info_name=name))}\n```"


def on_page_markdown(markdown: str, **_) -> str:
    sections = (describe(name, command) for name, command in commands(typer.main.get_command(app)))
    return markdown.replace("<!-- commands -->", "\n\n".join(sections))
