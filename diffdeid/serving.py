"""What a public page does with the pipelines: limits, progress, a choice of faces and people, and reports in words.

Nothing here depends on a web framework.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from copy import copy
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from diffdeid import reviewing
from diffdeid.detection import list_video
from diffdeid.engine.pictures import PictureJob, deidentify_pictures, draw_seeds
from diffdeid.engine.reports import FaceReport, PersonReport
from diffdeid.engine.written import Known, picture_check
from diffdeid.errors import DiffDeIDError, ImageError, NoFaceFoundError, VideoError
from diffdeid.face_lists import ListedTrack, VideoList, box_at
from diffdeid.io.files import fingerprint
from diffdeid.io.images import Picture, read_image, write_image
from diffdeid.io.video_reader import VideoReader
from diffdeid.models.onnx_model import OnnxModel
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.loading import precisions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_output import DiffDeIDVideoPipelineOutput
from diffdeid.pipelines.pipeline_video import DiffDeIDVideoPipeline
from diffdeid.stages.denoise import Callbacks
from diffdeid.structures import Face, NewIdentity, Replaced

MAX_MEGAPIXELS, MAX_FACES, MAX_FRAMES, MAX_SIDE = 25, 40, 750, 1920  # limits of a page; the pipelines have none
PREVIEW, PORTRAIT = 1280, 160  # pixels of the longer side: of photos, and of portraits of the people of a video
ABOUT_FACE = 0.4  # how far a portrait reaches beyond the face, in sizes of the face
SHOWABLE = (".jpg", ".jpeg", ".png", ".webp")
PATIENCE = 0.5  # seconds between two looks at work in a thread
ON_CPU = ThreadPoolExecutor(1, "networks")
WORK = {"analyse": "Looking for faces", "show": "Taking pictures of them", "render": "Painting", "verify": "Checking the file"}
CLOSING = threading.Event()  # set when the server is to close: then all work stops, for else the process would wait for it


class Asked(NamedTuple):
    """What a visitor chose on the page, and the randomness."""

    options: DeidentifyOptions
    generator: torch.Generator


class Progress(NamedTuple):
    """How far the work on a video is: the stage, frames done and expected, and seconds until this stage ends.

    Stages are "analyse", "show" (portraits of the people are taken), "render" and "verify".
    """

    stage: str
    done: int
    total: int
    seconds_left: float

    def in_words(self) -> str:
        """A sentence for the page."""
        return f"{WORK[self.stage]}: {self.done} of about {self.total} frames, {self.seconds_left:.0f} s left."


class Stopped(BaseException):
    """Nobody waits for this work any more. Like `KeyboardInterrupt` it is no `Exception`, after which a face would be covered."""


class Watch:
    """Watches work in a thread: how far it is, and whether anybody still waits for it.

    Attributes:
        progress: the latest of a video, `None` before there is any.
    """

    def __init__(self):
        self.progress: Progress | None = None
        self._left, self._started = threading.Event(), {}

    def follow(
        self, function: Callable, pipe: DiffDeIDPipeline, *given: Any, meanwhile: Callable[[Progress | None], Any]
    ) -> Generator[Any, None, Any]:
        """Run a function in a thread: yields what `meanwhile` makes of its progress, and returns its result.

        Closing the generator stops the work at the next step of the denoiser, frame or search, and does not wait for that.

        On CPUs, all work is done in one thread. OpenMP keeps helper threads for every thread that it has worked for. When there
        are more of them than cores, each of them sleeps between any two layers, and a face takes half as long again.

        Args:
            function: gets a copy of the pipeline that stops when nobody waits any more, and `given`.
            pipe: is copied; the copy has the same components.
            given: further arguments of the function.
            meanwhile: called twice a second, with the progress of a video or `None`.
        """
        own = copy(pipe)  # on the same components
        own.callbacks = Callbacks(on_step=self.on_step)
        own.face_analyser, own.hand_finder = self._watched(pipe.face_analyser), self._watched(pipe.hand_finder)
        executor = ON_CPU if pipe.device.type == "cpu" else ThreadPoolExecutor(1)
        work = executor.submit(self._start, function, own, *given)
        try:
            while not wait([work], PATIENCE).done:
                yield meanwhile(self.progress)
            return work.result()
        finally:
            self._left.set()

    def _watched(self, model: OnnxModel | None) -> OnnxModel | None:
        """A copy of a model that stops at its next run if nobody waits any more: large photos are searched part by part."""
        if model is None:
            return None

        def run(*given: Any) -> list[np.ndarray]:
            self.check()
            return model.run(*given)

        watched = copy(model)
        watched.run = run
        return watched

    def _start(self, function: Callable, *given: Any) -> Any:
        self.check()
        return function(*given)

    def check(self) -> None:
        """Raise `Stopped` if nobody waits any more."""
        if self._left.is_set() or CLOSING.is_set():
            raise Stopped

    def on_step(self, step: int, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """A step for `Callbacks` that leaves the latents as they are."""
        self.check()
        return latents

    def on_frame(self, stage: str, done: int, total: int) -> None:
        """A function for `callback_on_frame` that notes the progress."""
        self.check()
        now = time.monotonic()
        elapsed = now - self._started.setdefault(stage, now)
        total = max(total, done)
        self.progress = Progress(stage, done, total, elapsed / max(done, 1) * (total - done))


class Uploads:
    """Knows which files the open pages show, and deletes a file once none of them shows it any more.

    Args:
        folder: nothing outside it is ever deleted.
        waiting: gives the files of requests that wait for their turn; these are not deleted.
    """

    def __init__(self, folder: Path, waiting: Callable[[], Iterable[str]]):
        self.folder, self._waiting = folder.resolve(), waiting
        self._shown: dict[str, set[Path]] = {}
        self._lock = threading.Lock()

    def show(self, page: str, files: Iterable[str]) -> None:
        """Say what a page shows from now on."""
        with self._lock:
            before = self._shown.get(page, set())
            self._shown[page] = _resolved(files)
            self._delete(before)

    def close(self, page: str) -> None:
        """Say that a page has gone."""
        with self._lock:
            self._delete(self._shown.pop(page, set()))

    def sweep(self, every: float, age: float) -> None:
        """Start a thread that deletes files older than `age` seconds, in rounds `every` so many seconds, until the server closes.
        Gradio's own `delete_cache` loses sight of the files of components that a handler has updated.
        """

        def work(closing: threading.Event) -> None:
            while not closing.wait(every):
                for file in self.folder.rglob("*"):
                    with suppress(FileNotFoundError):
                        if file.is_file() and time.time() - file.stat().st_mtime > age:
                            file.unlink()

        threading.Thread(target=work, args=[CLOSING], name="sweep", daemon=True).start()

    def _delete(self, files: set[Path]) -> None:
        for file in files.difference(_resolved(self._waiting()), *self._shown.values()):
            if file.is_relative_to(self.folder):
                file.unlink(missing_ok=True)


def _resolved(files: Iterable[str]) -> set[Path]:
    return {Path(file).resolve() for file in files}


def load_pipeline(model: str | Path) -> DiffDeIDPipeline:
    """The pipeline of a folder or Hub id, on the GPU if there is one, without progress bars."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = ON_CPU.submit(DiffDeIDPipeline.from_pretrained, model, dtype=precisions(device), use_safetensors=True).result()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def options(level: int, steps: int, keep_mouth: bool, attributes: str, seed: float | None) -> Asked:
    """What a visitor chose; without a seed, or with a negative one, randomness is fresh."""
    generator = torch.Generator()
    generator.seed() if seed is None or seed < 0 else generator.manual_seed(int(seed))
    chosen = {"level": int(level), "num_inference_steps": int(steps), "keep_mouth": keep_mouth, "attributes": attributes}
    return Asked(DeidentifyOptions(**chosen), generator)


