"""Many files, each of them from start to end: read, de-identified, written and checked, while others are on their way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from diffdeid.engine.review import PictureReview
from diffdeid.engine.written import Known, VideoCheck, picture_check
from diffdeid.errors import NoFaceFoundError
from diffdeid.face_lists import FaceList, Source, refuse_stale
from diffdeid.io.files import HeldFile, taken
from diffdeid.io.images import Picture, check_writable, read_image, read_with_fingerprint, write_image
from diffdeid.io.manifest import Manifest
from diffdeid.io.video_reader import VideoReader
from diffdeid.io.video_writer import VideoWriter, check_video_writable
from diffdeid.options import DeidentifyOptions, FileOptions, VideoOptions
from diffdeid.planning import Job, is_video

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """What holds for all files of a run.

    Attributes:
        options, files: what a picture has no use for is left out.
        on_no_face: "error", "skip" (write nothing) or "copy" (write the pixels without metadata).
        existing: what becomes of outputs that are there: "error" (they stay, and are reported), "skip" (they stay, and are not
            made again) or "replace".
        seed: starts a generator for each file, so that its results do not depend on the other files. Default: that of the list of
            its faces, or fresh randomness.
        verify: check each file before it gets its name, see `engine.written`.
        consent: who stays as they are; nobody without one.
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
) -> Iterator[list[dict[str, Any]]]:
    """De-identify files and say what happened: a list for each, with a record for each output. Errors become records as well.

    While the networks work on a file, another thread decodes the next one, and a third encodes the one before.

    Args:
        pipe_of: what does a file: a `DiffDeIDPipeline`, for a video a `DiffDeIDVideoPipeline`.
        known: lists of the faces of some files, by their resolved paths.
        manifest: what earlier runs finished, which is not done again. What this one finishes is added.
    """

    def begin(task: Task) -> Future[None]:
        task.decide(manifest)
        return decoder.submit(task.read)

    def finish(task: Task) -> list[dict[str, Any]]:
        records = task.finish()
        if manifest is not None:
            manifest.add(records, task.digest)
        return records

    with ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as encoder:
        tasks = (Task(job, how, (known or {}).get(job.source.resolve())) for job in jobs)
        begun = ((task, begin(task)) for task in tasks)
        following, waiting = next(begun, None), None
        while following is not None:
            (task, decoded), following = following, next(begun, None)
            decoded.result()
            task.make(pipe_of)
            if waiting is not None:
                yield waiting.result()
            waiting = encoder.submit(finish, task)
        if waiting is not None:
            yield waiting.result()


