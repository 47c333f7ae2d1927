"""What the commands share: options that come from `options.py`, errors in one line, loading."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from diffdeid.errors import AssetNotFoundError, DiffDeIDError, NoFaceFoundError
from diffdeid.options import DeidentifyOptions, Options

WEIGHTS = Path(__file__).parents[1] / "weights"  # beside the package, in a clone
DEFAULT_MODEL, DEFAULT_EVALUATORS = str(WEIGHTS / "diffdeid"), WEIGHTS / "evaluators"
VIDEOS = "Videos"  # a panel of the help
Model = Annotated[str, typer.Option(help="Folder or Hub id of the weights.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same result. Default: fresh randomness.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute.")]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Precision of the denoiser. Default: bfloat16 on CPUs that have units for it, else float32."),
]
Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file, see docs/training.md.")]


def _refuse_existing(folder: Path) -> Path:
    if folder.exists():
        raise typer.BadParameter(f"`{folder}` exists. Choose a new folder.")
    return folder


NewFolder = Annotated[Path, typer.Argument(callback=_refuse_existing, help="The folder to write.")]


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
    unused = {} if reconstruction == "network" else {"reconstructor": None}  # half of the time that loading takes
    dtypes = precisions(device, None if dtype == "auto" else getattr(torch, dtype))
    pipe = DiffDeIDPipeline.from_pretrained(model, dtype=dtypes, use_safetensors=True, **unused).to(device)
    pipe.set_progress_bar_config(disable=True)
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
