"""The video pipeline (paper §3.4): each person of a video becomes one new person, steady from frame to frame.

As in the paper, the texture is that of the de-identified reference I_d, and δ and γ are those of its source. One thing differs,
because the weights learned the video mode from little (docs/video.md): z' stays in the condition vector.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffdeid.engine.consent import Consent
from diffdeid.engine.corrections import Corrections
from diffdeid.engine.faces import CPU_BATCH, split
from diffdeid.engine.people import People
from diffdeid.engine.pictures import draw_seeds
from diffdeid.engine.reports import PersonReport
from diffdeid.engine.session import Session
from diffdeid.engine.watch import Watch
from diffdeid.engine.written import VideoCheck
from diffdeid.errors import ConfigurationError, NoFaceFoundError, VerificationError, VideoError
from diffdeid.face_lists import VideoList, refuse_stale
from diffdeid.io.files import HeldFile
from diffdeid.io.video_parts import PART_FRAMES, VideoParts
from diffdeid.io.video_reader import Frame, VideoReader
from diffdeid.io.video_writer import VideoWriter, check_video_writable, rehearse
from diffdeid.options import FileOptions, VideoOptions
from diffdeid.pipelines.components import DeidentificationPipeline
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_output import DiffDeIDVideoPipelineOutput
from diffdeid.temporal.tracker import FaceTracker

GROUP_BYTES = 128 * 2**20  # of frames that are rendered together


class DiffDeIDVideoPipeline(DeidentificationPipeline):
    r"""De-identifies every face of a video.

    A person keeps one new identity through the file: over gaps and cuts, and after coming back. Every face of every frame is
    checked like those of pictures; a face that fails or cannot be rendered is covered. Memory does not grow with the length of
    the video.

    The components are those of `DeidentificationPipeline`, loaded from the same folders as for `DiffDeIDPipeline`.
    """

    @classmethod
    def sharing(cls, pipe: DiffDeIDPipeline) -> DiffDeIDVideoPipeline:
        """A video pipeline that shares the components of a photo pipeline. (`from_pipe` would cast them to another dtype.)"""
        shared = cls(**pipe.components, identity_limit=pipe.config.identity_limit, crop_factor=pipe.config.crop_factor)
        shared.callbacks = pipe.callbacks
        return shared

    def start(
        self,
        rate: float = 25,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        faces: VideoList | None = None,
        consent: Consent | None = None,
        **options: Any,
    ) -> Session:
        """Begin a video of `rate` frames a second, with the options of `VideoOptions`.

        All randomness comes from `seed`, which is drawn from the generator if it is `None`. A list of `faces` corrects what is
        found. A `consent` needs all frames: they must be analysed before the first one is rendered.

        Raises:
            ConfigurationError: the components do not support the options, or there is no `face_analyser`.
            ValueError: an option is out of range, or both `faces` and `consent` are given.
        """
        chosen, engine = VideoOptions(**options), self.engine
        engine.check(chosen)
        if self.face_analyser is None:
            raise ConfigurationError("A video needs the `face_analyser` to follow faces with, and this pipeline has none.")
        seed = draw_seeds(generator, 1)[0] if seed is None else seed
        tracker = FaceTracker(self.face_analyser, engine.embed_in, rate, chosen.threshold)
        if faces is not None and consent is not None:
            raise ValueError("A list of `faces` says who is left as they are, and so does a `consent`. Pass only one of them.")
        watch = None if consent is None else Watch(engine, consent, tracker.rate, chosen.min_face)
        people = People(engine, chosen, seed, tracker.rate, watch)
        corrections = None if faces is None else Corrections(faces, tracker, people)
        return Session(engine, chosen, tracker, people, corrections=corrections)

    @torch.no_grad()
    def stream(
        self, frames: Iterable[np.ndarray], lookahead: int = 25, session: Session | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """De-identify frames in one pass and constant memory, for cameras and other sources without an end.

        A frame leaves `lookahead` frames later, so nothing that is found out after that can help it. A stream without a face
        passes unchanged. A person who comes back after dozens of others may get another new face.

        Args:
            frames: uint8 `(H, W, 3)` RGB, all of one size.
            lookahead: how many frames are held back.
            session: from `start`, whose `reports` say what happened to the last people; made of `options` when `None`.
            options: of `start`.

        Yields:
            The de-identified frames, in order.

        Raises:
            ValueError: both `session` and `options` are given, or a list of `faces` or a `consent`.
        """
        if session is not None and options:
            raise ValueError(f"`session` has its options already, but {sorted(options)} were given too. Pass them to `start`.")
        session = session or self.start(**options)
        if session.people.watch is not None or session.corrections is not None:
            raise ValueError("A stream cannot use a list of `faces` or a `consent`: both need all frames. Write a file first.")
        waiting: deque[tuple[int, np.ndarray]] = deque()
        size = min(CPU_BATCH, lookahead + 1)  # frames that are rendered together; more would hold more of them back
        for number, picture in enumerate(frames):
            session.analyse(picture)
            waiting.append((number, picture))
            if len(waiting) == lookahead + size:
                for group in session.render([[waiting.popleft() for _ in range(size)]]):
                    yield from group
                session.people.forget(session.tracker.forget(waiting[0][0] if waiting else number))
                session.reports = {one.number: session.report(one) for one in session.people.everybody}
        while waiting:  # group by group: a stand-in may be searched for, and then no other thread may run a network
            for group in session.render([[waiting.popleft() for _ in range(min(size, len(waiting)))]]):
                yield from group
        self.maybe_free_model_hooks()

    @torch.no_grad()
    def __call__(
        self,
        video: str | Path,
        output: str | Path,
        overwrite: bool = False,
        generator: torch.Generator | None = None,
        consent: Consent | None = None,
        callback_on_frame: Callable[[str, int, int], None] | None = None,
        faces: VideoList | None = None,
        verify: bool = True,
        **options: Any,
    ) -> DiffDeIDVideoPipelineOutput:
        """De-identify a video file in two passes, analyse and render; then the written file is read again and searched.

        The pictures are a function of the file, the arguments and the state of the generator. So are the bytes, unless x264
        encodes sides that are not multiples of 32 (its mbtree reads memory that it never wrote).

        Args:
            video: mp4, m4v, mov, mkv, webm, avi or gif.
            output: mp4, m4v, mov, mkv or webm; appears complete or not at all.
            overwrite: replace an existing output.
            generator: randomness; fresh when `None`.
            consent: who is left as they are, see `Consent`; without it, everybody is de-identified.
            callback_on_frame: called as `f("analyse", "render" or "verify", frames done, frames expected)`.
            faces: a list of the faces of the whole file, as `read_face_list` gives it, which corrects what is found. With
                `resume`, finished parts are kept, so that after another correction only the parts that it changes are rendered.
            verify: check the file before it gets its name, see `engine.written`.
            options: those of `VideoOptions` and `FileOptions`.

        Raises:
            NoFaceFoundError: no frame shows a face.
            DiffDeIDError: a face was lost for a moment, and `on_miss` is "error".
            VideoError: the file cannot be read, changes meanwhile, or the output cannot be written.
            ConfigurationError: the components do not support the options.
            ValueError: an option is out of range, or `faces` belong to another file or another search.
            VerificationError: the written file shows a face of the source, or holds more than it should; there is no output.
        """
        video, output = Path(video), Path(output)
        files, options = FileOptions.split(options)
        if faces is not None:
            options = _as_listed(faces, files, options)
        check_video_writable(output, overwrite, video)
        rehearse(output, **files.encoder)
        with HeldFile(video) as held:
            if faces is not None:
                refuse_stale(faces, replace(faces.source, fingerprint=held.fingerprint))
            chosen = VideoOptions(**options)
            return self._two_passes(held, output, overwrite, files, chosen, generator, consent, callback_on_frame, faces, verify)

    def _two_passes(
        self,
        held: HeldFile,
        output: Path,
        overwrite: bool,
        files: FileOptions,
        options: VideoOptions,
        generator: torch.Generator | None,
        consent: Consent | None,
        callback_on_frame: Callable[[str, int, int], None] | None,
        faces: VideoList | None,
        verify: bool,
    ) -> DiffDeIDVideoPipelineOutput:
        encoder = files.encoder | {"overwrite": overwrite}
        reader = VideoReader(held.path, files.start, files.end)
        (seed,), parts = draw_seeds(generator, 1), None
        if files.resume:
            job = {"file": held.fingerprint, "span": [files.start, files.end], "encoder": files.encoder}
            job |= {"engine": self.engine.digest(), "options": asdict(options), "consent": consent and consent.digest()}
            parts = VideoParts(output, job, None if generator is None else seed)
            seed = parts.seed
            rehearse(parts.path("trial"), **files.encoder)
        session = self.start(float(reader.rate), seed=seed, consent=consent, faces=faces, **asdict(options))

        # 1. analyse
        for frame in self._counted(reader, "analyse", reader.num_frames, callback_on_frame):
            session.analyse(frame.picture)
        people = session.cast()
        if not people:
            raise NoFaceFoundError(f"No frame of `{held.path}` shows a face, so nobody can tell whether it is de-identified.")

        # 2. render
        sound = None if files.audio == "drop" else reader.path
        writing = encoder | {"sound": sound, "distort": files.audio == "distort"}
        total = session.tracker.num_frames
        frames = self._counted(_exactly(reader, total, held), "render", total, callback_on_frame)
        if verify:  # 3.
            counted = partial(self._counted, stage="verify", total=total, callback=callback_on_frame)
            how = {"threshold": options.threshold, "sound": sound is not None}
            check = VideoCheck(session.engine, session.known, session.tracker.rate, counted=counted, **how)
            frames, writing = check.watch(frames), writing | {"check": check}
        try:
            rendered = [] if parts is None else self._render_parts(session, enumerate(frames), parts, reader, encoder)
            with VideoWriter(output, reader.rate, reader.sample_aspect_ratio, origin=reader.origin, **writing) as writer:
                if parts is None:
                    self._render_into(writer, session, enumerate(frames))
                for path in rendered:
                    writer.append(path)
                held.check_content()
        except VerificationError:
            if parts is not None:  # they contain what the check refused
                parts.remove()
            raise
        if parts is not None and faces is None:
            parts.remove()

        self.maybe_free_model_hooks()
        reports = [session.report(person) for person in people]
        return DiffDeIDVideoPipelineOutput(output, total, reports, reader.notes + writer.notes)

    def _render_into(self, writer: VideoWriter, session: Session, frames: Iterator[tuple[int, Frame]]) -> None:
        times: deque = deque()

        def groups() -> Iterator[list[tuple[int, np.ndarray]]]:
            for group in _groups(frames, session.engine.batch_size):
                times.extend(frame.time for _, frame in group)
                yield [(number, frame.picture) for number, frame in group]

        for pictures in session.render(groups()):
            for picture in pictures:
                writer.write(Frame(picture, times.popleft()))

    def _render_parts(
        self, session: Session, frames: Iterator[tuple[int, Frame]], parts: VideoParts, reader: VideoReader, encoder: dict
    ) -> list[Path]:
        """Render the parts that are not finished yet, each with new filters; gives the files of all parts."""
        numbers = split(range(session.tracker.num_frames), PART_FRAMES)
        names = {session.digest(some): some for some in numbers}
        parts.begin(names)
        finished: dict[int, PersonReport] = {}
        for name, some in names.items():
            if name in parts.reports:
                deque(islice(frames, len(some)), maxlen=0)
            else:
                session.begin_anew()
                path, again = parts.path(name), encoder | {"overwrite": True}
                with VideoWriter(path, reader.rate, reader.sample_aspect_ratio, **again) as writer:
                    self._render_into(writer, session, islice(frames, len(some)))
                parts.add(name, [asdict(report) for report in session.reports.values()])
            for report in map(PersonReport.stored, parts.reports[name]):
                finished[report.number] = finished[report.number].joined(report) if report.number in finished else report
        session.reports = finished
        return [parts.path(name) for name in names]

    def _counted(self, frames: Iterable[Frame], stage: str, total: int, callback: Callable | None) -> Iterator[Frame]:
        with self.progress_bar(total=total or None) as progress_bar:
            progress_bar.set_description(stage)
            for number, frame in enumerate(frames, start=1):
                yield frame
                progress_bar.update()
                if callback is not None:
                    callback(stage, number, total)


def _as_listed(faces: VideoList, files: FileOptions, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which a new search finds the listed faces again."""
    if files.start is not None or files.end is not None:
        raise ValueError("A list of faces counts the frames of the whole file. Leave `start` and `end` out.")
    if options.get("threshold") not in (None, faces.threshold):
        raise ValueError(f"The faces were listed at `threshold` {faces.threshold}, got {options['threshold']}. Leave it out.")
    return options | {"threshold": faces.threshold}


def _groups(frames: Iterator[tuple[int, Frame]], size: int) -> Iterator[list[tuple[int, Frame]]]:
    """Groups of frames to render together: as many as faces in a batch, if memory allows."""
    for number, frame in frames:
        yield [(number, frame), *islice(frames, max(min(size, GROUP_BYTES // frame.picture.nbytes), 1) - 1)]


def _exactly(frames: Iterable[Frame], count: int, held: HeldFile) -> Iterator[Frame]:
    """Yield exactly as many frames as were analysed. Any other number is an error: nobody has followed their faces."""
    number = 0
    for number, frame in enumerate(frames, start=1):
        if number == 1:  # the file is open by now
            held.check_name()
        if number > count:
            break
        yield frame
    if number != count:
        raise VideoError(f"The file changed: it had {count} frames at first, and has {'more' if number > count else number} now.")
