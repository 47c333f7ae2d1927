"""The `diffdeid` command. Heavy imports wait inside the commands, so that `--help` answers at once.

Exit codes: 0 all done, 1 some inputs failed, 2 wrong usage, 3 an input had no face.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffdeid import __version__
from diffdeid.command_line import (
    DEFAULT_EVALUATORS,
    DEFAULT_MODEL,
    AsJson,
    Candidates,
    Debug,
    Device,
    DType,
    Existing,
    ExistingOfMany,
    FaceList,
    Inputs,
    Keep,
    ManifestFile,
    Model,
    Only,
    OnNoFace,
    Output,
    Seed,
    Shard,
    Verify,
    errors_in_one_line,
    for_videos,
    load,
    with_choices,
)
from diffdeid.conversion.commands import convert
from diffdeid.errors import ConfigurationError
from diffdeid.io.manifest import Manifest
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions
from diffdeid.training.commands import data, train

HOW = DeidentifyOptions.__dataclass_fields__["reconstruction"].metadata["help"]

app = typer.Typer(help="De-identify the faces in photos and videos.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(convert, name="convert")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"diffdeid {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@with_choices(options=VideoOptions, files=FileOptions)
def anonymize(
    context: typer.Context,
    inputs: Inputs,
    *,
    output: Output = None,
    candidates: Candidates = 1,
    options: VideoOptions,
    files: FileOptions,
    faces: FaceList = None,
    keep: Keep = None,
    only: Only = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: DType = "auto",
    on_no_face: OnNoFace = "error",
    existing: ExistingOfMany = "error",
    shard: Shard = None,
    manifest: ManifestFile = None,
    verify: Verify = True,
    as_json: AsJson = False,
    model: Model = DEFAULT_MODEL,
    debug: Debug = False,
) -> None:
    """Write de-identified copies of pictures and videos, without metadata. The inputs are never changed.

    A copy is named `<stem>_anonymized<suffix>`, and that of a video `<stem>_anonymized.mp4`, unless --output names a file.
    A folder is searched with all folders in it, and --output gets the same folders. Hidden files and earlier outputs are
    left out.
    """
    from diffdeid import batch, planning

    camera = inputs == ["cam"]
    _refuse_contradictions(faces, keep, only)
    jobs, known = ([], {}) if camera else _plan(inputs, output, candidates, faces, files)
    _refuse_what_has_no_effect(context, camera, any(planning.is_video(job.source) for job in jobs))
    if debug:
        logging.basicConfig()
        logging.getLogger("diffdeid").setLevel(logging.DEBUG)
    with errors_in_one_line(debug):
        pipe = load(model, device, dtype, options.reconstruction)
        consent = _consent(pipe, keep, only)
        if camera:
            from diffdeid.camera import show_camera

            show_camera(for_videos(pipe), options, seed)
            return
        jobs = planning.shard(jobs, *shard) if shard else jobs
        finished = manifest and Manifest(manifest, {"seed": seed, "engine": pipe.engine.digest()})
        how = batch.How(options, files, on_no_face, existing, seed, verify, consent)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # of schedulers: as Ctrl-C, so that no copy of a source stays

        def pipe_of(file: Path) -> Any:
            return for_videos(pipe) if planning.is_video(file) else pipe

        done = batch.run(pipe_of, jobs, how, known, finished, pipe.engine.mixed_batch_size)
        _tell(done, len(jobs), on_no_face, as_json)


@app.command()
@with_choices(options=VideoOptions, files=FileOptions)
def ray(
    context: typer.Context,
    inputs: Inputs,
    *,
    output: Output = None,
    candidates: Candidates = 1,
    options: VideoOptions,
    files: FileOptions,
    faces: FaceList = None,
    keep: Keep = None,
    only: Only = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: DType = "auto",
    on_no_face: OnNoFace = "error",
    existing: ExistingOfMany = "error",
    shard: Shard = None,
    manifest: ManifestFile = None,
    verify: Verify = True,
    as_json: AsJson = False,
    model: Model = DEFAULT_MODEL,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="How many processes hold the networks. Default: one for each GPU, else for each CPU."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of the cluster. Default: RAY_ADDRESS, else the cluster on this machine, else a new one.")
    ] = None,
) -> None:
    """Do what `anonymize` does, on a Ray cluster. All nodes must see files and weights under the same paths or URLs.

    When a worker dies, its files are done again. With the same seed, the results are those of `anonymize`.
    """
    from diffdeid import batch, distributed, planning

    _refuse_contradictions(faces, keep, only)
    jobs, known = _plan(inputs, output, candidates, faces, files)
    _refuse_what_has_no_effect(context, False, any(planning.is_video(job.source) for job in jobs))
    with errors_in_one_line():
        jobs = planning.shard(jobs, *shard) if shard else jobs
        pipe = load(model, "cpu", dtype, options.reconstruction) if manifest or keep or only else None
        finished = manifest and Manifest(manifest, {"seed": seed, "engine": pipe.engine.digest()})
        consent = _consent(pipe, keep, only)
        how = batch.How(options, files, on_no_face, existing, seed, verify, consent)
        done = distributed.run_on_ray(jobs, how, (model, device, dtype), known, finished, workers, address)
        _tell(done, len(jobs), on_no_face, as_json)


def _plan(
    inputs: list[str], output: Path | None, candidates: int, faces: Path | None, files: FileOptions
) -> tuple[list, dict[Path, Any]]:
    """What is to be done, and the faces that are known."""
    from diffdeid import planning

    try:
        jobs = planning.plan(inputs, output, candidates)
        if files.resume and (urls := [path for job in jobs for path in job.outputs if not isinstance(path, Path)]):
            raise ValueError(f"--resume keeps parts beside the output, which `{urls[0]}` would not be for. Leave it out.")
        return jobs, _known_faces(faces, [job.source for job in jobs])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _tell(done: Iterable[list[dict[str, Any]]], total: int, on_no_face: str, as_json: bool) -> None:
    """Print what happened to files, while it happens, and exit with the code that says it."""
    from tqdm import tqdm

    statuses, stdout = set(), sys.stdout
    for records in tqdm(done, total=total, unit="file", file=sys.stderr, disable=None):
        for record in records:
            statuses.add(record["status"])
            failed = record["error"] is not None
            line = json.dumps(record) if as_json else _sentence(record)
            tqdm.write(line, file=sys.stderr if failed and not as_json else stdout)
    if "error" in statuses:
        raise typer.Exit(1)
    if "no_face" in statuses and on_no_face == "error":
        raise typer.Exit(3)


def _known_faces(path: Path | None, sources: list[Path]) -> dict[Path, Any]:
    """What a list says of some of the sources, and of nothing else."""
    if path is None:
        return {}
    from diffdeid.face_lists import VideoList, read_face_list
    from diffdeid.planning import is_video

    listed = read_face_list(path)
    if not listed:
        raise ValueError(f"`{path}` lists no file, and would have no effect.")
    inputs = {source.resolve() for source in sources}
    if others := [file for file in listed if file not in inputs]:
        raise ValueError(f"`{path}` lists faces of `{others[0]}`, which is none of the inputs.")
    if wrong := [file for file, one in listed.items() if isinstance(one, VideoList) != is_video(file)]:
        raise ValueError(f"`{path}` lists `{wrong[0]}` as a {'picture' if is_video(wrong[0]) else 'video'}, which it is not.")
    return listed


def _refuse_contradictions(faces: Path | None, keep: Path | None, only: Path | None) -> None:
    given = [name for name, value in (("--faces", faces), ("--keep", keep), ("--only", only)) if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{given[0]} and {given[1]} both say who stays. Choose one.")


def _consent(pipe: Any, keep: Path | None, only: Path | None) -> Any:
    """Who stays as they are, by the photos of a folder; nobody without one."""
    from diffdeid import Consent

    return Consent.read(pipe, keep or only, "keep" if keep else "only") if keep or only else None


def _refuse_what_has_no_effect(context: typer.Context, camera: bool, videos: bool) -> None:
    """Raise for options that were given and could not be honoured."""
    given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}
    of_files = {"output", "candidates", "faces", "keep", "only", "on_no_face", "existing", "shard", "manifest", "verify"}
    of_files |= {"as_json", *FileOptions.names()}
    of_videos = {*FileOptions.names(), *VideoOptions.names()} - {*DeidentifyOptions.names()}
    useless = given & (of_files if camera else set() if videos else of_videos)
    if useless:
        names = ", ".join(sorted(f"--{name.removeprefix('as_').replace('_', '-')}" for name in useless))
        what = "the camera, whose frames are shown and not written" if camera else "pictures, and no input is a video"
        raise typer.BadParameter(f"{names} would have no effect on {what}.")


@app.command()
def detect(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Pictures, videos, folders or glob patterns.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            file_okay=False,
            help="Draw the faces of pictures into this folder. The drawings are not de-identified.",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.02, max=1, help=DeidentifyOptions.__dataclass_fields__["threshold"].metadata["help"])
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of faces: a line with a JSON object for each input.")
    ] = False,
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
    existing: Existing = "error",
) -> None:
    """List the faces of pictures and videos, and change nothing.

    You can correct what --json prints, and give it to `anonymize --faces`. docs/faces.md says how.
    """
    from diffdeid import planning

    try:
        if urls := [name for name in inputs if "://" in name]:
            raise ValueError(f"`{urls[0]}` is a URL, and `detect` reads files of this computer only. Copy it first.")
        found = planning.find(inputs)
        drawings = {file: output and output / relative.with_name(f"{file.stem}_faces{file.suffix}") for file, relative in found}
        planning.refuse_collisions({file: [drawing] if drawing else [] for file, drawing in drawings.items()})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if output and (videos := [file for file in drawings if planning.is_video(file)]):
        raise typer.BadParameter(f"`{videos[0]}` is a video. Leave `--output` out, which draws the faces of pictures.")
    with errors_in_one_line():
        from diffdeid.detection import list_faces

        pipe = load(model, device, "float32")
    failed = False
    for record in list_faces(pipe, drawings, threshold, existing == "replace"):
        failed |= record["error"] is not None
        typer.echo(json.dumps(record) if as_json else _listing(record), err=bool(record["error"]) and not as_json)
    if failed:
        raise typer.Exit(1)


@app.command()
@with_choices(options=VideoOptions)
def review(
    file: Annotated[Path, typer.Argument(metavar="INPUT", exists=True, dir_okay=False, help="A picture or a video.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write. Default: next to the input.")] = None,
    faces: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="The list to correct. Default: <stem>_faces.jsonl, next to the input."),
    ] = None,
    options: VideoOptions,
    seed: Seed = None,
    device: Device = "auto",
    dtype: DType = "auto",
    existing: Existing = "error",
    port: Annotated[int | None, typer.Option(help="The port of the page. Default: a free one.")] = None,
    browser: Annotated[bool, typer.Option(help="Whether to open the page in a browser.")] = True,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Open a page on which you look over the faces of a picture or video, correct them, and write the result.

    A list of faces keeps the corrections, and `anonymize --faces` reads it as well. Only this computer can open the page.
    """
    from diffdeid import planning

    try:
        (job,) = planning.plan([str(file)], output, 1)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with errors_in_one_line():
        try:
            from diffdeid.review_page import open_desk, show
            from diffdeid.serving import ON_CPU
        except ModuleNotFoundError as error:
            raise ConfigurationError(f'`{error.name}` is missing. Run `pip install "diffdeid[app]"`.') from error
        faces = faces or file.with_name(f"{file.stem}_faces.jsonl")
        # in the thread that will render, see `serving.Watch.follow`
        pipe = ON_CPU.submit(load, model, device, dtype, options.reconstruction).result()
        desk = ON_CPU.submit(open_desk, pipe, job.source, faces, job.outputs[0], options, seed, existing == "replace").result()
        show(desk, port, browser)