def load_photo(path: str | Path) -> Picture:
    """Read a photo of at most `MAX_MEGAPIXELS`; its pixels are counted before they are decoded.

    Raises:
        ImageError: the file cannot be read, or is larger.
    """
    try:
        with Image.open(path) as header:
            pixels = header.width * header.height
    except Exception:  # no picture, or one that needs another decoder: `read_image` tells which
        pixels = 0
    picture = None if pixels > MAX_MEGAPIXELS * 1e6 else read_image(path)
    if picture is None or picture.image.width * picture.image.height > MAX_MEGAPIXELS * 1e6:
        raise ImageError(f"The photo has more than {MAX_MEGAPIXELS} megapixels. Scale it down first.")
    return picture


def find_faces(pipe: DiffDeIDPipeline, picture: Picture) -> list[Face]:
    """The faces of a photo, largest first.

    Raises:
        NoFaceFoundError: there is none.
        DiffDeIDError: there are more than `MAX_FACES`.
    """
    faces = pipe.detect_faces(np.asarray(picture.image))
    if not faces:
        raise NoFaceFoundError("No face was found, so nothing was changed.")
    if len(faces) > MAX_FACES:
        raise DiffDeIDError(f"The photo shows {len(faces)} faces, and the limit is {MAX_FACES}. The command line has no limit.")
    return faces


