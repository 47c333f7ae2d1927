"""Many files: which inputs are meant, what their outputs are called, and each of them from start to end."""

from __future__ import annotations

import glob
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from diffdeid.errors import NoFaceFoundError
from diffdeid.io.images import IMAGE_SUFFIXES, Picture, check_writable, read_image, write_image
from diffdeid.io.video_reader import VIDEO_SUFFIXES, VideoReader
from diffdeid.io.video_writer import VideoWriter, check_video_writable
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions
from diffdeid.structures import Face

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
    found = find(inputs)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    to_one_file = output is not None and output.suffix.lower() in suffixes and not output.is_dir()
    if to_one_file and len(found) > 1:
        raise ValueError(f"`{output}` is one file, but there are {len(found)} inputs. Name a folder.")
    targets = {
        file: output if to_one_file else _target(file, file.parent if output is None else output / relative.parent)
        for file, relative in found
    }
    wanted = Counter(targets.values())
    jobs = []
    for file, target in targets.items():
        if wanted[target] > 1 and target.suffix != file.suffix:  # IMG_1.mov beside IMG_1.mp4
            target = target.with_name(f"{file.name}_anonymized{target.suffix}")
        names = [target.stem] if candidates == 1 else [f"{target.stem}_{number}" for number in range(1, candidates + 1)]
        jobs.append(Job(file, tuple(target.with_name(name + target.suffix) for name in names)))

    refuse_collisions({job.source: job.outputs for job in jobs})
    return jobs


def refuse_collisions(outputs: Mapping[Path, Iterable[Path]]) -> None:
    """Raise `ValueError` where an output of a source is a source itself, or the output of another one."""
    sources = {source.resolve() for source in outputs}
    owners: dict[Path, Path] = {}
    for source, paths in outputs.items():
        for path in map(Path.resolve, paths):
            if path in sources:
                raise ValueError(f"`{path}` is an input and would be the output of `{source}`. Inputs are never written to.")
            if path in owners:
                raise ValueError(f"`{owners[path]}` and `{source}` would both be written to `{path}`.")
            owners[path] = source


