"""The `diffdeid` command. Heavy imports wait inside the commands, so that `--help` answers at once.

Exit codes: 0 all done, 1 some inputs failed, 2 wrong usage, 3 an input had no face.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffdeid import __version__
from diffdeid.errors import AssetNotFoundError, ConfigurationError, DiffDeIDError, NoFaceFoundError

app = typer.Typer(help="De-identify the faces in pictures.", no_args_is_help=True, pretty_exceptions_enable=False)
data = typer.Typer(help="Training data.", no_args_is_help=True)
train = typer.Typer(help="Train the networks.", no_args_is_help=True)
convert = typer.Typer(help="Bring your own, licence-restricted models.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(convert, name="convert")

DEFAULT_MODEL = str(Path(__file__).parents[1] / "weights" / "diffdeid")  # beside the package, in a clone
DEFAULT_EVALUATORS = Path(__file__).parents[1] / "weights" / "evaluators"
Model = Annotated[str, typer.Option(help="Folder or Hub id of the weights.")]
FAST_STEPS = 2
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same result. Default: fresh randomness.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute.")]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Precision of the denoiser. Default: bfloat16 on CPUs that have units for it, else float32."),
]
Reconstruction = Annotated[
    Literal["fit", "network"], typer.Option(help="How the 3D head is found: least squares, or the reconstructor network.")
]
VIDEOS = "Videos"  # a panel of the help
Level = Annotated[int, typer.Option(min=1, max=10, help="Least distance of the new identity from the old one.")]
Attributes = Annotated[
    Literal["context", "any", "source"],
    typer.Option(help="The new person fits hair and body, is anybody, or has the face's sex, age, descent, beard and smile."),
]
Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A JSON file, see docs/training.md.")]


def _refuse_existing(folder: Path) -> Path:
    if folder.exists():
        raise typer.BadParameter(f"`{folder}` exists. Choose a new folder.")
    return folder


NewFolder = Annotated[Path, typer.Argument(callback=_refuse_existing, help="The folder to write.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"diffdeid {__version__}")
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False) -> None:
    pass


@app.command()
def anonymize(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Pictures, videos, folders, glob patterns; or `cam`, to see the camera.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder, or a file for one input. Default: next to the input.")
    ] = None,
    level: Level = 7,
    candidates: Annotated[int, typer.Option(min=1, help="Outputs to make of each input, with different identities.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 8,
    fast: Annotated[bool, typer.Option("--fast", help="2 steps: smoother faces in less than half of the time.")] = False,
    seed: Seed = None,
    device: Device = "auto",
    dtype: DType = "auto",
    keep_mouth: Annotated[bool, typer.Option(help="Keep the pixels of the mouth.")] = False,
    attributes: Attributes = "context",
    fallback: Annotated[
        Literal["solid", "mosaic", "blur"], typer.Option(help="Covers a face that could not be de-identified.")
    ] = "solid",
    on_no_face: Annotated[
        Literal["error", "skip", "copy"], typer.Option(help="Picture without a face: fail, write nothing, or write its pixels.")
    ] = "error",
    min_face: Annotated[int, typer.Option(min=0, metavar="PX", help="Cover faces smaller than this.")] = 0,
    reconstruction: Reconstruction = "fit",
    start: Annotated[float | None, typer.Option(min=0, help="Second to begin at.", rich_help_panel=VIDEOS)] = None,
    end: Annotated[float | None, typer.Option(min=0, help="Second to end at.", rich_help_panel=VIDEOS)] = None,
    audio: Annotated[
        Literal["drop", "keep"], typer.Option(help="Whether to copy the sound. Voices tell who speaks.", rich_help_panel=VIDEOS)
    ] = "drop",
    on_miss: Annotated[
        Literal["interpolate", "cover", "error"],
        typer.Option(help="A face lost for a moment: render it in between, cover it, or give up.", rich_help_panel=VIDEOS),
    ] = "interpolate",
    follow_light: Annotated[
        bool, typer.Option(help="Estimate the light in every frame, for light that changes.", rich_help_panel=VIDEOS)
    ] = False,
    codec: Annotated[
        str | None, typer.Option(help="FFmpeg's name of an encoder. Default: H.264, in WebM VP9.", rich_help_panel=VIDEOS)
    ] = None,
    crf: Annotated[int, typer.Option(min=0, max=63, help="Quality: lower is better and larger.", rich_help_panel=VIDEOS)] = 18,
    preset: Annotated[
        str | None, typer.Option(help="FFmpeg's trade of time for size, as `slow`.", rich_help_panel=VIDEOS)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep finished parts when interrupted, and go on from them.", rich_help_panel=VIDEOS),
    ] = False,
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

    if end is not None and end <= (start or 0):
        raise typer.BadParameter(f"--end must lie behind --start, got {start or 0:g} and {end:g}.")
    try:
        jobs = [] if inputs == ["cam"] else batch.plan(inputs, output, candidates)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if debug:
        logging.basicConfig()
        logging.getLogger("diffdeid").setLevel(logging.DEBUG)
    with _errors_in_one_line(debug):
        pipe = _load(model, device, dtype, reconstruction)
    options = {
        "level": level,
        "num_inference_steps": FAST_STEPS if fast else steps,
        "keep_mouth": keep_mouth,
        "attributes": attributes,
        "fallback": fallback,
        "min_face": min_face,
        "reconstruction": reconstruction,
    }
    video_options = options | {"on_miss": on_miss, "follow_light": follow_light}
    if inputs == ["cam"]:
        from diffdeid.camera import show_camera

        with _errors_in_one_line(debug):
            show_camera(_for_videos(pipe), **video_options)
        return
    video_options |= {"start": start, "end": end, "audio": audio, "codec": codec, "crf": crf, "preset": preset, "resume": resume}
    statuses = set()
    for job in tqdm(jobs, unit="file", file=sys.stderr, disable=None):
        tool = (_for_videos(pipe), video_options) if batch.is_video(job.source) else (pipe, options)
        for record in batch.run(tool[0], job, on_no_face, overwrite, seed, **tool[1]):
            statuses.add(record["status"])
            failed = record["error"] is not None
            line = json.dumps(record) if as_json else _sentence(record)
            tqdm.write(line, file=sys.stderr if failed and not as_json else sys.stdout)
    if "error" in statuses:
        raise typer.Exit(1)
    if "no_face" in statuses and on_no_face == "error":
        raise typer.Exit(3)


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
    with _errors_in_one_line():
        sampler = _load(model, device, "float32").identity_sampler
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
    reconstruction: Reconstruction = "fit",
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
) -> None:
    """Draw the 3D heads fitted to a photo, for developers (shows the face: not de-identified).

    Panels: crop, fit over the crop, fit, the same with another identity, fit from the side.
    """
    with _errors_in_one_line():
        from diffdeid.visualization import reconstruct_photo

        pipe = _load(model, "cpu", "float32", reconstruction)
        written = reconstruct_photo(pipe, photo, output, mesh, reconstruction, seed, overwrite)
        typer.echo(f"{photo} -> {', '.join(map(str, written))}")


@app.command()
def evaluate(
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
    level: Level = 7,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the first picture; the next has the next.")] = 0,
    keep_mouth: Annotated[bool, typer.Option(help="Keep the pixels of the mouth.")] = False,
    attributes: Attributes = "context",
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
    evaluators: Annotated[Path, typer.Option(help="Folder of the networks that judge.")] = DEFAULT_EVALUATORS,
) -> None:
    """Say in numbers what de-identified pictures still give away and what they keep.

    `diffdeid evaluate REAL ANON` compares two folders (pictures of the same names) or two videos; with --method and --data the
    pictures are de-identified first. The report shows the originals: do not publish it. An interrupted run with --report goes on.
    """
    with _errors_in_one_line():
        try:
            from diffdeid.evaluation import run
        except ModuleNotFoundError as error:
            raise ConfigurationError(f'`{error.name}` is missing. Run `pip install "diffdeid[evaluate]"`.') from error

        options = {"level": level, "num_inference_steps": steps, "keep_mouth": keep_mouth, "attributes": attributes}
        judges = run.judges(model, evaluators, recogniser or (), inception)
        if methods := (method or ()):
            if data is None or real is not None:
                raise typer.BadParameter("--method takes its originals from --data, and no REAL and ANON.")
            evaluations = run.evaluate_methods(
                methods, data, _load(model, device, "float32"), judges, identities, boxes, report, seed, attacks, **options
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
    for good, finding in examine(model, lambda: _load(model, device, "float32", "network")):
        typer.echo(f"{'ok ' if good else 'BAD'} {finding}")
        healthy &= good
    if not healthy:
        raise typer.Exit(1)


@data.command()
def prepare(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Photos or face crops.")],
    out: Annotated[Path, typer.Argument(help="The store to write or to complete.")],
    ready_crops: Annotated[bool, typer.Option("--ready-crops", help="Each picture is one aligned face.")] = False,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Turn a folder of photos into a store of face crops with everything that training needs."""
    from diffdeid.training.prepare import prepare

    with _errors_in_one_line():
        prepare(folder, out, model, ready_crops)


