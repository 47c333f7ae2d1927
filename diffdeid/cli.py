"""The `diffdeid` command. Heavy imports wait inside the commands, so that `--help` answers at once.

Exit codes: 0 all done, 1 some inputs failed, 2 wrong usage, 3 an input had no face.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffdeid import __version__
from diffdeid.command_line import (
    DEFAULT_EVALUATORS,
    DEFAULT_MODEL,
    Device,
    DType,
    Model,
    Seed,
    errors_in_one_line,
    load,
    with_choices,
)
from diffdeid.conversion.commands import convert
from diffdeid.errors import ConfigurationError
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions
from diffdeid.training.commands import data, train

HOW = DeidentifyOptions.__dataclass_fields__["reconstruction"].metadata["help"]

app = typer.Typer(help="De-identify the faces in pictures.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(convert, name="convert")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"diffdeid {__version__}")
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False) -> None:
    pass


@app.command()
@with_choices(options=VideoOptions, files=FileOptions)
def anonymize(
    context: typer.Context,
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Pictures, videos, folders, glob patterns; or `cam`, to see the camera.")
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder, or a file for one input. Default: next to the input.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Outputs to make of each input, with different identities.")] = 1,
    options: VideoOptions,
    files: FileOptions,
    faces: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="The faces of pictures, listed by `detect --json`."),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: DType = "auto",
    on_no_face: Annotated[
        Literal["error", "skip", "copy"], typer.Option(help="Picture without a face: fail, write nothing, or write its pixels.")
    ] = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each output.")] = False,
    model: Model = DEFAULT_MODEL,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write de-identified copies, `<stem>_anonymized<suffix>`, without metadata. Inputs are never changed.

    Videos become `<stem>_anonymized.mp4` unless --output names another file. Folders are searched through and mirrored under
    --output; hidden files and earlier outputs in them are left out.
    """
    from tqdm import tqdm

    from diffdeid import batch

    camera = inputs == ["cam"]
    try:
        jobs = [] if camera else batch.plan(inputs, output, candidates)
        known = _known_faces(faces, [job.source for job in jobs])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _refuse_what_has_no_effect(context, camera, any(batch.is_video(job.source) for job in jobs))
    if debug:
        logging.basicConfig()
        logging.getLogger("diffdeid").setLevel(logging.DEBUG)
    with errors_in_one_line(debug):
        pipe = load(model, device, dtype, options.reconstruction)
    if camera:
        from diffdeid.camera import show_camera

        with errors_in_one_line(debug):
            show_camera(_for_videos(pipe), options, seed)
        return

    def pipe_of(file: Path) -> Any:
        return _for_videos(pipe) if batch.is_video(file) else pipe

    statuses, done = set(), batch.run(pipe_of, jobs, options, files, on_no_face, overwrite, seed, known)
    for records in tqdm(done, total=len(jobs), unit="file", file=sys.stderr, disable=None):
        for record in records:
            statuses.add(record["status"])
            failed = record["error"] is not None
            line = json.dumps(record) if as_json else _sentence(record)
            tqdm.write(line, file=sys.stderr if failed and not as_json else sys.stdout)
    if "error" in statuses:
        raise typer.Exit(1)
    if "no_face" in statuses and on_no_face == "error":
        raise typer.Exit(3)


def _known_faces(path: Path | None, sources: list[Path]) -> dict[Path, list]:
    """What a list says of some of the sources, and of nothing else."""
    if path is None:
        return {}
    from diffdeid.batch import is_video
    from diffdeid.face_lists import read_face_list

    listed = read_face_list(path)
    pictures = {source.resolve() for source in sources if not is_video(source)}
    if not pictures:
        raise ValueError("`--faces` would have no effect, since no input is a picture.")
    if others := [file for file in listed if file not in pictures]:
        raise ValueError(f"`{path}` lists faces of `{others[0]}`, which is none of the pictures that are to be de-identified.")
    return listed


