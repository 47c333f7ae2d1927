"""`diffdeid convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffdeid.command_line import DEFAULT_MODEL, NewFolder, errors_in_one_line

convert = typer.Typer(help="Convert models that you brought, and that may not be passed on.", no_args_is_help=True)


@convert.command()
def bfm(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="BFM_model_front.mat")],
    out: NewFolder,
    face_analyser: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="The folder of the face analyser, whose mesh places the landmarks.",
            show_default="that of the weights that come with the package",
        ),
    ] = Path(DEFAULT_MODEL, "face_analyser"),
) -> None:
    """Turn the Basel Face Model, as Deep3DFaceRecon prepares it, into a `morphable_model` folder."""
    from diffdeid.conversion.bfm import convert_bfm

    with errors_in_one_line():
        convert_bfm(source, out, face_analyser)


@convert.command()
def d3dfr(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="epoch_20.pth")],
    out: NewFolder,
    morphable_model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder that `convert bfm` wrote.")],
) -> None:
    """Turn a network of Deep3DFaceRecon into a `reconstructor` folder."""
    from diffdeid.conversion.d3dfr import convert_d3dfr

    with errors_in_one_line():
        convert_d3dfr(source, out, morphable_model)
