"""`diffdeid data` and `diffdeid train`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from diffdeid.command_line import DEFAULT_MODEL, Config, Model, errors_in_one_line

data = typer.Typer(help="Prepare data for training.", no_args_is_help=True)
train = typer.Typer(help="Train the networks.", no_args_is_help=True)


@data.command()
def prepare(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The folder of photos, videos or face crops.")],
    out: Annotated[
        Path, typer.Argument(help="The folder to write the prepared faces to. A run goes on where one before it stopped.")
    ],
    ready_crops: Annotated[
        bool, typer.Option("--ready-crops", help="Each picture is a crop of one upright, centred face.")
    ] = False,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Turn a folder of photos into a store: a folder of face crops with everything that training needs."""
    from diffdeid.training.prepare import prepare

    with errors_in_one_line():
        prepare(folder, out, model, ready_crops)


@data.command()
def exchange(
    store: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A store that `prepare` wrote.")],
    validation_names: Annotated[
        Path | None, typer.Option(exists=True, help="A file with the names of held-out faces, one name a line.")
    ] = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Add each photo of a store once more, with the identity of another person. The geometry loss needs these."""
    from diffdeid.training.exchange import exchange_people

    with errors_in_one_line():
        exchange_people(store, validation_names, model)


@data.command()
def turn(
    store: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A store that `prepare` wrote.")],
    validation_names: Annotated[
        Path | None, typer.Option(exists=True, help="A file with the names of held-out faces, one name a line.")
    ] = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Add photos of a store once more, as heads that are turned to the side, up or down."""
    from diffdeid.training.profiles import turn_photos

    with errors_in_one_line():
        turn_photos(store, validation_names, model)


@data.command()
def soften(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder of photos with large faces.")],
    out: Annotated[Path, typer.Argument(help="The folder to write the pairs to. A run goes on where one before it stopped.")],
    model: Model = DEFAULT_MODEL,
) -> None:
    """Pair large faces of photos with the same faces as the network paints them. The refiner learns from such pairs."""
    from diffdeid.training.refiner_data import soften_photos

    with errors_in_one_line():
        soften_photos(folder, out, model)


@train.command()
def lds(config: Config) -> None:
    """Train the identity sampler."""
    from diffdeid.training.train_lds import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        train(config)


@train.command()
def diffdeid(config: Config) -> None:
    """Train the de-identification network."""
    from diffdeid.training.loop import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        train(config)


@train.command()
def face_parser(config: Config) -> None:
    """Train the network that tells a face from what lies in front of it."""
    from diffdeid.training.train_face_parser import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        train(config)


@train.command()
def reconstructor(config: Config) -> None:
    """Train the network that reconstructs faces."""
    from diffdeid.training.train_reconstructor import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        train(config)


@train.command()
def refiner(config: Config) -> None:
    """Train the network that refines large faces."""
    from diffdeid.training.train_refiner import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line():
        train(config)
