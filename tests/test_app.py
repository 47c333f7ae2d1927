import gradio as gr
import pytest
from PIL import Image

from app import MAX_MEGAPIXELS, anonymize, build_demo


def test_a_photo_gives_a_photo_and_a_report(pipeline, astronaut):
    image = Image.open(astronaut)
    result, report = anonymize(pipeline, image, 7, True, True, 0)
    assert result.size == image.size and result != image and report.startswith("1 face(s)")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "Choose"),
        (Image.new("RGB", (64, 64)), "No face"),
        (Image.new("RGB", (MAX_MEGAPIXELS * 1000 + 1, 1000)), "megapixels"),
    ],
)
def test_what_cannot_be_done_is_said(pipeline, image, message):
    with pytest.raises(gr.Error, match=message):
        anonymize(pipeline, image, 7, True, True, None)


def test_the_page_can_be_built(pipeline):
    assert build_demo(pipeline).delete_cache == (600, 600)
