"""The Gradio app: it de-identifies photos, a video or a handful of files, and shows how that works.

What a handler writes lies in a folder that is deleted when the handler ends. Gradio serves a copy of its own. That copy and the
uploads are deleted once no open page shows them, and after some minutes in any case (`serving.Uploads`).
"""

try:  # imported first: on a ZeroGPU Space it lends a GPU to functions, and nothing may touch the GPU before
    from spaces import GPU
except ImportError:
    GPU = None

import logging
import os
import re
import shutil
import signal
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import numpy as np

from diffdeid import WEIGHTS, DeidentifyOptions, DiffDeIDError, DiffDeIDPipeline, DiffDeIDVideoPipeline, serving
from diffdeid.stages.detect import why_covered
from diffdeid.visualization import stages

EXAMPLES = Path(__file__).parent / "examples"
MAX_FILES, CANDIDATES = 20, 4
CACHE = (60, 600)  # seconds between rounds of deletion, and the age at which a file goes
ABOUT = """# DiffDeID
DiffDeID replaces every face by that of somebody who does not exist, and keeps expression, pose, gaze and surroundings.
The new person is chosen without a look at the erased face, unless you ask for somebody of about its sex, age, descent, beard and
smile. The erased face only serves to reject people who look too much like it. Apart from that, a result tells no more about who
it was than hair, neck, clothes, expression, pose and light tell anyway.
The result is **de-identified**. Body, clothes, place and context stay, and no method is certain. Look at the result before you
publish it. This server deletes your uploads and results as soon as this page no longer shows them: when you replace or remove
them, and when you close the page. After ten minutes it deletes them in any case, except for a copy of what it is still working
on. Nothing is logged."""
INSIDE = "What the network sees of the largest face, and what it paints. **This shows the source face: do not publish it.**"
ATTRIBUTES = [  # labels and what they mean, by how much they give away
    ("Fits hair, neck and body", "context"),
    ("Can be anybody (gives least away)", "any"),
    ("Has about the sex, age, descent, beard and smile of the erased face (gives most away)", "source"),
]
STAYING = "Unticked people stay unchanged in all pictures with their number. If one shows somebody else, tick the number."
CSS = """.caption-label {white-space: normal !important} .grid-wrap {min-height: 0 !important; max-height: none !important}
@media (max-width: 600px) {.grid-container {grid-template-columns: 1fr 1fr !important}}"""  # shows captions and pictures whole
HOLDERS = gr.Image, gr.AnnotatedImage, gr.ImageSlider, gr.Gallery, gr.File, gr.Video  # the components that show files

logger = logging.getLogger(__name__)