@app.command()
def sample_identity(
    count: Annotated[int, typer.Option(min=1, help="How many identities to sample.")] = 1,
    seed: Seed = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.safetensors", help="The file to write. Default: print lines of JSON."),
    ] = None,
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
) -> None:
    """Sample people who do not exist. Each is an embedding of the face recogniser and a shape of the head."""
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write, with a row for each face.")],
    mesh: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.obj|FILE.ply", help="Also write the heads to this file, in decimetres and with vertex colours."
        ),
    ] = None,
    reconstruction: Annotated[Literal["fit", "network"], typer.Option(help=HOW)] = DeidentifyOptions.reconstruction,
    seed: Seed = None,
    model: Model = DEFAULT_MODEL,
    existing: Existing = "error",
) -> None:
    """Draw the 3D heads that were fitted to a photo. For developers: the drawing shows the face, and is not de-identified.

    A row shows the crop, the head over the crop, the head alone, the head with another identity, and the head from the side.
    """
    with errors_in_one_line():
        from diffdeid.visualization import reconstruct_photo

        pipe = load(model, "cpu", "float32", reconstruction)
        written = reconstruct_photo(pipe, photo, output, mesh, reconstruction, seed, existing == "replace")
        typer.echo(f"{photo} -> {', '.join(map(str, written))}")


