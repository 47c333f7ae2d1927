"""De-identifies many files: each one is read, rendered, written and checked, while others are under way.

On a GPU, pictures go to the networks in groups, so that their faces fill batches.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from diffdeid.engine.consent import Consent
from diffdeid.engine.pictures import draw_seeds
from diffdeid.engine.reports import FaceReport
from diffdeid.engine.review import PictureReview, render_faces
from diffdeid.engine.written import Known, VideoCheck, picture_check
from diffdeid.errors import NoFaceFoundError
from diffdeid.face_lists import FaceList, Source, refuse_stale
from diffdeid.io.files import HeldFile, taken
from diffdeid.io.images import Picture, check_writable, read_image, read_with_fingerprint, write_image
from diffdeid.io.manifest import Manifest
from diffdeid.io.stores import Copies
from diffdeid.io.video_reader import VideoReader
from diffdeid.io.video_writer import VideoWriter, check_video_writable
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions
from diffdeid.planning import Job, is_video

MOST_PIXELS = 2**27  # of the pictures of a group and their results, 400 MB; up to three groups are in hand
AHEAD = 32  # files for which it is decided at the same time what is to be made: stores answer slowly, but many at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """What holds for all files of a run.

    Attributes:
        options, files: choices for pictures and videos; pictures ignore those that are for videos only.
        on_no_face: "error", "skip" (write nothing) or "copy" (write the pixels without metadata).
        existing: what becomes of outputs that exist: "error" (they stay, and are reported), "skip" (they stay, and are not made
            again) or "replace".
        seed: starts a generator for each file, so that its results do not depend on the other files. Default: that of the list of
            its faces, or fresh randomness.
        verify: check each file before it gets its name, see `engine.written`.
        consent: tells who is left as they are; nobody is without one.
    """

    options: VideoOptions
    files: FileOptions
    on_no_face: Literal["error", "skip", "copy"] = "error"
    existing: Literal["error", "skip", "replace"] = "error"
    seed: int | None = None
    verify: bool = True
    consent: Consent | None = None


def run(
    pipe_of: Callable[[Path], Any],
    jobs: Iterable[Job],
    how: How,
    known: Mapping[Path, FaceList] | None = None,
    manifest: Manifest | None = None,
    at_once: int = 1,
) -> Iterator[list[dict[str, Any]]]:
    """De-identify files; yields a list of records for each file, one for each output. Errors become records as well.

    While the networks work on a group of files, another thread decodes the next one, and a third encodes the one before.

    Args:
        pipe_of: gives the pipeline for a file: a `DiffDeIDPipeline`, for a video a `DiffDeIDVideoPipeline`.
        jobs: the files and their outputs.
        how: what holds for all of them.
        known: lists of the faces of some files, by their resolved paths.
        manifest: what earlier runs finished, which is not done again. What this run finishes is added.
        at_once: largest number of files in a group, see `gathered`.
    """
    in_hand: set[Task] = set()

    def tasks() -> Iterator[Task]:
        for job in jobs:
            task = Task(job, how, known.get(job.source.resolve()) if known else None)
            in_hand.add(task)
            yield task

    def finish(task: Task) -> list[dict[str, Any]]:
        records = task.finish()
        in_hand.discard(task)
        if manifest is not None:
            manifest.add(records, task.digest, task.job.outputs)
        return records

    groups = gathered(decided(tasks(), manifest), at_once)
    try:
        with ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as encoder:
            following, waiting = decoder.submit(next, groups, None), []
            while group := following.result():
                following = decoder.submit(next, groups, None)
                make(group, pipe_of)
                for done in waiting:
                    yield done.result()
                waiting = [encoder.submit(finish, task) for task in group]
            for done in waiting:
                yield done.result()
    finally:  # an interrupted run leaves no copy of a source either
        for task in in_hand:
            task.copies.close()


def decided(tasks: Iterable[Task], manifest: Manifest | None = None) -> Iterator[Task]:
    """Let tasks decide what is to be made; yields them in their order."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[tuple[Task, Future[None]]] = deque()
        for task in tasks:
            ahead.append((task, pool.submit(task.decide, manifest)))
            if len(ahead) == AHEAD:
                task, decision = ahead.popleft()
                decision.result()
                yield task
        for task, decision in ahead:
            decision.result()
            yield task


