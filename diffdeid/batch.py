"""Many files: which inputs are meant, what their outputs are called, and one of them from start to end."""

from __future__ import annotations

import glob
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch

from diffdeid.errors import NoFaceFoundError
from diffdeid.io.images import IMAGE_SUFFIXES, check_writable, read_image, write_image
from diffdeid.io.video_reader import VIDEO_SUFFIXES, VideoReader
from diffdeid.io.video_writer import VideoWriter, check_video_writable
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions

logger = logging.getLogger(__name__)

_EARLIER_OUTPUT = re.compile(r"_anonymized(_\d+)?$")


@dataclass(frozen=True)
class Job:
    """An input file and the files its candidates are written to."""

    source: Path
    outputs: tuple[Path, ...]


def plan(inputs: list[str], output: Path | None, candidates: int) -> list[Job]:
    """Decide what is read and what is written; raise `ValueError` for a request that cannot be carried out as a whole.

    Args:
        inputs: files, folders (searched through, without hidden and earlier output files) and glob patterns.
        output: a folder, in which the folders of the inputs are mirrored, or, for one input, a file. Default: next to the input.
        candidates: outputs per input.
    """
    found: dict[str, tuple[Path, Path]] = {}  # a file named twice is done once
    for name in inputs:
        files = _find(name)
        if not files:
            raise ValueError(f"`{name}` matches no picture or video.")
        for file, relative in files:
            found.setdefault(os.path.abspath(file), (file, relative))

    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    to_one_file = output is not None and output.suffix.lower() in suffixes and not output.is_dir()
    if to_one_file and len(found) > 1:
        raise ValueError(f"`{output}` is one file, but there are {len(found)} inputs. Name a folder.")
    targets = {
        file: output if to_one_file else _target(file, file.parent if output is None else output / relative.parent)
        for file, relative in found.values()
    }
    wanted = Counter(targets.values())
    jobs = []
    for file, target in targets.items():
        if wanted[target] > 1 and target.suffix != file.suffix:  # IMG_1.mov beside IMG_1.mp4
            target = target.with_name(f"{file.name}_anonymized{target.suffix}")
        names = [target.stem] if candidates == 1 else [f"{target.stem}_{number}" for number in range(1, candidates + 1)]
        jobs.append(Job(file, tuple(target.with_name(name + target.suffix) for name in names)))

    sources = {file.resolve() for file, _ in found.values()}
    owners: dict[Path, Path] = {}
    for job in jobs:
        for path in map(Path.resolve, job.outputs):
            if path in sources:
                raise ValueError(f"`{path}` is an input and would be the output of `{job.source}`. Inputs are never written to.")
            if path in owners:
                raise ValueError(f"`{owners[path]}` and `{job.source}` would both be written to `{path}`.")
            owners[path] = job.source
    return jobs


def _target(file: Path, folder: Path) -> Path:
    return folder / f"{file.stem}_anonymized{'.mp4' if is_video(file) else file.suffix}"


