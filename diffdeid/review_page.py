"""The page of `diffdeid review`, for somebody at this computer: faces are looked over and corrected, and the result is written.

It is served to this computer alone. What Gradio keeps lies in a folder that goes when the page is closed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image

from diffdeid import reviewing, serving
from diffdeid.engine.pictures import draw_seeds
from diffdeid.engine.review import PictureReview
from diffdeid.engine.written import Known, picture_check
from diffdeid.errors import DiffDeIDError
from diffdeid.face_lists import FaceList, Source, VideoList, refuse_stale
from diffdeid.io.files import fingerprint
from diffdeid.io.images import check_writable, read_with_fingerprint, write_image
from diffdeid.io.video_reader import VideoReader
from diffdeid.io.video_writer import check_video_writable
from diffdeid.options import DeidentifyOptions, VideoOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_video import DiffDeIDVideoPipeline
from diffdeid.stages.denoise import Callbacks

ABOUT = """# Look over and correct
Click a face, or choose it below, where doubtful ones come first. Every face becomes somebody else or is covered, but for those
that you delete or keep. **This page shows the source.**"""


class PhotoDesk:
    """A photo that is looked over. Only faces whose own entry in the list changed are rendered again.

    Args:
        pipe: de-identifies.
        file: the photo.
        lists: lists of faces, its own among them, and `list_path`, where they lie.
        output: where the result is written; `overwrite` says whether a file may be there.
        options: what becomes of faces.
    """

    def __init__(
        self,
        pipe: DiffDeIDPipeline,
        file: Path,
        lists: dict[Path, FaceList],
        list_path: Path,
        output: Path,
        options: VideoOptions,
        overwrite: bool = False,
    ):
        self.pipe = copy(pipe)  # on the same components
        self.pipe.callbacks = Callbacks(on_step=_go_on)
        self.file, self.lists, self.list_path, self.output = file, lists, list_path, output
        self.options, self.overwrite = options, overwrite
        self._open()

    @property
    def listed(self) -> FaceList:
        """The list that was saved last."""
        return self.lists[self.file.resolve()]

    def _open(self) -> None:
        self.source, mark = read_with_fingerprint(self.file)
        refuse_stale(self.listed, Source(mark, *self.source.image.size))
        check_writable(self.output, self.source.alpha is not None, self.overwrite)
        generator = torch.Generator().manual_seed(self.listed.seed)
        seed, picture = draw_seeds(generator, 1)[0], np.asarray(self.source.image)
        self.review = PictureReview(self.pipe.engine, picture, self.options.as_kind(DeidentifyOptions), seed)

    def picture(self, frame: int) -> np.ndarray:
        """What the page shows of the source."""
        return np.asarray(self.source.image)

    def write(self, listed: FaceList) -> tuple[Path, list[str]]:
        """Save a list, and write the result that it describes; says what happened to each face."""
        self.save(listed)
        result, reports = self.review.render(listed.faces)
        image, source = Image.fromarray(result), self.source
        known = [Known.of(report) for report in reports.values()]
        check = picture_check(self.pipe.engine, source, image, known, search=False)
        write_image(self.output, image, source.alpha, source.icc_profile, self.overwrite, check, self.file)
        self.overwrite = True  # the one that we have written
        return self.output, [_sentence(number, report) for number, report in reports.items()]

    def save(self, listed: FaceList) -> None:
        """Save a list of faces."""
        self.lists[self.file.resolve()] = listed
        reviewing.save_list(self.lists, self.list_path)

    def close(self) -> None:
        """Nobody looks at it any more."""


class VideoDesk(PhotoDesk):
    """A video that is looked over. Only parts that a correction changes are rendered again."""

    def _open(self) -> None:
        refuse_stale(self.listed, replace(self.listed.source, fingerprint=fingerprint(self.file)))
        check_video_writable(self.output, self.overwrite, self.file)
        self.rate = VideoReader(self.file).rate
        self.times = [frame.time for frame in VideoReader(self.file)]

    def picture(self, frame: int) -> np.ndarray:
        """What the page shows of the source."""
        start = max(float(self.times[frame]) - 0.25 / float(self.rate), 0)
        return next(iter(VideoReader(self.file, start or None))).picture

    def write(self, listed: FaceList) -> tuple[Path, list[str]]:
        """Save a list, and write the result that it describes; says what happened to everybody."""
        self.save(listed)
        pipe, generator = DiffDeIDVideoPipeline.sharing(self.pipe), torch.Generator().manual_seed(listed.seed)
        pipe.set_progress_bar_config(disable=True)
        choices = asdict(self.options) | {"faces": listed, "resume": True, "overwrite": self.overwrite}
        made = pipe(self.file, self.output, generator=generator, callback_on_frame=_go_on, **choices)
        self.overwrite = True  # the one that we have written
        return made.path, [_sentence(one.number, one) for one in made.people]

    def close(self) -> None:
        """Throw away the parts of the result that were kept to be used again."""
        shutil.rmtree(self.output.with_name(f".{self.output.name}.parts"), ignore_errors=True)


def _go_on(_, __, last):
    """For the callbacks of steps, which are given latents last and give them back, and of frames: stops when the page closes."""
    if serving.CLOSING.is_set():
        raise serving.Stopped
    return last


def _sentence(number: int, report) -> str:
    return f"**Face {number}** is left as it is, as you chose." if report.method == "kept" else serving.in_words(number, report)


def open_desk(
    pipe: DiffDeIDPipeline,
    file: Path,
    list_path: Path,
    output: Path,
    options: VideoOptions,
    seed: int | None = None,
    overwrite: bool = False,
) -> PhotoDesk:
    """A photo or video and its list, which is made if there is none. The list keeps the seed, or a choice would mean nothing."""
    lists = reviewing.open_list(pipe, file, list_path, options.threshold)
    listed = lists[file.resolve()]
    if listed.seed is None or seed is not None:
        lists[file.resolve()] = replace(listed, seed=secrets.randbits(62) if seed is None else seed)
    desk = VideoDesk if isinstance(listed, VideoList) else PhotoDesk
    return desk(pipe, file, lists, list_path, output, options, overwrite)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """What goes wrong, for the page."""
    try:
        yield
    except (DiffDeIDError, ValueError, OSError) as error:
        raise gr.Error(str(error)) from error
    except serving.Stopped:
        raise gr.Error("The page is closing down.") from None


def build_review(desk: PhotoDesk) -> gr.Blocks:
    """The page around a photo or video."""
    video, frames = isinstance(desk.listed, VideoList), max(desk.listed.source.frames, 1)

    def shown(listed: FaceList, number: int | None, frame: float):
        """All that a correction or a choice changes on the page."""
        with errors_in_words():
            picture = reviewing.draw(desk.picture(int(frame)), listed, int(frame), number)
            line = reviewing.timeline(listed, int(frame), number) if video else ""
            known = [one for _, one in reviewing.queue(listed)]
            choice = gr.update(choices=reviewing.queue(listed), value=number if number in known else None)
            return picture, line, choice

    def corrected(correct: Callable) -> Callable:
        """A handler that makes another list of the one that there is."""

        def handle(listed: FaceList, number: int | None, *values):
            with errors_in_words():
                return correct(listed, number, *values)

        return handle

    def chosen(function: Callable) -> Callable:
        def correct(listed: FaceList, number: int | None, *values):
            if number is None:
                raise ValueError("Click a face first, or choose one of the list.")
            return function(listed, number, *values)

        return corrected(correct)

    def assigned(listed: FaceList, number: int, who: int | None) -> FaceList:
        if not who:
            raise ValueError("Say whose track it is: type the number of a person, from 1.")
        return reviewing.assign(listed, number, who)

    def write(listed: FaceList):
        with errors_in_words():
            path, sentences = serving.ON_CPU.submit(desk.write, listed).result()  # one thread: see `serving.Watch.follow`
            shown = str(path.resolve()) if video else np.asarray(Image.open(path).convert("RGB"))
            return shown, "\n\n".join([*sentences, f"Written to {path.name}; the list of faces to {desk.list_path.name}."])

    def click(listed, frame, drawing, x0, y0, event: gr.SelectData):
        """A click chooses whose box it is in; while somebody draws, it is a corner of a box."""
        x, y = event.index
        if not drawing:
            return reviewing.number_at(listed, int(frame), x, y), x0, y0, gr.skip(), gr.skip()
        if drawing == "first corner":
            return None, x, y, gr.skip(), gr.skip()
        return None, min(x0, x), min(y0, y), max(x0, x), max(y0, y)

    with gr.Blocks(title="DiffDeID review", analytics_enabled=False) as demo:
        gr.Markdown(ABOUT)
        listed = gr.State(desk.listed)
        with gr.Row():
            with gr.Column(scale=2):
                picture = gr.Image(label="Source, with its faces", interactive=False, format="jpeg", buttons=["fullscreen"])
                frame = gr.Slider(0, max(frames - 1, 1), value=0, step=1, label="Frame", visible=video)
                line = gr.HTML(visible=video)
                number = gr.Radio(reviewing.queue(desk.listed), label="Faces, doubtful ones first", type="value")
            with gr.Column():
                another = gr.Button("Another new face")
                strike = gr.Button("This is no face: delete it" + (" in the frames below" if video else ""))
                keep = gr.Button("Leave this person as they are, on purpose", variant="stop")
                restore = gr.Button("Take deleting and keeping back")
                with gr.Row(visible=video):
                    first = gr.Number(0, label="First frame", precision=0)
                    last = gr.Number(frames - 1, label="Last frame", precision=0)
                    person = gr.Number(0, label="Person (0: somebody new)", precision=0)
                    assign = gr.Button("The track is of this person")
                corner = gr.Radio([("choose", ""), ("set the first corner", "first corner"), ("set the second", "second corner")],
                                  value="", label="Clicks in the picture")  # fmt: skip
                with gr.Row():
                    box = [gr.Number(0, label=label) for label in ("left", "top", "right", "bottom")]
                add = gr.Button("Add this box" + (" in these frames, of this person" if video else ""))
                move = gr.Button("Move the chosen face there", visible=not video)
                go = gr.Button("Write the result", variant="primary")
                result = (gr.Video if video else gr.Image)(label="Result", interactive=False, buttons=["download"])
                report = gr.Markdown()

        view = {"fn": shown, "inputs": [listed, number, frame], "outputs": [picture, line, number], "show_progress": "hidden"}
        demo.load(lambda: desk.listed, None, listed, show_progress="hidden").then(**view)  # what is above is older, and a copy
        number.input(**view)
        frame.release(**view)
        given = [listed, number]
        for button, function, more in (
            (another, chosen(reviewing.another), []),
            (strike, chosen(reviewing.strike), [first, last]),
            (keep, chosen(reviewing.keep), []),
            (restore, chosen(reviewing.restore), []),
            (assign, chosen(assigned), [person]),
            (move, chosen(lambda one, chosen, *sides: reviewing.move(one, chosen, sides)), box),
            (add, corrected(lambda one, _, start, end, who, *sides: reviewing.add(one, sides, start, end, who or None)),
             [first, last, person, *box]),
        ):  # fmt: skip
            button.click(function, [*given, *more], listed, show_progress="hidden").success(**view)
        picture.select(click, [listed, frame, corner, *box[:2]], [number, *box], show_progress="hidden").then(**view)
        go.click(write, listed, [result, report], concurrency_limit=1)
    return demo


def launch(desk: PhotoDesk, **options) -> gr.Blocks:
    """Serve the page to this computer; of all files beside those of the page itself, only the result."""
    page = build_review(desk)
    allowed = [str(desk.output.resolve())]
    page.launch(server_name="127.0.0.1", share=False, allowed_paths=allowed, footer_links=[], run_history=False, **options)
    return page


def show(desk: PhotoDesk, port: int | None = None, open_browser: bool = True) -> None:
    """Serve the page until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="diffdeid-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            launch(desk, server_port=port, inbrowser=open_browser)
        finally:
            serving.CLOSING.set()
            serving.ON_CPU.shutdown(cancel_futures=True)  # what is under way writes beside the output until its next step
            desk.close()