class Task:
    """A job on its way: `decide`, `read`, `make`, `finish`. What goes wrong becomes a record: it must not stop the others.

    Args:
        listed: a list of its faces, which is not to be searched for others.

    Attributes:
        missing: the outputs that are to be made.
        digest: of what they depend on, for a manifest.
        overwrite: whether existing files are replaced by them.
    """

    def __init__(self, job: Job, how: How, listed: FaceList | None = None):
        self.job, self.how, self.listed = job, how, listed
        self.pipe, self.generator = None, None
        self.missing: list[Path] = []
        self.digest, self.overwrite, self._seconds = "", how.existing == "replace", 0.0
        self.records: list[dict[str, Any]] = []
        self.picture: Picture | None = None
        self.made: list[tuple[Path, Image.Image, list]] = []  # what is to be written, and the reports of its faces

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except NoFaceFoundError as error:
            self.records.append({"status": "no_face", "error": str(error)})
        except Exception as error:
            self.missing = []
            logger.debug("%s", self.job.source, exc_info=True)
            self.records.append({"error": str(error) or type(error).__name__})
        finally:
            self._seconds += time.perf_counter() - started

    def decide(self, manifest: Manifest | None = None) -> None:
        """Which outputs are to be made; nothing is decoded before."""
        with self._noting_errors():
            outputs, existing = self.job.outputs, self.how.existing
            done: set[Path] = set()
            if manifest is not None:  # all that results depend on belongs into the digest, or what changes it goes unnoticed
                who = {"faces": self.listed and asdict(self.listed), "consent": self.how.consent and self.how.consent.digest()}
                self.digest = manifest.digest(self.job.source, self._choices() | who | {"verify": self.how.verify})
                done = {path for path in outputs if manifest.holds(self.job.source, path, self.digest, self.how.on_no_face)}
            others = [path for path in outputs if path not in done and path.exists()]
            if others and existing == "error":
                raise FileExistsError(taken(others[0]))
            done.update(others if existing == "skip" else ())
            for path in outputs:
                if path in done:
                    self.records.append({"output": str(path) if path.exists() else None, "status": "skipped"})
            self.missing = [path for path in outputs if path not in done]

    def read(self) -> None:
        """Decode the picture, if that is needed."""
        if self.missing and not is_video(self.job.source):
            with self._noting_errors():
                self.picture = read_image(self.job.source)

    def make(self, pipe_of: Callable[[Path], Any]) -> None:
        """Do what needs the networks; videos are written, too."""
        if self.missing:
            with self._noting_errors():
                self.pipe, self.generator = pipe_of(self.job.source), self._new_generator()
                self._do_video() if is_video(self.job.source) else self._do_picture()

    def _do_picture(self) -> None:
        for path in self.missing:
            check_writable(path, self.picture.alpha is not None, self.overwrite)
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
        outputs, consent = self.job.outputs, self.how.consent
        candidates = {"num_images_per_prompt": len(outputs), "generator": self.generator}
        output = self.pipe(self.picture.image, consent=consent, **candidates, **self._choices())
        return zip(outputs, output.images, output.faces, strict=True)

    def _as_listed(self) -> Iterator[tuple[Path, Image.Image, list[FaceReport]]]:
        """The results of a picture whose faces are listed; it is not searched for others."""
        self.picture, mark = read_with_fingerprint(self.job.source)  # again, for a list is of one content and no other
        image, options = self.picture.image, self.how.options.as_kind(DeidentifyOptions)
        refuse_stale(self.listed, Source(mark, *image.size))
        self.pipe.engine.check(options)
        for path, seed in zip(self.job.outputs, draw_seeds(self.generator, len(self.job.outputs)), strict=True):
            if path in self.missing:
                result, reports = PictureReview(self.pipe.engine, np.asarray(image), options, seed).render(self.listed.faces)
                yield path, Image.fromarray(result), list(reports.values())
        self.pipe.maybe_free_model_hooks()

    def finish(self) -> list[dict[str, Any]]:
        """Write what was made of a picture, and check it; give the records."""
        with self._noting_errors():
            for path, image, reports in self.made:
                path.parent.mkdir(parents=True, exist_ok=True)
                about, known = (self.picture.alpha, self.picture.icc_profile), [Known.of(report) for report in reports]
                how = {"threshold": self.how.options.threshold, "search": self.listed is None}
                check = picture_check(self.pipe.engine, self.picture, image, known, **how) if self.how.verify else None
                write_image(path, image, *about, self.overwrite, check, self.job.source)
                covered = any(report.method not in ("diffusion", "kept") for report in reports)
                status = "no_face" if not reports else "fallback" if covered else "ok"
                record = {"output": str(path), "status": status, "faces": [_describe(report) for report in reports]}
                self.records.append(record | self._told())
        blank = {"input": str(self.job.source), "output": None, "status": "error", "error": None, "faces": [], "verified": False}
        return [blank | record | {"seconds": round(self._seconds, 3)} for record in self.records]

    def _do_video(self) -> None:
        for path in self.missing:
            check_video_writable(path, self.overwrite)
        for path in self.job.outputs:
            if path in self.missing:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.records.append(self._one_video(path))
            elif self.generator is not None:
                draw_seeds(self.generator, 1)  # the next one gets the people that it would have had

    def _one_video(self, path: Path) -> dict[str, Any]:
        how = {"overwrite": self.overwrite, "generator": self.generator, "verify": self.how.verify}
        who = {"consent": self.how.consent, "faces": self.listed}
        try:
            output = self.pipe(self.job.source, path, **how, **who, **self._choices())
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
        """Encode the pictures of a video anew, and its sound if asked for."""
        source, files = self.job.source, self.how.files
        with HeldFile(source) as held:
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
            with VideoWriter(path, reader.rate, reader.sample_aspect_ratio, **writing) as writer:
                for frame in reader if check is None else check.watch(reader):
                    writer.write(frame)
                held.check_content()

    def _told(self) -> dict[str, Any]:
        """Of a file that was written: whether it was checked, and how many faces or tracks somebody struck out of the list."""
        deleted = {} if self.listed is None else {"deleted": self.listed.num_deleted}
        return {"verified": self.how.verify} | deleted

    def _choices(self) -> dict[str, Any]:
        """The arguments of the pipeline that are choices."""
        if is_video(self.job.source):
            return asdict(self.how.options) | asdict(self.how.files)
        return asdict(self.how.options.as_kind(DeidentifyOptions))

    def _new_generator(self) -> torch.Generator | None:
        """Of the randomness of this file; fresh randomness without one."""
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
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(float(number), 4)
