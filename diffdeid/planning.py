"""Decides which files the inputs of a command mean, and what their outputs are called."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from diffdeid.io.images import IMAGE_SUFFIXES
from diffdeid.io.stores import location, search
from diffdeid.io.video_reader import VIDEO_SUFFIXES

_EARLIER_OUTPUT = re.compile(r"_anonymized(_\d+)?$")


@dataclass(frozen=True)
class Job:
    """An input file and the files its candidates are written to: paths, or `UPath`s for URLs, see `io.stores`.

    Attributes:
        relative: the path of the source, relative to the folder that was searched.
    """

    source: Path
    outputs: tuple[Path, ...]
    relative: Path


def plan(inputs: list[str], output: Path | None, candidates: int) -> list[Job]:
    """Decide which files are read and which are written.
    Args:
        inputs: files, folders (searched through, without hidden and earlier output files) and glob patterns; URLs of such, too.
        output: a folder, in which the folders of the inputs are mirrored, or, for one input, a file. Default: next to the input.
        candidates: outputs per input.

    Raises:
        ValueError: an input matches nothing, or two files would be written to one, or an input would be overwritten.
    """
    found = find(inputs)
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    to_one_file = output is not None and output.suffix.lower() in suffixes and not output.is_dir()
    if to_one_file and len(found) > 1:
        raise ValueError(f"`{output}` is one file, but there are {len(found)} inputs. Name a folder.")
    targets = {
        file: output if to_one_file else _target(file, file.parent if output is None else (output / relative).parent)
        for file, relative in found
    }
    wanted, relatives, jobs = Counter(targets.values()), dict(found), []
    for file, target in targets.items():
        if wanted[target] > 1 and target.suffix != file.suffix:  # IMG_1.mov beside IMG_1.mp4
            target = target.with_name(f"{file.name}_anonymized{target.suffix}")
        names = [target.stem] if candidates == 1 else [f"{target.stem}_{number}" for number in range(1, candidates + 1)]
        jobs.append(Job(file, tuple(target.with_name(name + target.suffix) for name in names), relatives[file]))

    refuse_collisions({job.source: job.outputs for job in jobs})
    return jobs


def shard(jobs: Iterable[Job], number: int, count: int) -> list[Job]:
    """The jobs of worker `number` (from 1) of `count`; each job has exactly one worker.

    The relative path alone decides, so files that come or go move no other file to another worker.
    """

    def worker_of(job: Job) -> int:
        name = os.fsencode(job.relative.as_posix())
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) % count + 1

    return [job for job in jobs if worker_of(job) == number]


def refuse_collisions(outputs: Mapping[Path, Iterable[Path]]) -> None:
    """Raise `ValueError` where an output of a source is a source itself, or the output of another one."""
    sources = {_resolved(source) for source in outputs}
    owners: dict[str, Path] = {}
    for source, paths in outputs.items():
        for path in map(_resolved, paths):
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
    found: dict[str | Path, tuple[Path, Path]] = {}  # each file once; a URL's text here would lack the server
    for name in inputs:
        files = _find(name)
        if not files:
            raise ValueError(f"`{name}` matches no picture or video.")
        for file, relative in files:
            found.setdefault(os.path.abspath(file) if isinstance(file, os.PathLike) else file, (file, relative))
    return list(found.values())


def _resolved(path: Path) -> str:
    """The one name of a file, whichever links, URLs and names of its store (`s3`, `s3a`) lead to it."""
    return os.path.realpath(path) if isinstance(path, os.PathLike) else path.fs.unstrip_protocol(path.resolve().path)


def _target(file: Path, folder: Path) -> Path:
    return folder / f"{file.stem}_anonymized{'.mp4' if is_video(file) else file.suffix}"


def is_video(file: Path) -> bool:
    """Whether a file is read as a video, by its suffix."""
    return file.suffix.lower() in VIDEO_SUFFIXES


def _find(name: str) -> list[tuple[Path, Path]]:
    """The files that `name` stands for, each with its path relative to the folder that was searched."""
    path = location(name)
    if not isinstance(path, Path):
        if path.is_file():
            return [(path, Path(path.name))]
        root, names = search(path)
        relatives = [(name, Path(name.lstrip("/"))) for name in names]  # `a//b` must not lead out of an output folder
        return [(root / name, relative) for name, relative in relatives if _is_input(relative)]
    if path.is_dir():
        files, root = _walk(path), path
    elif os.path.lexists(path):
        return [(path, Path(path.name))]
    else:
        root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        files = (Path(match) for match in glob.iglob(name, recursive=True) if os.path.isfile(match))
    return [(file, file.relative_to(root)) for file in sorted(files) if _is_input(file.relative_to(root))]


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ValueError(f"Cannot search `{error.filename}`: {error.strerror}.") from error

    for parent, _, names in os.walk(folder, onerror=fail):  # does not follow links to folders
        yield from (Path(parent, name) for name in names)


def _is_input(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    known = relative.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return known and not hidden and not _EARLIER_OUTPUT.search(relative.stem)