@app.command()
@with_choices(options=DeidentifyOptions)
def evaluate(
    *,
    real: Annotated[Path | None, typer.Argument(exists=True, metavar="REAL", help="The originals: a folder, or a video.")] = None,
    anon: Annotated[
        Path | None,
        typer.Argument(
            exists=True, metavar="ANON", help="The de-identified results of the same names, or the de-identified video."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="De-identify --data by this method first. `all` runs all. May be repeated.")
    ] = None,
    data: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="The folder of originals for --method.")] = None,
    identities: Annotated[
        str | None,
        typer.Option(help="Who is who, by `folders`, by `names` (up to the last _), or by a CSV file: picture,person."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Where faces are, as a CSV file: picture,x0,y0,x1,y1.")
    ] = None,
    recogniser: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="A further recogniser of ArcFace's kind, as an ONNX file. May be repeated."
        ),
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Inception-V3 as TorchScript, which gives FID and KID as published."),
    ] = None,
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Also attack the results of our method. This takes minutes.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="The folder for an HTML report, a CSV file of all pictures, and the results."),
    ] = None,
    export: Annotated[
        Literal["hifd"] | None,
        typer.Option(help="Also write all predictions into --report, as the package `hifd` reads them. They hold embeddings."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    options: DeidentifyOptions,
    seed: Annotated[int, typer.Option(help="The seed of the first picture. The next picture has the next seed.")] = 0,
    device: Device = "auto",
    model: Model = DEFAULT_MODEL,
    evaluators: Annotated[
        Path, typer.Option(help="The folder of the networks that judge.", show_default="weights/evaluators of a clone")
    ] = DEFAULT_EVALUATORS,
) -> None:
    """Measure what de-identified pictures still give away, and what they keep.

    `diffdeid evaluate REAL ANON` compares two folders with pictures of the same names, or two videos. With --method and --data,
    the pictures are de-identified first. The report shows the originals: do not publish it. After an interruption, the same
    command with --report goes on.
    """
    with errors_in_one_line():
        try:
            from diffdeid.evaluation import run
        except ModuleNotFoundError as error:
            raise ConfigurationError(f'`{error.name}` is missing. Run `pip install "diffdeid[evaluate]"`.') from error

        if export and (report is None or (real is not None and real.is_file())):
            raise typer.BadParameter("--export is for pictures, and needs --report.")
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
        typer.echo(run.publish(evaluations, report, as_json, export))


@app.command()
def doctor(device: Device = "auto", model: Model = DEFAULT_MODEL) -> None:
    """Check versions, devices and weights, and measure the time of one face. The exit code is 1 if something is wrong."""
    from diffdeid.doctor import examine

    healthy = True
    parts = "network" if Path(model, "reconstructor").is_dir() else "fit"  # packages come without it
    for good, finding in examine(model, lambda: load(model, device, "float32", parts)):
        typer.echo(f"{'ok ' if good else 'BAD'} {finding}")
        healthy &= good
    if not healthy:
        raise typer.Exit(1)


def _listing(record: dict[str, Any]) -> str:
    """What a list of faces says, for people, doubtful ones first."""
    if record["error"]:
        return f"{record['input']}: {record['error']}"
    kind, entries = ("track", record["tracks"]) if "tracks" in record else ("face", record["faces"])
    lines = [f"{record['input']}: {len(entries)} {kind}{'s' * (len(entries) != 1)}"]
    for entry in sorted(entries, key=lambda entry: not entry["uncertain"]):
        if kind == "track":
            place = f"frames {entry['boxes'][0][0]} to {entry['boxes'][-1][0]}, person {entry['person']}"
            doubts = [f"{doubt['reason']} ({doubt['frames'][0]} to {doubt['frames'][1]})" for doubt in entry["uncertain"]]
        else:
            place, doubts = " ".join(f"{side:.0f}" for side in entry["box"]), entry["uncertain"]
        lines.append(f"  {entry['id']}: {place}, score {entry['score']:.2f}{''.join(f'; {doubt}' for doubt in doubts)}")
    return "\n".join(lines)


def _sentence(record: dict[str, Any]) -> str:
    if record["error"]:
        return f"{record['input']}: {record['error']}"
    if record["status"] == "skipped":
        return f"{record['input']} -> {record['output'] or 'nothing'} (skipped)"
    methods = [face["method"] for face in record["faces"]]
    counts = ", ".join(f"{methods.count(method)} {method}" for method in sorted(set(methods)))
    return f"{record['input']} -> {record['output'] or 'nothing written'} ({counts or 'no face'})"