def gathered(tasks: Iterable[Task], at_once: int) -> Iterator[list[Task]]:
    """Read the files of tasks, and group the tasks: at most `at_once`, fewer if pictures are large; each video is alone."""
    group, held = [], 0
    for task in tasks:
        alone = is_video(task.job.source)
        if alone and group:
            yield group
            group, held = [], 0
        task.read()
        group.append(task)
        if task.picture is not None:
            held += math.prod(task.picture.image.size) * (1 + len(task.missing))
        if alone or len(group) == at_once or held >= MOST_PIXELS:
            yield group
            group, held = [], 0
    if group:
        yield group


def make(tasks: Sequence[Task], pipe_of: Callable[[Path], Any]) -> None:
    """Do the part of the work that needs the networks; there, faces of several pictures share batches. Videos are also written.

    If the pictures fail together, they are done one by one.
    """
    for task in tasks:
        task.prepare(pipe_of)
    pictures = [task for task in tasks if task.missing and task.picture is not None]
    if len(pictures) > 1:
        started = time.perf_counter()
        try:
            render(pictures)
        except Exception:
            logger.debug("%d pictures are done one by one", len(pictures), exc_info=True)
        for task in pictures:
            task.seconds += (time.perf_counter() - started) / len(pictures)
    for task in pictures:
        task.complete()


def render(tasks: Sequence[Task]) -> None:
    """Make the new faces of pictures of one run. Pictures that have a list of faces are not searched for others."""
    if found := [task for task in tasks if task.listed is None]:
        pipe, how, count = found[0].pipe, found[0].how, len(found[0].job.outputs)
        images, generators = [task.picture.image for task in found], [task.new_generator() for task in found]
        choices = asdict(how.options.as_kind(DeidentifyOptions))
        output = pipe(images, num_images_per_prompt=count, generator=generators, consent=how.consent, **choices)
        for number, task in enumerate(found):
            own = slice(number * count, (number + 1) * count)
            task.found = output.images[own], output.faces[own], output.errors[number]
    render_faces([(task.reviews[path], task.listed.faces) for task in tasks if task.listed is not None for path in task.missing])


