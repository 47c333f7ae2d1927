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
from diffdeid.options import DeidentifyOptions, Options

DEFAULT_MODEL, DEFAULT_EVALUATORS = str(WEIGHTS), WEIGHTS.with_name("evaluators")  # the latter in clones only
VIDEOS = "Videos"  # a panel of the help
Model = Annotated[str, typer.Option(help="Folder or Hub id of the weights.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same result. Default: fresh randomness.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute.")]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Precision of the denoiser. Default: bfloat16 on CPUs that have units for it, else float32."),
]
Existing = Annotated[Literal["error", "replace"], typer.Option(help="Outputs that are there: report them, or replace them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file, see docs/training.md.")]


def _refuse_existing(folder: Path) -> Path:
    if folder.exists():
        raise typer.BadParameter(f"`{folder}` exists. Choose a new folder.")
    return folder


NewFolder = Annotated[Path, typer.Argument(callback=_refuse_existing, help="The folder to write.")]


# What the commands that de-identify many files share.
Inputs = Annotated[
    list[str], typer.Argument(metavar="INPUT", help="Pictures, videos, folders, glob patterns; or `cam`, to see the camera.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="A folder, or a file for one input. Default: next to the input.")
]
Candidates = Annotated[int, typer.Option(min=1, help="Outputs to make of each input, with different identities.")]
FaceList = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, metavar="FILE", help="The faces of some inputs, listed by `detect --json`."),
]
Keep = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, metavar="FOLDER", help="Leave these people: a folder of photos for each."),
]
Only = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, metavar="FOLDER", help="De-identify these people alone, and whoever may be one."),
]
OnNoFace = Annotated[
    Literal["error", "skip", "copy"], typer.Option(help="Picture without a face: fail, write nothing, or write its pixels.")
]
ExistingOfMany = Annotated[
    Literal["error", "skip", "replace"],
    typer.Option("--existing", help="Outputs that are there: report them, do not make them again, or replace them."),
]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--manifest", dir_okay=False, metavar="FILE", help="Go on from what this file lists as finished, and add to it."
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Read, search and compare what was written, or leave that out.")
]


def _shard(text: str) -> tuple[int, int]:
    """`I/N` as numbers."""
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, matched.groups()) if matched else (0, 0)
    if not 1 <= number <= count:
        raise typer.BadParameter(f"`{text}` must be I/N, the number of a worker from 1 and of all workers, as 2/8.")
    return number, count


Shard = Annotated[
    tuple | None, typer.Option(parser=_shard, metavar="I/N", help="Do part I of N, by relative path. Default: everything.")
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