def is_video(file: Path) -> bool:
    """Whether a file is read as a video, by its suffix."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def run(
    pipe: Any,
    job: Job,
    options: VideoOptions,
    files: FileOptions,
    on_no_face: Literal["error", "skip", "copy"],
    overwrite: bool,
    seed: int | None,
) -> list[dict[str, Any]]:
    """De-identify one file and say what happened, once per output; an error becomes a record as well.

    Args:
        pipe: a `DiffDeIDPipeline`, for a video a `DiffDeIDVideoPipeline`.
        options, files: what a picture has no use for is left out.
        on_no_face: "error", "skip" (write nothing) or "copy" (write the pixels without metadata).
        seed: starts a generator of this file alone, so that results do not depend on the other files.
    """
    started = time.perf_counter()
    blank = {"input": str(job.source), "output": None, "status": "error", "error": None, "faces": []}
    records = []
    try:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if is_video(job.source):
            made = _process_video(pipe, job, options, files, on_no_face, overwrite, generator)
        else:
            made = _process_picture(pipe, job, options.as_kind(DeidentifyOptions), on_no_face, overwrite, generator)
        for record in made:
            records.append(blank | record)
    except NoFaceFoundError as error:
        records.append(blank | {"status": "no_face", "error": str(error)})
    except Exception as error:  # whatever is wrong with one file must not stop the others
        logger.debug("%s", job.source, exc_info=True)
        records.append(blank | {"error": str(error) or type(error).__name__})
    seconds = round(time.perf_counter() - started, 3)
    return [record | {"seconds": seconds} for record in records]


def _process_picture(
    pipe: Any, job: Job, options: DeidentifyOptions, on_no_face: str, overwrite: bool, generator: torch.Generator | None
) -> Iterator[dict[str, Any]]:
    picture = read_image(job.source)
    for path in job.outputs:
        check_writable(path, picture.alpha is not None, overwrite)
    try:
        output = pipe(picture.image, num_images_per_prompt=len(job.outputs), generator=generator, **asdict(options))
        images, faces = output.images, output.faces
    except NoFaceFoundError:
        if on_no_face == "error":
            raise
        if on_no_face == "skip":
            yield {"status": "no_face"}
            return
        images, faces = [picture.image] * len(job.outputs), [[]] * len(job.outputs)
    for path, image, reports in zip(job.outputs, images, faces, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, image, picture.alpha, picture.icc_profile, overwrite)
        covered = any(report.method != "diffusion" for report in reports)
        status = "no_face" if not reports else "fallback" if covered else "ok"
        yield {"output": str(path), "status": status, "faces": [_describe(report) for report in reports]}


def _describe(report: Any) -> dict[str, Any]:
    return {
        "box": [round(float(value), 1) for value in report.box],
        "method": report.method,
        "level": report.level,
        "identity_distance": None if report.identity_distance is None else round(float(report.identity_distance), 4),
        "attempts": report.attempts,
        "reason": report.reason,
    }


def _process_video(
    pipe: Any,
    job: Job,
    options: VideoOptions,
    files: FileOptions,
    on_no_face: str,
    overwrite: bool,
    generator: torch.Generator | None,
) -> Iterator[dict[str, Any]]:
    for path in job.outputs:
        check_video_writable(path, overwrite)
    for path in job.outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            output = pipe(job.source, path, overwrite=overwrite, generator=generator, **asdict(options), **asdict(files))
        except NoFaceFoundError:
            if on_no_face == "error":
                raise
            if on_no_face == "copy":
                _copy_frames(job.source, path, overwrite, files)
            yield {"status": "no_face", "output": str(path) if on_no_face == "copy" else None}
        else:
            people = [asdict(report) for report in output.people]
            status = "fallback" if any(report.covered for report in output.people) else "ok"
            yield {"output": str(path), "status": status, "faces": people, "frames": output.num_frames, "notes": output.notes}


def _copy_frames(source: Path, path: Path, overwrite: bool, files: FileOptions) -> None:
    """The pictures of a video alone, encoded anew."""
    reader = VideoReader(source, files.start, files.end)
    with VideoWriter(path, reader.rate, reader.sample_aspect_ratio, overwrite=overwrite, **files.encoder) as writer:
        for frame in reader:
            writer.write(frame)


def _find(name: str) -> list[tuple[Path, Path]]:
    """The files that `name` stands for, each with its path relative to the folder that was searched."""
    path = Path(name)
    if path.is_dir():
        files, root = _walk(path), path
    elif os.path.lexists(path):
        return [(path, Path(path.name))]
    else:
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        files = (Path(match) for match in glob.iglob(name, recursive=True) if os.path.isfile(match))
    return [(file, file.relative_to(root)) for file in sorted(files) if _is_input(file, file.relative_to(root))]


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ValueError(f"Cannot search `{error.filename}`: {error.strerror}.") from error

    for parent, _, names in os.walk(folder, onerror=fail):  # does not follow links to folders
        yield from (Path(parent, name) for name in names)


def _is_input(file: Path, relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    known = file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return known and not hidden and not _EARLIER_OUTPUT.search(file.stem)
