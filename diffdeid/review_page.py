"""The page of `diffdeid review`: somebody at this computer looks over faces, corrects them, and writes the result.

It is served to this computer only. What Gradio stores lies in a folder that is deleted when the page is closed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image

from diffdeid import reviewing, serving
from diffdeid.engine.pictures import draw_seeds
from diffdeid.engine.reports import FaceReport, PersonReport
from diffdeid.engine.review import PictureReview
from diffdeid.engine.written import Known, picture_check
from diffdeid.errors import DiffDeIDError
from diffdeid.face_lists import FaceList, Source, VideoList, read_face_list, refuse_stale
from diffdeid.io.files import fingerprint
from diffdeid.io.images import check_writable, read_with_fingerprint, write_image
from diffdeid.io.video_reader import VideoReader
from diffdeid.io.video_writer import check_video_writable
from diffdeid.options import DeidentifyOptions, VideoOptions
from diffdeid.pipelines.pipeline_diffdeid import DiffDeIDPipeline
from diffdeid.pipelines.pipeline_video import DiffDeIDVideoPipeline
from diffdeid.reviewing import Written

ABOUT = """# Look over and correct
Click a face, or choose it in the list. Doubtful faces come first there, and their boxes are orange. Then correct it. Every face
is replaced or covered, except for those that you delete or keep. Each correction is saved at once. **This page shows the
source.**"""
STOPPED = "Stopped. Corrections are saved. No new result was written; one that was there before is still there."


class PhotoDesk:
    """A photo under review. Only faces whose own entry in the list changed are rendered again.

    The list is kept in its file only. Several pages may show it, and other programs may write it. So a correction comes with the
    list that it corrects, and is refused if the file holds another one by now.

    Args:
        pipe: de-identifies the photo.
        file: the photo.
        list_path: a file with lists of faces, among them that of the photo.
        output: where the result is written; `overwrite` says whether a file may be there.
        options: how faces are replaced.

    Attributes:
        written: what is known of the last result; `None` before there is one.
    """

    def __init__(
        self,
        pipe: DiffDeIDPipeline,
        file: Path,
        list_path: Path,
        output: Path,
        options: VideoOptions,
        overwrite: bool = False,
    ):
        self.pipe, self.file, self.list_path, self.output = pipe, file, list_path, output
        self.options, self.overwrite = options, overwrite
        self.written: Written | None = None
        self._steps: list[tuple[FaceList, FaceList]] = []  # of each correction the list before it and after it
        self._saving, self._writing = threading.Lock(), threading.Lock()
        opened = read_face_list(list_path)[file.resolve()]
        self._kind = opened.source, opened.seed  # what all lists of this page have in common
        self._open(opened)

    @property
    def listed(self) -> FaceList:
        """The list as it is in its file.

        Raises:
            ValueError: the file cannot be read, or does not list the photo any more with the seed that it had.
        """
        listed = read_face_list(self.list_path).get(self.file.resolve())
        if listed is None or (listed.source, listed.seed) != self._kind:
            raise ValueError(
                f"`{self.list_path}` does not list `{self.file.name}` any more with the seed that it had. "
                "End `diffdeid review` with Ctrl-C, and start it again."
            )
        return listed

    def correct(self, seen: FaceList, correction: Callable[[FaceList], FaceList]) -> FaceList:
        """Correct the list that a page shows, and save it; gives the corrected list.

        Raises:
            ValueError: the list is no longer the one in the file, or cannot be corrected like that.
        """
        corrected = correction(seen)
        self._save(seen, corrected)
        self._steps.append((seen, corrected))
        return corrected

    def undo(self, seen: FaceList) -> FaceList:
        """Take the last correction back; gives the list before it.

        Raises:
            ValueError: there is no correction, or the list is no longer the one in the file.
        """
        if not self._steps or self._steps[-1][1] != seen:
            raise ValueError("There is no correction to take back.")
        before = self._steps[-1][0]
        self._save(seen, before)
        self._steps.pop()
        return before

    def _save(self, seen: FaceList, listed: FaceList) -> None:
        with self._saving:
            self._refuse_other(seen)
            lists = read_face_list(self.list_path) | {self.file.resolve(): listed}
            reviewing.save_list(lists, self.list_path)

    def _refuse_other(self, seen: FaceList) -> None:
        if self.listed != seen:
            raise ValueError("Another page or program changed this list of faces. Load this page again, and go on from there.")

    def _open(self, listed: FaceList) -> None:
        self.source, mark = read_with_fingerprint(self.file)
        refuse_stale(listed, Source(mark, *self.source.image.size))
        check_writable(self.output, self.source.alpha is not None, self.overwrite)
        generator = torch.Generator().manual_seed(listed.seed)
        seed, picture = draw_seeds(generator, 1)[0], np.asarray(self.source.image)
        self.review = PictureReview(self.pipe.engine, picture, self.options.as_kind(DeidentifyOptions), seed)

    def picture(self, frame: int) -> np.ndarray:
        """What the page shows of the source."""
        return np.asarray(self.source.image)

    def write(self, pipe: DiffDeIDPipeline, seen: FaceList, watch: serving.Watch) -> list[str]:
        """Write the result that a list describes; gives a sentence about each face or person. `serving.Watch.follow` runs it.

        Raises:
            ValueError: the list is no longer the one in the file.
        """
        with self._writing:  # stopped work goes on until its next step
            self._refuse_other(seen)
            reports = self._write(pipe, seen, watch)
            self.overwrite = True  # the file there is our own from now on
            self.written = Written.of(seen, reports, pipe.config.identity_limit)
        return [serving.in_words(number, report) for number, report in reports.items()]

    def _write(self, pipe: DiffDeIDPipeline, listed: FaceList, watch: serving.Watch) -> dict[int, FaceReport | PersonReport]:
        self.review.engine = pipe.engine  # that of the pipeline whose steps are watched
        result, reports = self.review.render(listed.faces)
        image, source = Image.fromarray(result), self.source
        known = [Known.of(report) for report in reports.values()]
        passes = picture_check(self.pipe.engine, source, image, known, search=False)

        def check(written: Path) -> None:
            passes(written)
            watch.check()

        write_image(self.output, image, source.alpha, source.icc_profile, self.overwrite, check, self.file)
        return reports

    def close(self) -> None:
        """Clean up after the review; for a photo there is nothing to do."""


class VideoDesk(PhotoDesk):
    """A video under review. Only parts that a correction changes are rendered again."""

    def _open(self, listed: FaceList) -> None:
        refuse_stale(listed, replace(listed.source, fingerprint=fingerprint(self.file)))
        check_video_writable(self.output, self.overwrite, self.file)
        self.rate = VideoReader(self.file).rate
        self.times = [frame.time for frame in VideoReader(self.file)]

    def picture(self, frame: int) -> np.ndarray:
        """What the page shows of the source."""
        start = max(float(self.times[frame]) - 0.25 / float(self.rate), 0)
        return next(iter(VideoReader(self.file, start or None))).picture

    def _write(self, pipe: DiffDeIDPipeline, listed: FaceList, watch: serving.Watch) -> dict[int, FaceReport | PersonReport]:
        of_video, generator = DiffDeIDVideoPipeline.sharing(pipe), torch.Generator().manual_seed(listed.seed)
        of_video.set_progress_bar_config(disable=True)
        choices = asdict(self.options) | {"faces": listed, "resume": True, "overwrite": self.overwrite}
        made = of_video(self.file, self.output, generator=generator, callback_on_frame=watch.on_frame, **choices)
        return {one.number: one for one in made.people}

    def close(self) -> None:
        """Delete the parts of the result that were kept to be used again."""
        with self._writing:
            shutil.rmtree(self.output.with_name(f".{self.output.name}.parts"), ignore_errors=True)


def open_desk(
    pipe: DiffDeIDPipeline,
    file: Path,
    list_path: Path,
    output: Path,
    options: VideoOptions,
    seed: int | None = None,
    overwrite: bool = False,
) -> PhotoDesk:
    """Open a photo or video for review; its list of faces is made if there is none.

    The list keeps the seed: with another one, the candidates that were chosen would be other people.

    Raises:
        DiffDeIDError: the file cannot be searched, or the output not be written.
        ValueError: the list cannot be used, see `reviewing.open_list`.
    """
    lists = reviewing.open_list(pipe, file, list_path, options.threshold)
    listed = lists[file.resolve()]
    if listed.seed is None or seed not in (None, listed.seed):
        listed = replace(listed, seed=secrets.randbits(62) if seed is None else seed)
        reviewing.save_list(lists | {file.resolve(): listed}, list_path)
    desk = VideoDesk if isinstance(listed, VideoList) else PhotoDesk
    return desk(pipe, file, list_path, output, options, overwrite)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn errors into messages for the page."""
    try:
        yield
    except (DiffDeIDError, ValueError, OSError) as error:
        raise gr.Error(str(error)) from error
    except serving.Stopped:
        raise gr.Error("The page is closing down.") from None


