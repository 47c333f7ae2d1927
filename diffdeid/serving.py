"""What a page for the public does with the pipelines: limits first, one face at a time, progress, words. No web framework."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from diffdeid.engine.pictures import PictureJob, deidentify_pictures, draw_seeds
from diffdeid.engine.reports import FaceReport, PersonReport
from diffdeid.errors import DiffDeIDError, ImageError, NoFaceFoundError, VideoError
from diffdeid.io.images import Picture, read_image
from diffdeid.io.video_reader import VideoReader
from diffdeid.options import DeidentifyOptions
from diffdeid.pipelines.loading import precisions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_output import DiffDeIDVideoPipelineOutput
from diffdeid.pipelines.pipeline_video import DiffDeIDVideoPipeline
from diffdeid.structures import Face, NewIdentity, Replaced
from diffdeid.visualization import stages

MAX_MEGAPIXELS, MAX_FACES, MAX_FRAMES, MAX_SIDE = 25, 40, 750, 1920  # a page's; pipelines have none of these
PREVIEW = 1280  # pixels of the longer side
SHOWABLE = (".jpg", ".jpeg", ".png", ".webp")
ON_CPU = ThreadPoolExecutor(1, "networks")
CLOSING = threading.Event()  # set when the server has closed: videos on their way stop, or the process would wait for them


class Asked(NamedTuple):
    """What somebody chose on the page, and the randomness."""

    options: DeidentifyOptions
    generator: torch.Generator


class Progress(NamedTuple):
    """How far a video is: "analyse" or "render", frames done and expected, and seconds until this stage ends."""

    stage: str
    done: int
    total: int
    seconds_left: float


def in_one_thread(function: Callable) -> Callable:
    """A function of a pipeline that works in the same thread as all others, on CPUs.

    OpenMP keeps helpers for every thread that it has worked for. When they are more than cores, each of them sleeps between any
    two layers, and a face takes half as long again.
    """

    @wraps(function)
    def work(pipe: DiffDeIDPipeline, *args: Any, **options: Any) -> Any:
        if pipe.device.type != "cpu":
            return function(pipe, *args, **options)
        return ON_CPU.submit(function, pipe, *args, **options).result()

    return work


def load_pipeline(model: str) -> DiffDeIDPipeline:
    """The pipeline of a folder or Hub id, on the GPU if there is one, without bars on a console that nobody watches."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = ON_CPU.submit(DiffDeIDPipeline.from_pretrained, model, dtype=precisions(device), use_safetensors=True).result()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


show_stages = in_one_thread(stages)
run_video = in_one_thread(DiffDeIDVideoPipeline.__call__)


def options(level: int, steps: int, keep_mouth: bool, attributes: str, seed: float | None) -> Asked:
    """What somebody chose; without a seed, or with a negative one, fresh randomness."""
    generator = torch.Generator()
    generator.seed() if seed is None or seed < 0 else generator.manual_seed(int(seed))
    chosen = {"level": int(level), "num_inference_steps": int(steps), "keep_mouth": keep_mouth, "attributes": attributes}
    return Asked(DeidentifyOptions(**chosen), generator)


def load_photo(path: str | Path) -> Picture:
    """A photo of at most `MAX_MEGAPIXELS`, which are counted before they are decoded."""
    try:
        with Image.open(path) as header:
            pixels = header.width * header.height
    except Exception:  # no picture, or one that needs a decoder of ours: the reader says which
        pixels = 0
    picture = None if pixels > MAX_MEGAPIXELS * 1e6 else read_image(path)
    if picture is None or picture.image.width * picture.image.height > MAX_MEGAPIXELS * 1e6:
        raise ImageError(f"The photo has more than {MAX_MEGAPIXELS} megapixels. Scale it down first.")
    return picture


def find_faces(pipe: DiffDeIDPipeline, picture: Picture) -> list[Face]:
    """The faces of a photo, largest first; at most `MAX_FACES`."""
    faces = pipe.detect_faces(np.asarray(picture.image))
    if not faces:
        raise NoFaceFoundError("No face was found, so nothing was changed.")
    if len(faces) > MAX_FACES:
        raise DiffDeIDError(f"The photo shows {len(faces)} faces, and {MAX_FACES} are the limit here. The command line has none.")
    return faces