def find(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """The files that are meant by files, folders and patterns, each with its path relative to the folder that was searched.

    Raises:
        ValueError: one of the inputs matches nothing.
    """
    found: dict[str, tuple[Path, Path]] = {}  # a file named twice is done once
    for name in inputs:
        files = _find(name)
        if not files:
            raise ValueError(f"`{name}` matches no picture or video.")
        for file, relative in files:
            found.setdefault(os.path.abspath(file), (file, relative))
    return list(found.values())


def _target(file: Path, folder: Path) -> Path:
    return folder / f"{file.stem}_anonymized{'.mp4' if is_video(file) else file.suffix}"


def is_video(file: Path) -> bool:
    """Whether a file is read as a video, by its suffix."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def run(
    pipe_of: Callable[[Path], Any],
    jobs: Sequence[Job],
    options: VideoOptions,
    files: FileOptions,
    on_no_face: Literal["error", "skip", "copy"],
    overwrite: bool,
    seed: int | None,
    known: Mapping[Path, list[Face]] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """De-identify files and say what happened: a list for each, with a record for each output. Errors become records as well.

    While the networks work on a picture, another thread decodes the next one, and a third encodes the one before.

    Args:
        pipe_of: what does a file: a `DiffDeIDPipeline`, for a video a `DiffDeIDVideoPipeline`.
        options, files: what a picture has no use for is left out.
        on_no_face: "error", "skip" (write nothing) or "copy" (write the pixels without metadata).
        seed: starts a generator for each file, so that its results do not depend on the other files.
        known: the faces of pictures, by their resolved paths; these pictures are not searched for others.
    """
    with ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as encoder:
        decoded = (decoder.submit(read_image, job.source) for job in jobs if not is_video(job.source))
        following, waiting = next(decoded, None), None
        for job in jobs:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            task = _Task(job, pipe_of(job.source), on_no_face, overwrite, generator)
            if is_video(job.source):
                task.do_video(options, files)
            else:
                picture, following = following, next(decoded, None)
                faces = (known or {}).get(job.source.resolve())
                task.do_picture(picture, options.as_kind(DeidentifyOptions), faces)
            if waiting is not None:
                yield waiting.result()
            waiting = encoder.submit(task.finish)
        if waiting is not None:
            yield waiting.result()


class _Task:
    """A job on its way. What goes wrong with it becomes a record: it must not stop the others."""

    def __init__(self, job: Job, pipe: Any, on_no_face: str, overwrite: bool, generator: torch.Generator | None):
        self.job, self.pipe, self.generator = job, pipe, generator
        self.on_no_face, self.overwrite = on_no_face, overwrite
        self.started = time.perf_counter()
        self.records: list[dict[str, Any]] = []
        self.picture: Picture | None = None
        self.made: list[tuple[Path, Image.Image, list]] = []  # what is to be written, and the reports of its faces

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except NoFaceFoundError as error:
            self.records.append({"status": "no_face", "error": str(error)})
        except Exception as error:
            logger.debug("%s", self.job.source, exc_info=True)
            self.records.append({"error": str(error) or type(error).__name__})

    def do_picture(self, decoded: Future[Picture], options: DeidentifyOptions, faces: list[Face] | None) -> None:
        with self._noting_errors():
            self.picture = decoded.result()
            outputs, image = self.job.outputs, self.picture.image
            for path in outputs:
                check_writable(path, self.picture.alpha is not None, self.overwrite)
            try:
                candidates = {"num_images_per_prompt": len(outputs), "generator": self.generator}
                output = self.pipe(image, faces=faces, **candidates, **asdict(options))
                self.made = list(zip(outputs, output.images, output.faces, strict=True))
            except NoFaceFoundError:
                if self.on_no_face == "error":
                    raise
                if self.on_no_face == "skip":
                    self.records.append({"status": "no_face"})
                else:
                    self.made = [(path, image, []) for path in outputs]

    def finish(self) -> list[dict[str, Any]]:
        """Write what was made of a picture; give the records."""
        with self._noting_errors():
            for path, image, reports in self.made:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_image(path, image, self.picture.alpha, self.picture.icc_profile, self.overwrite)
                covered = any(report.method != "diffusion" for report in reports)
                status = "no_face" if not reports else "fallback" if covered else "ok"
                faces = [_describe(report) for report in reports]
                self.records.append({"output": str(path), "status": status, "faces": faces})
        blank = {"input": str(self.job.source), "output": None, "status": "error", "error": None, "faces": []}
        seconds = round(time.perf_counter() - self.started, 3)
        return [blank | record | {"seconds": seconds} for record in self.records]

    def do_video(self, options: VideoOptions, files: FileOptions) -> None:
        with self._noting_errors():
            for path in self.job.outputs:
                check_video_writable(path, self.overwrite)
            for path in self.job.outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.records.append(self._one_video(path, options, files))

    def _one_video(self, path: Path, options: VideoOptions, files: FileOptions) -> dict[str, Any]:
        choices = asdict(options) | asdict(files)
        try:
            output = self.pipe(self.job.source, path, overwrite=self.overwrite, generator=self.generator, **choices)
        except NoFaceFoundError:
            if self.on_no_face == "error":
                raise
            if self.on_no_face == "copy":
                _copy_frames(self.job.source, path, self.overwrite, files)
            return {"status": "no_face", "output": str(path) if self.on_no_face == "copy" else None}
        people = [asdict(report) for report in output.people]
        status = "fallback" if any(report.covered for report in output.people) else "ok"
        return {"output": str(path), "status": status, "faces": people, "frames": output.num_frames, "notes": output.notes}


def _describe(report: Any) -> dict[str, Any]:
    return {
        "box": [round(float(value), 1) for value in report.box],
        "method": report.method,
        "level": report.level,
        "identity_distance": None if report.identity_distance is None else round(float(report.identity_distance), 4),
        "attempts": report.attempts,
        "reason": report.reason,
    }


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