def lent(function, pipe: DiffDeIDPipeline, duration) -> Callable:
    """A handler with its pipeline; on a ZeroGPU Space it gets a GPU for `duration`: seconds, or a function of its inputs."""
    handler = partial(function, pipe)
    return handler if GPU is None else GPU(duration=duration)(handler)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn errors into messages for the page, without paths of this server; logs only type and place of unexpected ones."""
    try:
        yield
    except (gr.Error, GeneratorExit):
        raise
    except serving.Stopped:
        raise gr.Error("The server is closing down. Try again in a minute.") from None
    except DiffDeIDError as error:
        raise gr.Error(re.sub(r"([`'])[^`']*[/\\]([^`'/\\]+)\1", r"`\2`", str(error))) from None
    except Exception as error:
        logger.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        raise gr.Error("This could not be processed.") from None


def given(value, what: str):
    """Give `value` back, or raise `gr.Error` if it is missing or its file was deleted; `what` names it there."""
    if not value:
        raise gr.Error(f"Choose {what} first.")
    if isinstance(value, str) and not Path(value).exists():
        raise gr.Error("The upload was deleted, as all are after some minutes. Upload it again.")
    return value


def own_copy(upload: str | None, what: str, folder: str) -> str:
    """A copy of an upload in the folder of a handler: the work may take longer than uploads are kept."""
    return shutil.copy(given(upload, what), folder)


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder that is deleted when its handler ends, and once more when stopped work has ended, which may still write there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            yield folder
        finally:
            with suppress(RuntimeError):  # the server is closing, and deletes everything
                serving.ON_CPU.submit(shutil.rmtree, folder, ignore_errors=True)


def awaited(function, pipe: DiffDeIDPipeline, *inputs) -> Generator:
    """Do work that takes a while. The page gets an empty update twice a second, so that Gradio notices who left."""
    return serving.Watch().follow(function, pipe, *inputs, meanwhile=lambda _: gr.skip())


def opened(pipe: DiffDeIDPipeline, photo: str | None):
    """An uploaded photo and its faces, largest first."""
    picture = serving.load_photo(given(photo, "a photo"))
    return picture, serving.find_faces(pipe, picture)


def show_faces(pipe: DiffDeIDPipeline, photo: str | None):
    """The photo with numbered faces, and the choice among them; no new person is chosen yet for any of them."""
    if photo is None:
        yield gr.update(visible=False), gr.update(value=None, visible=False), gr.update(value=1), {}
        return
    with errors_in_words():
        picture, faces = yield from awaited(opened, pipe, photo)
    small = serving.preview(picture.image)
    scale = small.width / picture.image.width
    boxes = [(tuple(int(side) for side in face.box * scale), f"Face {number}") for number, face in enumerate(faces, 1)]
    numbers, several = list(range(1, len(faces) + 1)), len(faces) > 1
    choice = gr.update(choices=[(f"Face {number}", number) for number in numbers], value=numbers, visible=several)
    yield gr.update(value=(small, boxes), visible=True), choice, gr.update(maximum=max(2, len(faces)), value=1), {}


def anonymize(pipe, photo, faces, chosen, level, steps, keep_mouth, attributes, seed):
    """De-identify all faces of a photo, or those whose numbers are given (largest first), as the people chosen for them.

    Gives before and after, the file, and what happened in words.
    """
    with errors_in_words(), temporary_folder() as folder:
        photo = own_copy(photo, "a photo", folder)
        picture, found = yield from awaited(opened, pipe, photo)
        numbers = range(1, len(found) + 1)
        asked = serving.options(level, steps, keep_mouth, attributes, seed)
        work = serving.replace_faces, pipe, picture, found, faces or numbers, chosen or {}, asked
        image, reports = yield from awaited(*work)
        target = Path(folder, serving.name_of_result(photo))
        yield from awaited(serving.write_result, pipe, target, picture, image, found, reports, photo)
        report = "\n\n".join(serving.in_words(number, reports.get(number)) for number in numbers)
        yield (serving.preview(picture.image), serving.preview(image)), str(target), report


def show_candidates(pipe, photo, number, level, steps, keep_mouth, attributes, seed):
    """New people for one face: their pictures, and (number, identities) to choose from."""
    with errors_in_words():
        picture, faces = yield from awaited(opened, pipe, photo)
        number = min(int(number), len(faces))
        if reason := why_covered(faces[number - 1]):
            raise gr.Error(f"Face {number} can only be covered: {reason}.")
        asked = serving.options(level, steps, keep_mouth, attributes, seed)
        people = yield from awaited(serving.sample_people, pipe, picture, faces, number, CANDIDATES, asked)
        if not people:
            raise gr.Error("None of the people sampled is far enough from this face. Try again, or choose another level.")
    pictures, identities = zip(*people, strict=True)
    yield gr.update(value=list(pictures), visible=True), (number, identities)


def choose(chosen: dict, candidates: tuple, event: gr.SelectData) -> dict:
    """`chosen` with the candidate that was clicked."""
    number, identities = candidates
    return chosen | {number: identities[event.index]}


def show_people(pipe: DiffDeIDPipeline, video: str | None):
    """Find everybody in a video: gives pictures with their numbers, the choice among them, and the list of faces."""
    with errors_in_words(), temporary_folder() as folder:
        video, watch = own_copy(video, "a video", folder), serving.Watch()
        work = watch.follow(
            serving.find_people, pipe, video, watch,
            meanwhile=lambda progress: (gr.update(visible=True), gr.skip(), gr.skip(), how_far(progress)),
        )  # fmt: skip
        listed, portraits = yield from work
    shown = [(portrait, f"Person {number}") for number, portrait in portraits]
    numbers = sorted({number for number, _ in portraits})
    choice = gr.update(choices=[(f"Person {number}", number) for number in numbers], value=numbers, visible=len(numbers) > 1)
    yield gr.update(value=shown, visible=True), choice, listed, ""


def forget_people():
    """Updates that show nobody and let nobody be chosen."""
    return gr.update(value=None, visible=False), gr.update(choices=[], value=[], visible=False), None


def anonymize_video(pipe, video, level, steps, keep_mouth, attributes, seed, people=(), listed=None):
    """De-identify all people of a video, or those whose numbers are given and are in a list of its faces. The sound is dropped.

    Gives the result to look at and as a file, and what happened in words.
    """
    with errors_in_words(), temporary_folder() as folder:
        video = own_copy(video, "a video", folder)
        target = Path(folder, f"{Path(video).stem}_anonymized.mp4")
        asked = serving.options(level, steps, keep_mouth, attributes, seed)
        watch = serving.Watch()
        what = serving.deidentify_video, pipe, video, target, asked, watch, people, listed
        output = yield from watch.follow(*what, meanwhile=lambda progress: (None, None, how_far(progress)))
        lines = [serving.in_words(person.number, person) for person in output.people] + output.notes
        yield str(target), str(target), "\n\n".join(lines)


def how_far(progress: serving.Progress | None):
    """What the page says while a video is being worked on."""
    if progress is None:
        return gr.skip()
    return progress.in_words()


def anonymize_files(pipe, files, level, steps, keep_mouth, attributes, seed):
    """De-identify several photos. Gives a zip file of the results, and what happened in words."""
    if len(given(files, "some photos")) > MAX_FILES:
        raise gr.Error(f"You chose {len(files)} files, and the limit is {MAX_FILES}. The command line takes whole folders.")
    lines = []
    with temporary_folder() as folder, zipfile.ZipFile(Path(folder, "anonymized.zip"), "w") as archive:
        for number, path in enumerate(files, 1):
            try:
                for update in anonymize(pipe, path, None, None, level, steps, keep_mouth, attributes, seed):
                    if isinstance(update, tuple):
                        _, result, report = update
                        archive.write(result, f"{number:02}_{Path(result).name}")
                        lines.append(f"### {Path(path).name}\n{report}")
                    else:
                        yield update
            except gr.Error as error:
                lines.append(f"### {Path(path).name}\nNot in the zip file. {error.message}")
            yield None, "\n\n".join(lines)
        archive.close()
        yield archive.filename if archive.namelist() else None, "\n\n".join(lines)


def explain(pipe, photo, level, steps, keep_mouth, attributes, seed):
    """The stages in which the largest face that can be rendered is replaced: pictures with captions."""
    with errors_in_words():
        picture, faces = yield from awaited(opened, pipe, photo)
        usable = [face for face in faces if why_covered(face) is None]
        if not usable:
            raise gr.Error("No face of this photo can be rendered. Choose another photo.")
        asked = serving.options(level, steps, keep_mouth, attributes, seed)
        panels = yield from awaited(stages, pipe, np.asarray(picture.image), usable[0], faces, *asked)
        yield [(panel, text) for text, panel in panels.items()]


def settings() -> list[gr.components.Component]:
    """The inputs that all tabs have, in the order of the arguments of `serving.options`."""
    level = gr.Slider(1, 10, value=DeidentifyOptions.level, step=1, label="Least distance of the new identity from the old one")
    with gr.Accordion("More", open=False):
        steps = gr.Slider(1, 50, value=DeidentifyOptions.num_inference_steps, step=1, label="Denoising steps")
        keep_mouth = gr.Checkbox(DeidentifyOptions.keep_mouth, label="Keep the pixels of the mouth (gives more away)")
        attributes = gr.Radio(ATTRIBUTES, value=DeidentifyOptions.attributes, label="The new person")
        seed = gr.Number(-1, label="Seed (-1: new people each time)", precision=0)
    return [level, steps, keep_mouth, attributes, seed]


def results() -> list[gr.components.Component]:
    """The outputs for a file and a report."""
    return [gr.File(label="Result, without metadata", interactive=False), gr.Markdown(label="Report")]


def buttons() -> tuple[gr.Button, gr.Button]:
    """The buttons that begin work and stop it."""
    with gr.Row():
        return gr.Button("De-identify", variant="primary"), gr.Button("Stop")


def ends(stop: gr.Button, upload: gr.components.Component, report: gr.Markdown, work: list) -> None:
    """Let work be ended by its Stop button, and by replacing or removing the upload."""
    stop.click(lambda: "Stopped.", None, report, cancels=work, queue=False, api_visibility="private")
    upload.change(None, cancels=work, api_visibility="private")


def files_in(value: Any) -> Iterator[str]:
    """The paths of all files in what a page sends."""
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        yield value["path"]
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from files_in(part)


def files_waiting(demo: gr.Blocks) -> Iterator[str]:
    """The files of requests in the queue."""
    for line in demo._queue.event_queue_per_concurrency_id.values():
        yield from files_in([event.data.data for event in list(line.queue) if event.data])


def let_files_go(demo: gr.Blocks, uploads: serving.Uploads) -> None:
    """Have pages say which files they show whenever these change, and when the page is closed."""
    holders = [one for one in demo.blocks.values() if isinstance(one, HOLDERS)]

    def show(request: gr.Request, *values) -> None:
        uploads.show(request.session_hash, files_in(values))

    def close(request: gr.Request) -> None:
        uploads.close(request.session_hash)

    changes = [demo.load, *(one.change for one in holders)]
    one_by_one = {"queue": False, "trigger_mode": "always_last", "show_progress": "hidden"}
    gr.on(changes, show, holders, preprocess=False, api_visibility="private", **one_by_one)
    demo.unload(close)


def build_demo(pipe: DiffDeIDPipeline) -> gr.Blocks:
    """The page around a pipeline."""
    alone, inner = {"concurrency_limit": 1, "concurrency_id": "network"}, {"api_visibility": "private"}
    gr.set_static_paths(EXAMPLES)  # they are served from there, and no copy is made
    with gr.Blocks(title="DiffDeID", analytics_enabled=False) as demo:
        uploads = serving.Uploads(Path(demo.GRADIO_CACHE), partial(files_waiting, demo))
        uploads.sweep(*CACHE)
        gr.Markdown(ABOUT)
        with gr.Tab("Photo"), gr.Row():
            with gr.Column():
                photo = gr.Image(label="Photo", type="filepath", sources=["upload", "webcam", "clipboard"])
                photo.preprocess = lambda file: file and file.path  # not decoded: limits come first, and we read more
                samples = sorted(str(file) for file in EXAMPLES.glob("*.jpg"))
                gr.Examples(samples, photo, label="Examples", cache_examples=False, api_visibility="private")
                drawn = gr.AnnotatedImage(label="Faces", height=260, visible=False)
                wanted = gr.CheckboxGroup(label="Faces to replace (none ticked: all)", visible=False)
                button, stop = buttons()
                inputs = settings()
                with gr.Accordion("Choose the new person", open=False):
                    number = gr.Slider(1, serving.MAX_FACES, value=1, step=1, label="Face")
                    more = gr.Button("Show candidates")
                    shown = {"interactive": False, "allow_preview": False, "height": "auto", "visible": False}
                    gallery = gr.Gallery(label="Click one to take it", columns=CANDIDATES, **shown)
            with gr.Column():
                outputs = [gr.ImageSlider(label="Before and after", format="jpeg", interactive=False), *results()]
        chosen, candidates = gr.State({}), gr.State((0, ()))
        photo.change(None, None, wanted, js="() => []", **inner)  # at once: ticks for the last photo must not spare a face
        run = lent(anonymize, pipe, 60), [photo, wanted, chosen, *inputs], outputs
        show = lent(show_candidates, pipe, 60), [photo, number, *inputs], [gallery, candidates]
        work = [button.click(*run, api_name="anonymize", **alone), more.click(*show, **inner, **alone)]
        work.append(gallery.select(choose, [chosen, candidates], chosen, **inner).then(*run, **inner, **alone))
        ends(stop, photo, outputs[-1], work)
        # Comes last: a page handles a change in this order, and else would end work that was asked for while it finds faces.
        photo.change(partial(show_faces, pipe), photo, [drawn, wanted, number, chosen], api_name="faces")

        with gr.Tab("Video"), gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload", "webcam"])
                find = gr.Button("Find people")
                portraits = gr.Gallery(label="People", columns=4, format="jpeg", **shown)
                wanted = gr.CheckboxGroup(label="People to replace (none ticked: all)", info=STAYING, visible=False)
                button, stop = buttons()
                inputs = [video, *settings(), wanted]
            with gr.Column():
                outputs = [gr.Video(label="De-identified, without sound", interactive=False), *results()]
        listed = gr.State()
        video.change(None, None, wanted, js="() => []", **inner)  # at once, as for photos; another list is refused in any case
        show = lent(show_people, pipe, serving.seconds_for_video), video, [portraits, wanted, listed, outputs[-1]]
        run = lent(anonymize_video, DiffDeIDVideoPipeline.sharing(pipe), serving.seconds_for_video), [*inputs, listed], outputs
        work = [find.click(*show, api_name="people", **alone), button.click(*run, api_name="anonymize_video", **alone)]
        ends(stop, video, outputs[-1], work)
        video.change(forget_people, None, [portraits, wanted, listed], queue=False, show_progress="hidden", **inner)

        with gr.Tab("Batch"), gr.Row():
            with gr.Column():
                files = gr.File(label="Photos", file_count="multiple", type="filepath")
                button, stop = buttons()
                inputs = [files, *settings()]
            with gr.Column():
                outputs = results()
        run = button.click(lent(anonymize_files, pipe, 300), inputs, outputs, api_name="anonymize_files", **alone)
        run.success(lambda: None, None, files, **inner)  # the uploads are no longer needed
        ends(stop, files, outputs[-1], [run])

        with gr.Tab("How it works"):
            gr.Markdown(INSIDE)
            button = gr.Button("Look at the photo of the first tab", variant="primary")
            looks = {"columns": 4, "object_fit": "contain", "height": "auto"}
            gallery = gr.Gallery(label="Stages", interactive=False, format="png", **looks)
            inputs = [photo, *settings()]
        button.click(lent(explain, pipe, 60), inputs, gallery, api_name="explain", **alone)
        let_files_go(demo, uploads)
    return demo


def serve(model: str) -> None:
    """Show the page until Ctrl-C, or until the process is told to end. Then all files of visitors are deleted."""
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, signal.default_int_handler)
    pipe = serving.load_pipeline(model)
    with tempfile.TemporaryDirectory(prefix="diffdeid-", ignore_cleanup_errors=True) as folder:
        made, served = (str(Path(folder, name)) for name in ("made", "served"))  # two: Gradio copies nothing into its own
        os.mkdir(made)
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = made, served
        demo = build_demo(pipe).queue(max_size=20)
        launched = {"run_history": False, "max_file_size": "100mb", "show_error": False, "prevent_thread_lock": True}
        demo.launch(css=CSS, **launched)
        with suppress(KeyboardInterrupt):
            Event().wait()
        serving.CLOSING.set()
        demo.close()
        serving.ON_CPU.shutdown(cancel_futures=True)  # work under way may write to the folder until its next step


if __name__ == "__main__":
    serve(str(WEIGHTS))