def replace_faces(
    pipe: DiffDeIDPipeline,
    picture: Picture,
    faces: list[Face],
    wanted: Iterable[int],
    chosen: Mapping[int, NewIdentity],
    asked: Asked,
) -> tuple[Image.Image, dict[int, FaceReport]]:
    """De-identify the wanted faces, and use the people `chosen` for some of them; gives the picture, and a report for each face.

    The numbers of `wanted`, `chosen` and the reports are those of `faces`, from 1.

    Raises:
        DiffDeIDError: no wanted face is in the photo.
    """
    wanted = [number for number in wanted if 1 <= number <= len(faces)]
    if not wanted:
        raise DiffDeIDError("None of the faces that were chosen is in this photo. Choose again.")
    people = {number - 1: identity for number, identity in chosen.items() if number in wanted}
    staying = frozenset(range(len(faces))).difference(number - 1 for number in wanted)
    job = PictureJob(np.asarray(picture.image), faces, draw_seeds(asked.generator, 1), identities=people, staying=staying)
    (((result, outcomes),),) = deidentify_pictures(pipe.engine, [job], asked.options)
    reports = {number + 1: FaceReport.of(faces[number], one, asked.options.fallback) for number, one in outcomes.items()}
    return Image.fromarray(result), reports


def write_result(
    pipe: DiffDeIDPipeline,
    target: Path,
    picture: Picture,
    image: Image.Image,
    faces: list[Face],
    reports: Mapping[int, FaceReport],
    photo: str | Path,
) -> None:
    """Write the result for the file `photo`, and check what was written: only faces without a report may still be in it.

    Raises:
        VerificationError: the written file shows another face of the source; it is not kept.
    """
    known = [Known(face, stays=number not in reports) for number, face in enumerate(faces, start=1)]
    check = picture_check(pipe.engine, picture, image, known)
    write_image(target, image, picture.alpha, picture.icc_profile, check=check, source=photo)


def sample_people(
    pipe: DiffDeIDPipeline, picture: Picture, faces: list[Face], number: int, count: int, asked: Asked
) -> list[tuple[np.ndarray, NewIdentity]]:
    """Sample `count` people for the face of a `number`, from 1; gives those who may replace it.

    Each comes as a crop `(S, S, 3)` that shows the new person, and as an identity.
    """
    staying = frozenset(range(len(faces))) - {number - 1}
    job = PictureJob(np.asarray(picture.image), faces, draw_seeds(asked.generator, count), staying=staying)
    (candidates,) = deidentify_pictures(pipe.engine, [job], asked.options)
    made = [(result, outcomes[number - 1]) for result, outcomes in candidates]
    return [
        (pipe.engine.crop(result, faces[number - 1]).image, outcome.identity)
        for result, outcome in made
        if isinstance(outcome, Replaced)
    ]


def preview(image: Image.Image) -> Image.Image:
    """A copy of a photo, no larger than a page shows it."""
    small = image.copy()
    small.thumbnail((PREVIEW, PREVIEW))
    return small


def name_of_result(photo: str | Path) -> str:
    """The file name of a result: in the format of the photo if pages can show it, else PNG."""
    suffix = Path(photo).suffix.lower()
    return f"{Path(photo).stem}_anonymized{suffix if suffix in SHOWABLE else '.png'}"


def find_people(pipe: DiffDeIDPipeline, video: str | Path, watch: Watch) -> tuple[VideoList, list[tuple[int, Image.Image]]]:
    """The people of a video within the limits of a page, and portraits of them with their numbers.

    Tracks of faces that look alike count as one person's, which may be wrong. So there is a portrait of every track.

    Raises:
        NoFaceFoundError: the video shows no face.
        VideoError: it cannot be read, or is beyond the limits.
    """
    check_video(video)
    listed = list_video(pipe, Path(video), callback_on_frame=_within_limits(watch))
    if not listed.tracks:
        raise NoFaceFoundError("No frame of the video shows a face.")
    shown: dict[int, list[ListedTrack]] = defaultdict(list)
    for track in listed.tracks:
        shown[reviewing.best_frame(track)].append(track)
    portraits = []
    for number, frame in enumerate(islice(VideoReader(video), max(shown) + 1)):
        watch.on_frame("show", number + 1, max(shown) + 1)
        portraits += [(track, _portrait(frame.picture, box_at(track.boxes, number))) for track in shown.get(number, [])]
    portraits.sort(key=lambda one: (one[0].person, one[0].id))
    return listed, [(track.person, portrait) for track, portrait in portraits]


