"""The Gradio app: one photo in, its de-identified copy out."""

import logging
from functools import partial

import gradio as gr
import torch
from PIL import Image

from diffdeid import DiffDeIDPipeline, NoFaceFoundError

MODEL = "weights/diffdeid"
MAX_MEGAPIXELS = 25
ABOUT = """# DiffDeID
Gives every face in a photo to somebody who does not exist, and keeps expression, pose, gaze and surroundings.
The result is **de-identified, not anonymous**: body, clothes, place and context stay, and no method is certain.
Uploads and results are deleted from this server within twenty minutes; nothing is logged or kept."""

logger = logging.getLogger(__name__)


def anonymize(
    pipe: DiffDeIDPipeline, image: Image.Image | None, level: int, keep_mouth: bool, keep_attributes: bool, seed: int | None
):
    """De-identify one photo; returns the result and a sentence about its faces. Errors are written for the page."""
    if image is None:
        raise gr.Error("Choose a photo first.")
    if image.width * image.height > MAX_MEGAPIXELS * 1e6:
        raise gr.Error(f"The photo has more than {MAX_MEGAPIXELS} megapixels. Scale it down first.")
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    try:
        options = {"keep_mouth": keep_mouth, "keep_attributes": keep_attributes}
        output = pipe(image, level=int(level), generator=generator, **options)
    except NoFaceFoundError as error:
        raise gr.Error("No face found, so nothing was changed.") from error
    except Exception as error:
        logger.exception("de-identification failed")
        raise gr.Error("The photo could not be processed.") from error
    covered = sum(report.method != "diffusion" for report in output.faces[0])
    report = f"{len(output.faces[0])} face(s) found"
    return output.images[0], report + (f", {covered} covered because no new face fitted." if covered else ".")


def build_demo(pipe: DiffDeIDPipeline) -> gr.Blocks:
    with gr.Blocks(title="DiffDeID", analytics_enabled=False, delete_cache=(600, 600)) as demo:
        gr.Markdown(ABOUT)
        with gr.Tab("Photo"), gr.Row():
            with gr.Column():
                image = gr.Image(label="Photo", type="pil", image_mode="RGB", sources=["upload", "clipboard"])
                level = gr.Slider(1, 10, value=7, step=1, label="Distance of the new identity from the old one")
                with gr.Accordion("More", open=False):
                    keep_mouth = gr.Checkbox(False, label="Keep the pixels of the mouth")
                    keep_attributes = gr.Checkbox(False, label="Keep about the same sex, age and descent")
                    seed = gr.Number(None, label="Seed (empty: a new face each time)", precision=0)
                button = gr.Button("De-identify", variant="primary")
            with gr.Column():
                result = gr.Image(label="De-identified", format="png", interactive=False)
                report = gr.Markdown()
        handler = partial(anonymize, pipe)
        button.click(
            handler,
            [image, level, keep_mouth, keep_attributes, seed],
            [result, report],
            api_name="anonymize",
            concurrency_limit=1,
        )
    return demo


if __name__ == "__main__":
    pipeline = DiffDeIDPipeline.from_pretrained(MODEL, use_safetensors=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    build_demo(pipeline).queue(max_size=20).launch(run_history=False, max_file_size="20mb", show_error=False)