def _refuse_what_has_no_effect(context: typer.Context, camera: bool, videos: bool) -> None:
    """Raise for options that were given and could not be honoured."""
    given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
    of_files = {"output", "candidates", "faces", "on_no_face", "overwrite", "as_json", *FileOptions.names()}
    of_videos = {*FileOptions.names(), *VideoOptions.names()} - {*DeidentifyOptions.names()}
    useless = given & (of_files if camera else set() if videos else of_videos)
    if useless:
        names = ", ".join(sorted(f"--{name.removeprefix('as_').replace('_', '-')}" for name in useless))
        what = "the camera, whose frames are shown and not written" if camera else "pictures, and no input is a video"
        raise typer.BadParameter(f"{names} would have no effect on {what}.")


@app.command()
def detect(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Pictures, folders, glob patterns.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="Folder for drawings of the faces: not de-identified.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.02, max=1, help=DeidentifyOptions.__dataclass_fields__["threshold"].metadata["help"])
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each picture.")] = False,
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing drawings.")] = False,
) -> None:
    """List the faces of pictures, and change nothing. What --json prints can be edited and given to `anonymize --faces`."""
    from diffdeid import batch

    try:
        found = batch.find(inputs)
        drawings = {file: output and output / relative.with_name(f"{file.stem}_faces{file.suffix}") for file, relative in found}
        batch.refuse_collisions({file: [drawing] if drawing else [] for file, drawing in drawings.items()})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if videos := [file for file in drawings if batch.is_video(file)]:
        raise typer.BadParameter(f"`{videos[0]}` is a video. `detect` lists the faces of pictures.")
    with errors_in_one_line():
        from diffdeid.face_lists import list_faces

        pipe = load(model, device, "float32")
    failed = False
    for record in list_faces(pipe, drawings, threshold, overwrite):
        failed |= record["error"] is not None
        typer.echo(json.dumps(record) if as_json else _listing(record), err=bool(record["error"]) and not as_json)
    if failed:
        raise typer.Exit(1)


@app.command()
def sample_identity(
    count: Annotated[int, typer.Option(min=1, help="Identities to sample.")] = 1,
    seed: Seed = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.safetensors", help="Default: JSON lines on stdout.")
    ] = None,
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
) -> None:
    """Sample identities of nobody: recogniser embeddings and head shapes."""
    with errors_in_one_line():
        sampler = load(model, device, "float32").identity_sampler
        import torch
        from safetensors.torch import save_file

        generator = None if seed is None else torch.Generator().manual_seed(seed)
        sampled = sampler(num_identities=count, generator=generator)
        if output is not None:
            save_file({"identity": sampled.identity.cpu(), "shape": sampled.shape.cpu()}, output)
            return
        for identity, shape in zip(sampled.identity.tolist(), sampled.shape.tolist(), strict=True):
            typer.echo(json.dumps({"identity": identity, "shape": shape}))


@app.command()
def reconstruct(
    photo: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write, one row for each face.")],
    mesh: Annotated[
        Path | None, typer.Option(metavar="FILE.obj|FILE.ply", help="Also write the heads, with vertex colours, in decimetres.")
    ] = None,
    reconstruction: Annotated[Literal["fit", "network"], typer.Option(help=HOW)] = DeidentifyOptions.reconstruction,
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
) -> None:
    """Draw the 3D heads fitted to a photo, for developers (shows the face: not de-identified).

    Panels: crop, fit over the crop, fit, the same with another identity, fit from the side.
    """
    with errors_in_one_line():
        from diffdeid.visualization import reconstruct_photo

        pipe = load(model, "cpu", "float32", reconstruction)
        written = reconstruct_photo(pipe, photo, output, mesh, reconstruction, seed, overwrite)
        typer.echo(f"{photo} -> {', '.join(map(str, written))}")


