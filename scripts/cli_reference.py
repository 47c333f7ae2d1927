"""A hook of mkdocs: replaces the line `<!-- commands -->` of a page by the `--help` of every command of `diffdeid`."""

from collections.abc import Iterator

import typer

from diffdeid.cli import app


def commands(command, name: str = "diffdeid") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Names and commands, groups before their members."""
    yield name, command
    for child in getattr(command, "commands", {}).values():
        yield from commands(child, f"{name} {child.name}")


def describe(name: str, command) -> str:
    """A section with the help of one command."""
    command.rich_markup_mode = None  # plain text
    return f"## {name}\n\n```text\n{command.get_help(typer.Context(command, info_name=name))}\n```"


def on_page_markdown(markdown: str, **_) -> str:
    sections = (describe(name, command) for name, command in commands(typer.main.get_command(app)))
    return markdown.replace("<!-- commands -->", "\n\n".join(sections))