class Task:
    """The work on a job, in the steps `decide`, `read`, `prepare`, `complete`, `finish`.

    `render` may come before `complete`, for several tasks together. Errors become records: they must not stop other tasks.

    Args:
        job: a file and its outputs.
        how: what holds for all files of the run.
        listed: the list of its faces, if there is one; then it is not searched for others.

    Attributes:
        source: the file that is read: a copy if the source is in a store.
        missing: the outputs that are to be made.
        digest: of what they depend on, for a manifest.
        overwrite: whether they replace existing files.
    """

    def __init__(self, job: Job, how: How, listed: FaceList | None = None):
        self.job, self.how, self.listed = job, how, listed
        self.source, self.copies = job.source, Copies()
        self.pipe, self.generator = None, None
        self.missing: list[Path] = []
        self.digest, self.overwrite, self.seconds = "", how.existing == "replace", 0.0
        self.records: list[dict[str, Any]] = []
        self.picture: Picture | None = None
        self.found: tuple[list[Image.Image | None], list[list[FaceReport]], Exception | None] | None = None
        self.reviews: dict[Path, PictureReview] = {}
        self.made: list[tuple[Path, Image.Image, list]] = []  # what is to be written, and the reports of its faces

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except NoFaceFoundError as error:
            choice = "Say with `--on-no-face skip` or `--on-no-face copy` what should become of files without a face"
            hint = f"{choice}, or search more closely with a lower `--threshold`." if self.listed is None else f"{choice}."
            self.records.append({"status": "no_face", "error": f"{self.copies.with_urls(str(error))} {hint}"})
        except Exception as error:
            self.missing = []
            logger.debug("%s", self.job.source, exc_info=True)
            self.records.append({"error": self.copies.with_urls(str(error)) or type(error).__name__})
        finally:
            self.seconds += time.perf_counter() - started

    def decide(self, manifest: Manifest | None = None) -> None:
        """Decide which outputs are to be made, before anything is decoded."""
        with self._noting_errors():
            outputs, existing = self.job.outputs, self.how.existing
            done: set[Path] = set()
            if manifest is not None:  # all that results depend on belongs into the digest, or a change of it goes unnoticed
                who = {"faces": self.listed and asdict(self.listed), "consent": self.how.consent and self.how.consent.digest()}
                self.digest = manifest.digest(self.job.source, self._choices() | who | {"verify": self.how.verify})
                done = {path for path in outputs if manifest.holds(self.job.source, path, self.digest, self.how.on_no_face)}
            others = [path for path in outputs if path not in done and path.exists()]
            if others and existing == "error":
                if manifest is not None and manifest.lists(others[0]):
                    raise FileExistsError(
                        f"`{others[0]}` is from an earlier run. Since then its source, the options, the weights, the seed or the "
                        "file itself have changed. Pass `--existing replace` to make it again."
                    )
                raise FileExistsError(taken(others[0]))
            done.update(others if existing == "skip" else ())
            for path in outputs:
                if path in done:
                    output = str(path) if path.exists() else None
                    self.records.append({"output": output, "status": "skipped", "verified": None})
            self.missing = [path for path in outputs if path not in done]

    def read(self) -> None:
        """Fetch the file, and decode a picture, if outputs are to be made."""
        if self.missing:
            with self._noting_errors():
                self.source = self.copies.fetch(self.job.source)
                if not is_video(self.source):
                    self.picture = read_image(self.source)

    def prepare(self, pipe_of: Callable[[Path], Any]) -> None:
        """Prepare a picture for the networks, or do all the work on a video."""
        if self.missing:
            with self._noting_errors():
                self.pipe, self.generator = pipe_of(self.job.source), self.new_generator()
                self._do_video() if is_video(self.job.source) else self._prepare_picture()

    def _prepare_picture(self) -> None:
        for path in self.missing:
            check_writable(path, self.picture.alpha is not None, overwrite=True)  # `decide` has asked whether it exists
        if self.listed is not None:
            self.picture, mark = read_with_fingerprint(self.source)  # read again, since a list is of one content and no other
            image, options = self.picture.image, self.how.options.as_kind(DeidentifyOptions)
            refuse_stale(self.listed, Source(mark, *image.size))
            self.pipe.engine.check(options)
            picture, seeds = np.asarray(image), draw_seeds(self.generator, len(self.job.outputs))
            self.reviews = {
                path: PictureReview(self.pipe.engine, picture, options, seed)
                for path, seed in zip(self.job.outputs, seeds, strict=True)
            }

    def complete(self) -> None:
        """Collect the results of a picture, which is rendered by itself if it was not rendered with others."""
        with self._noting_errors():
            try:
                make = self._as_found if self.listed is None else self._as_listed
                self.made = [one for one in make() if one[0] in self.missing]
            except NoFaceFoundError:
                if self.how.on_no_face == "error":
                    raise
                if self.how.on_no_face == "skip":
                    self.records.append({"status": "no_face"})
                else:
                    self.made = [(path, self.picture.image, []) for path in self.missing]

    def _as_found(self) -> Iterator[tuple[Path, Image.Image, list[FaceReport]]]:
        if self.found is None:
            render([self])
        images, reports, error = self.found
        if error is not None:
            raise error
        return zip(self.job.outputs, images, reports, strict=True)

    def _as_listed(self) -> Iterator[tuple[Path, Image.Image, list[FaceReport]]]:
        for path in self.missing:
            result, reports = self.reviews.pop(path).render(self.listed.faces)  # a review holds patches of all faces
            yield path, Image.fromarray(result), list(reports.values())
        self.pipe.maybe_free_model_hooks()

    def finish(self) -> list[dict[str, Any]]:
        """Write and check the results of a picture, and remove copies; gives the records."""
        for path, image, reports in self.made:
            with self._noting_errors():  # one that fails does not stop the others
                about, known = (self.picture.alpha, self.picture.icc_profile), [Known.of(report) for report in reports]
                how = {"threshold": self.how.options.threshold, "search": self.listed is None}
                check = picture_check(self.pipe.engine, self.picture, image, known, **how) if self.how.verify else None
                with self.copies.output(path, self.overwrite) as file:
                    write_image(file, image, *about, self.overwrite, check, self.source)
                covered = any(report.method not in ("diffusion", "kept") for report in reports)
                status = "no_face" if not reports else "fallback" if covered else "ok"
                record = {"output": str(path), "status": status, "faces": [_describe(report) for report in reports]}
                self.records.append(record | self._told())
        self.copies.close()
        blank = {"input": str(self.job.source), "output": None, "status": "error", "error": None, "faces": [], "verified": False}
        return [blank | record | {"seconds": round(self.seconds, 3)} for record in self.records]

    def _do_video(self) -> None:
        for path in self.missing:
            check_video_writable(path, overwrite=True)  # `decide` has asked whether it exists
        for path in self.job.outputs:
            if path in self.missing:
                self.records.append(self._one_video(path))
            elif self.generator is not None:
                draw_seeds(self.generator, 1)  # so that the next one gets the same people as if this one were made

    def _one_video(self, path: Path) -> dict[str, Any]:
        how = {"overwrite": self.overwrite, "generator": self.generator, "verify": self.how.verify}
        who = {"consent": self.how.consent, "faces": self.listed}
        try:
            with self.copies.output(path, self.overwrite) as file:
                output = self.pipe(self.source, file, **how, **who, **self._choices())
        except NoFaceFoundError:
            if self.how.on_no_face == "error":
                raise
            if self.how.on_no_face == "skip":
                return {"status": "no_face"}
            self._copy_frames(path)
            return {"status": "no_face", "output": str(path)} | self._told()
        people = [asdict(report) | {"identity_distance": _rounded(report.identity_distance)} for report in output.people]
        status = "fallback" if any(report.covered for report in output.people) else "ok"
        record = {"output": str(path), "status": status, "faces": people, "frames": output.num_frames, "notes": output.notes}
        return record | self._told()

    def _copy_frames(self, path: Path) -> None:
        """Write a video without a face: encode its frames anew, and its sound if asked for."""
        source, files = self.source, self.how.files
        with HeldFile(source) as held, self.copies.output(path, self.overwrite) as file:
            reader = VideoReader(source, files.start, files.end)
            next(iter(reader))  # tells the origin
            held.check_name()
            kept = {
                "sound": None if files.audio == "drop" else source,
                "distort": files.audio == "distort",
                "origin": reader.origin,
            }
            how = {"threshold": self.how.options.threshold, "search": self.listed is None, "sound": files.audio != "drop"}
            check = VideoCheck(self.pipe.engine, **how) if self.how.verify else None
            writing = {"overwrite": self.overwrite, "check": check} | files.encoder | kept
            with VideoWriter(file, reader.rate, reader.sample_aspect_ratio, **writing) as writer:
                for frame in reader if check is None else check.watch(reader):
                    writer.write(frame)
                held.check_content()

    def _told(self) -> dict[str, Any]:
        """The part of the record of a written file on whether it was checked, and how many faces or tracks its list deletes."""
        deleted = {} if self.listed is None else {"deleted": self.listed.num_deleted}
        return {"verified": self.how.verify} | deleted

    def _choices(self) -> dict[str, Any]:
        """The arguments of the pipeline that are choices."""
        if is_video(self.job.source):
            return asdict(self.how.options) | asdict(self.how.files)
        return asdict(self.how.options.as_kind(DeidentifyOptions))

    def new_generator(self) -> torch.Generator | None:
        """A generator for this file, or `None` without a seed: then randomness is fresh."""
        seed = self.listed.seed if self.how.seed is None and self.listed is not None else self.how.seed
        return None if seed is None else torch.Generator().manual_seed(seed)


def _describe(report: Any) -> dict[str, Any]:
    return {
        "box": [round(float(value), 1) for value in report.box],
        "method": report.method,
        "level": report.level,
        "identity_distance": _rounded(report.identity_distance),
        "attempts": report.attempts,
        "reason": report.reason,
        "person": report.person,
        "margin": _rounded(report.margin),
        "not_kept": report.not_kept,
        "straying": _rounded(report.straying),
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(float(number), 4)