def build_review(desk: PhotoDesk) -> gr.Blocks:
    """The page on which a photo or video is reviewed."""
    opened = desk.listed
    video, frames = isinstance(opened, VideoList), max(opened.source.frames, 1)

    def shown(listed: FaceList, number: int | None, frame: float, *sides):
        """All that a correction or a choice changes on the page."""
        with errors_in_words():
            pending = sides if any(sides) and None not in sides else None
            picture = reviewing.draw(desk.picture(int(frame)), listed, int(frame), number, desk.written, pending)
            line = reviewing.timeline(listed, int(frame), number, desk.written) if video else ""
            queue = reviewing.queue(listed, desk.written)
            return picture, line, gr.update(choices=queue, value=number if number in [one for _, one in queue] else None)

    def corrected(correct: Callable) -> Callable:
        """A handler that puts a corrected list in the place of the one that the page shows."""

        def handle(listed: FaceList, number: int | None, *values):
            with errors_in_words():
                if None in values:
                    raise ValueError("A field is empty. Type a number into it.")
                return desk.correct(listed, lambda seen: correct(seen, number, *values))

        return handle

    def chosen(function: Callable) -> Callable:
        def correct(listed: FaceList, number: int | None, *values):
            if number is None:
                raise ValueError("Click a face first, or choose one in the list.")
            return function(listed, number, *values)

        return corrected(correct)

    def undo(listed: FaceList):
        with errors_in_words():
            return desk.undo(listed)

    def reloaded():
        with errors_in_words():
            return desk.listed

    def write(listed: FaceList):
        watch = serving.Watch()
        with errors_in_words():
            sentences = yield from watch.follow(desk.write, desk.pipe, listed, watch, meanwhile=how_far)
            result = str(desk.output.resolve()) if video else np.asarray(Image.open(desk.output).convert("RGB"))
        yield result, "\n\n".join([*sentences, f"Written to {desk.output.name}; the list of faces is {desk.list_path.name}."])

    def click(listed, number, frame, drawing, x0, y0, event: gr.SelectData):
        """A click chooses the face whose box it is in; while a box is drawn, it sets one of its corners."""
        x, y = event.index
        if not drawing:
            return reviewing.number_at(listed, int(frame), x, y), "", gr.skip(), gr.skip(), gr.skip(), gr.skip()
        if drawing == "first corner":
            return number, "second corner", x, y, x, y
        return number, "", min(x0, x), min(y0, y), max(x0, x), max(y0, y)

    def look_at(listed, number, frame):
        """The frame in which to look at a track, and the first and the last frame of the track."""
        with errors_in_words():
            return reviewing.frame_of(listed, number, int(frame), desk.written), *reviewing.span_of(listed, number)

    with gr.Blocks(title="DiffDeID review", analytics_enabled=False) as demo:
        gr.Markdown(ABOUT)
        listed = gr.State(opened)
        with gr.Row():
            with gr.Column(scale=2):
                picture = gr.Image(show_label=False, interactive=False, format="jpeg", buttons=[])
                frame = gr.Slider(0, max(frames - 1, 1), value=0, step=1, label="Frame", visible=video)
                line = gr.HTML(visible=video)
                number = gr.Radio(reviewing.queue(opened), label="Faces, doubtful ones first", type="value")
            with gr.Column():
                gr.Markdown("**The chosen face**")
                another = gr.Button("Another new face")
                with gr.Row(visible=video):
                    first = gr.Number(0, label="First frame", precision=0, min_width=120)
                    last = gr.Number(frames - 1, label="Last frame", precision=0, min_width=120)
                strike = gr.Button("This is no face: delete it" + (" in these frames" if video else ""))
                keep = gr.Button("Leave this person as they are, on purpose", variant="stop")
                restore = gr.Button("No longer delete or keep it")
                person = gr.Number(0, label="Person (0: somebody new)", precision=0, visible=video)
                assign = gr.Button("The track is of this person", visible=video)
                gr.Markdown("**A face that was missed**" if video else "**A face that was missed, or is elsewhere**")
                clicks = [("the face that is chosen", ""), ("first corner of a box", "first corner"), ("second corner",) * 2]
                corner = gr.Radio(clicks, value="", label="A click in the picture is the …")
                with gr.Row():
                    box = [gr.Number(0, label=label, min_width=70) for label in ("left", "top", "right", "bottom")]
                add = gr.Button("Add this box" + (" in the frames above, of the person above" if video else ""))
                move = gr.Button("Move the chosen face there", visible=not video)
                gr.Markdown("**Everything**")
                back = gr.Button("Take the last correction back")
                with gr.Row():
                    go = gr.Button("Write the result", variant="primary")
                    stop = gr.Button("Stop")
                report = gr.Markdown()
                result = (gr.Video if video else gr.Image)(label="Result", interactive=False, buttons=["download"])

        quiet = {"show_progress": "hidden"}
        view = {"fn": shown, "inputs": [listed, number, frame, *box], "outputs": [picture, line, number]} | quiet
        demo.load(reloaded, None, listed, **quiet).then(**view)  # the list given above is from the start of the program
        if video:
            number.input(look_at, [listed, number, frame], [frame, first, last], **quiet).then(**view)
        else:
            number.input(**view)
        frame.release(**view)
        gr.on([side.blur for side in box], **view)
        given = [listed, number]
        for button, function, more in (
            (another, chosen(reviewing.another), []),
            (strike, chosen(reviewing.strike), [first, last]),
            (keep, chosen(reviewing.keep), []),
            (restore, chosen(reviewing.restore), []),
            (assign, chosen(lambda one, chosen, who: reviewing.assign(one, chosen, who or None)), [person]),
        ):
            button.click(function, [*given, *more], listed, **quiet).success(**view)
        for button, function, more in (
            (move, chosen(lambda one, chosen, *sides: reviewing.move(one, chosen, sides)), box),
            (add, corrected(lambda one, _, start, end, who, *sides: reviewing.add(one, sides, start, end, who or None)),
             [first, last, person, *box]),
        ):  # fmt: skip
            done = button.click(function, [*given, *more], listed, **quiet)
            done.success(lambda: [0] * 4, None, box, **quiet).then(**view)
        back.click(undo, listed, listed, **quiet).success(**view)
        clicked = picture.select(click, [listed, number, frame, corner, *box[:2]], [number, corner, *box], **quiet)
        clicked.then(**view)
        work = go.click(write, listed, [result, report], concurrency_limit=1)
        work.success(**view)
        stop.click(lambda: STOPPED, None, report, cancels=[work], queue=False)
    return demo


def how_far(progress: serving.Progress | None):
    """What the page shows while a result is being made."""
    return gr.skip() if progress is None else (gr.skip(), progress.in_words())


def launch(desk: PhotoDesk, **options) -> gr.Blocks:
    """Serve the page to this computer only. Apart from its own files, the page can read no file but the result."""
    page = build_review(desk)
    allowed = [str(desk.output.resolve())]
    page.launch(server_name="127.0.0.1", share=False, allowed_paths=allowed, footer_links=[], run_history=False, **options)
    return page


def show(desk: PhotoDesk, port: int | None = None, open_browser: bool = True) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else pictures of the source would be left in the folder
    with tempfile.TemporaryDirectory(prefix="diffdeid-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            launch(desk, server_port=port, inbrowser=open_browser)
        finally:
            serving.CLOSING.set()
            serving.ON_CPU.shutdown(cancel_futures=True)  # work under way may write beside the output until its next step
            desk.close()
