"""What the commands share: options that come from `options.py`, errors in one line, loading."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from diffdeid import WEIGHTS
from diffdeid.errors import AssetNotFoundError, DiffDeIDError, NoFaceFoundError
from diffdeid.io.stores import location
from diffdeid.options import DeidentifyOptions, Options

DEFAULT_MODEL, DEFAULT_EVALUATORS = str(WEIGHTS), WEIGHTS.with_name("evaluators")  # the latter in clones only
VIDEOS = "Videos"  # a panel of the help
Model = Annotated[
    str,
    typer.Option(
        help="The folder of the weights, or their id on the Hub.", show_default="the weights that come with the package"
    ),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same result. Default: every run gives other new people.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute. `auto` takes a GPU where there is one.")
]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="The precision of what paints. `auto` takes bfloat16 where the processor has units for it, else float32."),
]
Existing = Annotated[
    Literal["error", "replace"], typer.Option(help="What to do where an output exists: report an error, or replace it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a line with a JSON object for each output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of each error.")]
Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file as docs/training.md describes it.")]


def _refuse_existing(folder: Path) -> Path:
    if folder.exists():
        raise typer.BadParameter(f"`{folder}` exists. Choose a new folder.")
    return folder


NewFolder = Annotated[Path, typer.Argument(callback=_refuse_existing, help="The folder to write. It must not exist yet.")]


# What the commands that de-identify many files share.
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Pictures, videos, folders, glob patterns or URLs of stores; or `cam`, for the camera."),
]


def _location(name: str) -> Any:
    try:
        return location(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _refuse_url(path: Path | None) -> Path | None:
    if path is not None and re.match(r"\w\w+:/", path.as_posix()):
        raise typer.BadParameter(f"`{path}` seems to be a URL. This file must be on this computer.")
    return path


Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=_location,
        metavar="PATH|URL",
        help="The folder to write to, or the file for one input. Default: next to the input.",
    ),
]
Candidates = Annotated[int, typer.Option(min=1, help="How many results to make of each input, each with other new people.")]
FaceList = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="A list of faces, as `detect --json` prints it and you may have corrected it.",
    ),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        metavar="FOLDER",
        help="Leave these people as they are. FOLDER holds a folder of photos of each.",
    ),
]
Only = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        metavar="FOLDER",
        help="De-identify these people, and whoever may be one of them. FOLDER as for --keep.",
    ),
]
OnNoFace = Annotated[
    Literal["error", "skip", "copy"],
    typer.Option(help="What to do with a file without a face: report an error, skip it, or copy its pixels."),
]
ExistingOfMany = Annotated[
    Literal["error", "skip", "replace"],
    typer.Option("--existing", help="What to do where an output exists: report an error, skip it, or replace it."),
]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        dir_okay=False,
        callback=_refuse_url,
        metavar="FILE",
        help="A file that lists what is finished. A later run goes on from it, and adds to it.",
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Check each file after it was written, or leave the check out.")
]


def _shard(text: str) -> tuple[int, int]:
    """`I/N` as numbers."""
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, matched.groups()) if matched else (0, 0)
    if not 1 <= number <= count:
        raise typer.BadParameter(f"`{text}` must be I/N, the number of a worker from 1 and of all workers, as 2/8.")
    return number, count


Shard = Annotated[
    tuple | None,
    typer.Option(parser=_shard, metavar="I/N", help="Do only part I of N. The relative path of a file decides its part."),
]


def with_choices(**kinds: type[Options]) -> Callable[[Callable], Callable]:
    """Make the choices of option classes options of a command; it gets them whole, as the arguments that are named here."""

    def decorate(command: Callable) -> Callable:
        @wraps(command)
        def run(**given: Any) -> Any:
            chosen = {}
            try:
                for name, kind in kinds.items():
                    chosen[name], given = kind.split(given)
            except ValueError as error:
                raise typer.BadParameter(re.sub(r"`(\w+)`", _flag, str(error))) from error
            return command(**given, **chosen)

        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = [part for entry in own for part in (_parameters(kinds[entry.name]) if entry.name in kinds else [entry])]
        parameters = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in parameters]
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {}
        del run.__wrapped__
        return run

    return decorate


def _flag(argument: re.Match) -> str:
    """What an argument is called on the command line."""
    return f"`--{argument[1].replace('_', '-')}`"


def _parameters(kind: type[Options]) -> list[inspect.Parameter]:
    """The choices of a class as parameters that typer understands."""
    types, parameters = get_type_hints(kind), []
    for entry in fields(kind):
        shown = {"help": entry.metadata["help"], "rich_help_panel": None if entry.name in DeidentifyOptions.names() else VIDEOS}
        if types[entry.name] in (int, float, float | None):
            shown |= {"min": entry.metadata["least"], "max": entry.metadata["most"]}
        flags = [entry.metadata["flag"]] if entry.metadata["flag"] else []
        annotation = Annotated[types[entry.name], typer.Option(*flags, **shown)]
        parameters.append(
            inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=entry.default, annotation=annotation)
        )
    return parameters


def load(model: str, device: str, dtype: str, reconstruction: Literal["fit", "network"] = "fit") -> Any:
    """The picture pipeline of a folder or Hub id."""
    import torch
    from diffusers.utils import logging as diffusers_logging

    from diffdeid import DiffDeIDPipeline
    from diffdeid.pipelines.loading import precisions

    is_hub_id = not model.startswith("weights/") and re.fullmatch(r"\w[\w.-]*/[\w.-]+", model)
    if not Path(model).is_dir() and not is_hub_id:
        raise AssetNotFoundError(f"There are no weights at `{model}`. Pass `--model` with their folder or Hub id.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    diffusers_logging.disable_progress_bar()
    unused = {} if reconstruction == "network" else {"reconstructor": None}  # its weights are a third of all
    dtypes = precisions(device, None if dtype == "auto" else getattr(torch, dtype))
    pipe = DiffDeIDPipeline.from_pretrained(model, dtype=dtypes, use_safetensors=True, **unused).to(device)
    if reconstruction == "network" and pipe.reconstructor is None:
        raise AssetNotFoundError(
            f"`--reconstruction network` needs a folder `reconstructor` in `{model}`: packages come without it. "
            "Pass `--model` with the folder `weights/diffdeid` of a clone, which has it, or leave `--reconstruction` out."
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def for_videos(pipe: Any) -> Any:
    """The video pipeline on the same networks, with a bar that counts frames."""
    from diffdeid import DiffDeIDVideoPipeline

    pipe = DiffDeIDVideoPipeline.sharing(pipe)
    pipe.set_progress_bar_config(unit="frame", file=sys.stderr, disable=None, leave=False)
    return pipe


@contextmanager
def errors_in_one_line(debug: bool = False) -> Iterator[None]:
    """End with exit code 1, or 3 where no face was found, and a line on stderr; with a traceback if `debug`."""
    try:
        yield
    except (DiffDeIDError, OSError, ValueError) as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3 if isinstance(error, NoFaceFoundError) else 1) from error