@in_one_thread
def replace_faces(
    pipe: DiffDeIDPipeline,
    picture: Picture,
    faces: list[Face],
    wanted: Iterable[int],
    chosen: Mapping[int, NewIdentity],
    asked: Asked,
) -> tuple[Image.Image, dict[int, FaceReport]]:
    """De-identify the wanted faces, some of them as somebody `chosen`; the picture, and a report for each.

    Numbers count from 1.
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


@in_one_thread
def sample_people(
    pipe: DiffDeIDPipeline, picture: Picture, faces: list[Face], number: int, count: int, asked: Asked
) -> list[tuple[np.ndarray, NewIdentity]]:
    """Of `count` people sampled for one of all `faces`, counted from 1, those who may replace it.

    Gives crops `(S, S, 3)` that show them, and their identities.
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
    """No larger than a page shows it."""
    small = image.copy()
    small.thumbnail((PREVIEW, PREVIEW))
    return small


def name_of_result(photo: str | Path) -> str:
    """In the format of the photo where pages can show it, else as PNG."""
    suffix = Path(photo).suffix.lower()
    return f"{Path(photo).stem}_anonymized{suffix if suffix in SHOWABLE else '.png'}"


def check_video(path: str | Path) -> None:
    """Complain about a video that is too long or too large for a page."""
    reader = VideoReader(path)
    if reader.num_frames > MAX_FRAMES:
        seconds = MAX_FRAMES / float(reader.rate)
        raise VideoError(f"The video is longer than {seconds:.0f} seconds. Cut it, or use the command line, which has no limit.")
    if max(next(iter(reader)).picture.shape) > MAX_SIDE:
        raise VideoError(f"The video is larger than {MAX_SIDE} pixels. Scale it down, or use the command line.")


def seconds_for_video(path: str | Path, *_: Any) -> int:
    """How long a video may take on a GPU, generously counted; the other inputs of its handler do not matter."""
    return 60 + (VideoReader(path).num_frames // 10 if path else 0)


def follow_video(
    pipe: DiffDeIDVideoPipeline, video: str | Path, target: Path, asked: Asked
) -> Iterator[Progress | DiffDeIDVideoPipelineOutput]:
    """De-identify a video in a thread: says how far it is, then gives the output. Closing the iterator stops the work."""
    news: queue.Queue = queue.Queue()
    stopped, started = threading.Event(), {}

    def tell(stage: str, done: int, total: int) -> None:
        if stopped.is_set() or CLOSING.is_set():
            raise InterruptedError("Nobody waits for this video any more.")
        if done > MAX_FRAMES:  # a file need not say how long it is
            raise VideoError(f"The video has more than {MAX_FRAMES} frames. Cut it, or use the command line, which has no limit.")
        elapsed = time.monotonic() - started.setdefault(stage, time.monotonic())
        total = max(total, done)
        news.put(Progress(stage, done, total, elapsed / max(done, 1) * (total - done)))

    def work() -> None:
        try:
            options = asdict(asked.options)
            news.put(run_video(pipe, video, target, generator=asked.generator, callback_on_frame=tell, **options))
        except BaseException as error:
            news.put(error)

    thread = threading.Thread(target=work, name=f"de-identify {video}")
    thread.start()
    try:
        while isinstance(update := news.get(), Progress):
            yield update
        if isinstance(update, BaseException):
            raise update
        yield update
    finally:
        stopped.set()
        thread.join()


def in_words(number: int, report: FaceReport | PersonReport | None) -> str:
    """A sentence about a face, or a person of a video; no report: it was to stay."""
    if report is None:
        return f"**Face {number}** was left as it was, as you chose."
    if report.method != "diffusion":
        tried = f", after {report.attempts} attempts" if report.attempts else ""
        return f"**Face {number}** is covered ({report.method}){tried}: {report.reason}."
    if report.identity_distance is None:
        return f"**Face {number}** is covered in all frames: {report.reason}."
    attempts = f", at the attempt number {report.attempts}" if report.attempts > 1 else ""
    return f"**Face {number}** is somebody else, at a distance of {report.identity_distance:.2f} from before{attempts}."