def _portrait(picture: np.ndarray, box: np.ndarray) -> Image.Image:
    """A small picture of the face in a box `(4,)` of a picture `(H, W, 3)`."""
    half = (0.5 + ABOUT_FACE) * max(box[2:] - box[:2])
    centre = (box[:2] + box[2:]) / 2
    cut = Image.fromarray(picture).crop(tuple(np.concatenate([centre - half, centre + half]).round().astype(int).tolist()))
    cut.thumbnail((PORTRAIT, PORTRAIT))
    return cut


def deidentify_video(
    pipe: DiffDeIDVideoPipeline,
    video: str | Path,
    target: Path,
    asked: Asked,
    watch: Watch,
    wanted: Sequence[int] = (),
    listed: VideoList | None = None,
) -> DiffDeIDVideoPipelineOutput:
    """De-identify everybody in a video within the limits of a page, or only those people of its list whose numbers are `wanted`.

    Raises:
        VideoError: the video is beyond the limits, the list is of another video, or a wanted person is not in it.
    """
    check_video(video)
    faces = _left_as_they_are(video, wanted, listed) if wanted else None
    choices = asdict(asked.options) | {"faces": faces}
    return pipe(video, target, generator=asked.generator, callback_on_frame=_within_limits(watch), **choices)


def _within_limits(watch: Watch) -> Callable[[str, int, int], None]:
    """The `on_frame` of a watch that also refuses too many frames: a file need not say how long it is."""

    def on_frame(stage: str, done: int, total: int) -> None:
        if done > MAX_FRAMES:
            raise VideoError(f"The video has more than {MAX_FRAMES} frames. Cut it, or use the command line, which has no limit.")
        watch.on_frame(stage, done, total)

    return on_frame


def _left_as_they_are(video: str | Path, wanted: Sequence[int], listed: VideoList | None) -> VideoList:
    """The list of a video in which everybody is kept except those who are wanted."""
    if listed is None or listed.source.fingerprint != fingerprint(Path(video)):
        raise VideoError("The people of this video are not known yet. Find its people first, and choose among them.")
    if unknown := set(wanted) - {track.person for track in listed.tracks}:
        raise VideoError(f"There is no person {min(unknown)} in this video. Choose again.")
    for track in listed.tracks:
        if track.person not in wanted:
            listed = reviewing.keep(listed, track.id)
    return listed


def check_video(path: str | Path) -> None:
    """Raise `VideoError` for a video that is too long or too large for a page."""
    reader = VideoReader(path)
    if reader.num_frames > MAX_FRAMES:
        seconds = MAX_FRAMES / float(reader.rate)
        raise VideoError(f"The video is longer than {seconds:.0f} seconds. Cut it, or use the command line, which has no limit.")
    if max(next(iter(reader)).picture.shape) > MAX_SIDE:
        raise VideoError(f"The video is larger than {MAX_SIDE} pixels. Scale it down, or use the command line.")


def seconds_for_video(path: str | Path, *_: Any) -> int:
    """How long a video may take on a GPU, generously counted; the other inputs of its handler do not matter."""
    return 60 + (VideoReader(path).num_frames // 10 if path else 0)


def in_words(number: int, report: FaceReport | PersonReport | None) -> str:
    """A sentence about a face, or a person of a video; one without a report was left as it is, as chosen."""
    who = f"**{'Person' if isinstance(report, PersonReport) else 'Face'} {number}**"
    if report is None or report.method == "kept":
        return f"{who} was left unchanged, as you chose."
    if report.method != "diffusion":
        tried = f", after {report.attempts} attempts" if report.attempts else ""
        return f"{who} is covered ({report.method}){tried}: {report.reason}."
    if report.identity_distance is None:
        return f"{who} is covered in all frames: {report.reason}."
    attempts = f", after {report.attempts} attempts" if report.attempts > 1 else ""
    return f"{who} is somebody else now, at a distance of {report.identity_distance:.2f} from the source{attempts}."