@data.command()
def exchange(
    store: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A store that `prepare` wrote.")],
    validation_names: Annotated[Path | None, typer.Option(exists=True, help="Held-out faces, one name a line.")] = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Add every photo of a store once more, to be painted as another person of it (for the geometry loss)."""
    from diffdeid.training.exchange import exchange_people

    with _errors_in_one_line():
        exchange_people(store, validation_names, model)


@convert.command()
def bfm(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="BFM_model_front.mat")],
    out: NewFolder,
    face_analyser: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder with FaceMesh, which places the landmarks.")
    ] = Path(DEFAULT_MODEL, "face_analyser"),
) -> None:
    """Turn the Basel Face Model, as Deep3DFaceRecon prepares it, into a `morphable_model` folder."""
    from diffdeid.conversion.bfm import convert_bfm

    with _errors_in_one_line():
        convert_bfm(source, out, face_analyser)


@convert.command()
def d3dfr(
    source: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="epoch_20.pth")],
    out: NewFolder,
    morphable_model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="What `convert bfm` wrote.")],
) -> None:
    """Turn a network of Deep3DFaceRecon into a `reconstructor` folder."""
    from diffdeid.conversion.d3dfr import convert_d3dfr

    with _errors_in_one_line():
        convert_d3dfr(source, out, morphable_model)


@train.command()
def lds(config: Config) -> None:
    """Train the identity sampler."""
    from diffdeid.training.train_lds import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with _errors_in_one_line():
        train(config)


@train.command()
def diffdeid(config: Config) -> None:
    """Train the de-identification network."""
    from diffdeid.training.loop import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with _errors_in_one_line():
        train(config)


@train.command()
def reconstructor(config: Config) -> None:
    """Train the network that reconstructs faces."""
    from diffdeid.training.train_reconstructor import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with _errors_in_one_line():
        train(config)


def _load(model: str, device: str, dtype: str, reconstruction: Literal["fit", "network"] = "fit") -> Any:
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


def _for_videos(pipe: Any) -> Any:
    """The video pipeline on the same networks, with a bar that counts frames."""
    from diffdeid import DiffDeIDVideoPipeline

    pipe = DiffDeIDVideoPipeline.sharing(pipe)
    pipe.set_progress_bar_config(unit="frame", file=sys.stderr, disable=None, leave=False)
    return pipe


def _sentence(record: dict[str, Any]) -> str:
    if record["error"]:
        return f"{record['input']}: {record['error']}"
    methods = [face["method"] for face in record["faces"]]
    counts = ", ".join(f"{methods.count(method)} {method}" for method in sorted(set(methods)))
    return f"{record['input']} -> {record['output'] or 'nothing written'} ({counts or 'no face'})"


@contextmanager
def _errors_in_one_line(debug: bool = False) -> Iterator[None]:
    try:
        yield
    except (DiffDeIDError, OSError, ValueError) as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3 if isinstance(error, NoFaceFoundError) else 1) from error