@app.command()
@with_choices(options=DeidentifyOptions)
def evaluate(
    *,
    real: Annotated[Path | None, typer.Argument(exists=True, metavar="REAL", help="Originals: a folder, or a video.")] = None,
    anon: Annotated[Path | None, typer.Argument(exists=True, metavar="ANON", help="The same, de-identified.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Run this first, on --data (or `all`; may be repeated).")] = None,
    data: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of originals for --method.")] = None,
    identities: Annotated[
        str | None, typer.Option(help="Who is who: `folders`, `names` (up to the last _), or a CSV file: picture,person.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Annotated faces, a CSV file: picture,x0,y0,x1,y1.")
    ] = None,
    recogniser: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A further one, of ArcFace's kind, as ONNX.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="TorchScript Inception-V3, for FID and KID as published.")
    ] = None,
    attacks: Annotated[bool, typer.Option("--attacks", help="Also attack the results of our method (minutes).")] = False,
    report: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for an HTML report, a CSV of all pictures, and the results.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    options: DeidentifyOptions,
    seed: Annotated[int, typer.Option(help="Of the first picture; the next has the next.")] = 0,
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
    evaluators: Annotated[Path, typer.Option(help="Folder of the networks that judge.")] = DEFAULT_EVALUATORS,
) -> None:
    """Say in numbers what de-identified pictures still give away and what they keep.

    `diffdeid evaluate REAL ANON` compares two folders (pictures of the same names) or two videos; with --method and --data the
    pictures are de-identified first. The report shows the originals: do not publish it. An interrupted run with --report goes on.
    """
    with errors_in_one_line():
        try:
            from diffdeid.evaluation import run
        except ModuleNotFoundError as error:
            raise ConfigurationError(f'`{error.name}` is missing. Run `pip install "diffdeid[evaluate]"`.') from error

        judges = run.judges(model, evaluators, recogniser or (), inception)
        if methods := (method or ()):
            if data is None or real is not None:
                raise typer.BadParameter("--method takes its originals from --data, and no REAL and ANON.")
            evaluations = run.evaluate_methods(
                methods,
                data,
                load(model, device, "float32", options.reconstruction),
                judges,
                identities,
                boxes,
                report,
                seed,
                attacks,
                options,
            )
        elif anon is None or data is not None or attacks:
            raise typer.BadParameter("Name two folders or two videos, REAL and ANON, or use --method with --data.")
        else:
            evaluations = [run.evaluate_pair(real, anon, judges, identities, boxes, report)]
        typer.echo(run.publish(evaluations, report, as_json))


@app.command()
def doctor(device: Device = "auto", model: Model = DEFAULT_MODEL) -> None:
    """Check versions, devices and weights, and time one face. Exits with 1 if something is wrong."""
    from diffdeid.doctor import examine

    healthy = True
    for good, finding in examine(model, lambda: load(model, device, "float32", "network")):
        typer.echo(f"{'ok ' if good else 'BAD'} {finding}")
        healthy &= good
    if not healthy:
        raise typer.Exit(1)


def _for_videos(pipe: Any) -> Any:
    """The video pipeline on the same networks, with a bar that counts frames."""
    from diffdeid import DiffDeIDVideoPipeline

    pipe = DiffDeIDVideoPipeline.sharing(pipe)
    pipe.set_progress_bar_config(unit="frame", file=sys.stderr, disable=None, leave=False)
    return pipe


def _listing(record: dict[str, Any]) -> str:
    if record["error"]:
        return f"{record['input']}: {record['error']}"
    count = len(record["faces"])
    lines = [f"{record['input']}: {count} face{'s' * (count != 1)}"]
    for number, face in enumerate(record["faces"], start=1):
        fate = f", would be covered: {face['covered']}" if face["covered"] else ""
        lines.append(f"  {number}: {' '.join(f'{side:.0f}' for side in face['box'])}, score {face['score']:.2f}{fate}")
    return "\n".join(lines)


def _sentence(record: dict[str, Any]) -> str:
    if record["error"]:
        return f"{record['input']}: {record['error']}"
    methods = [face["method"] for face in record["faces"]]
    counts = ", ".join(f"{methods.count(method)} {method}" for method in sorted(set(methods)))
    return f"{record['input']} -> {record['output'] or 'nothing written'} ({counts or 'no face'})"
