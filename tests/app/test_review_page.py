"""The page of `diffdeid review` in Chromium, where it is installed: what is clicked is in the list and in the result."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from diffdeid import VideoOptions, VideoReader, review_page, serving
from diffdeid.face_lists import read_face_list
from diffdeid.review_page import VideoDesk, launch, open_desk, show

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402

from tests.app.test_browser import BROWSER, DRIVER, Page  # noqa: E402

in_a_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium and its driver are not installed")
OPTIONS = VideoOptions(num_inference_steps=1)
WAIT = 300  # seconds; machines are busy


class ReviewPage(Page):
    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.button("Write the result")
        self.wait(lambda: self.shown("img"), WAIT)

    def choose(self, words: str):
        self.wait(lambda: [label for label in self.shown("label") if words in label.text], WAIT)[0].click()

    def enter(self, name: str, value: str):
        """Into the field of this name."""
        field = next(label for label in self.shown("label") if label.text == name).find_element("tag name", "input")
        field.clear()
        field.send_keys(value)

    def told(self, words: str):
        """Wait until the page says something."""
        self.wait(lambda: words in self.driver.find_element("tag name", "body").text, WAIT)


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1700"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(pipeline, driver, tmp_path, folders):
    """`f(file)`: its desk, and the page about it."""
    demos = []

    def opened(file):
        copy = tmp_path / file.name
        shutil.copyfile(file, copy)
        output = copy.with_name(f"out{copy.suffix}")
        desk = open_desk(pipeline, copy, tmp_path / "faces.jsonl", output, OPTIONS, seed=3)
        demos.append((desk, launch(desk, prevent_thread_lock=True, quiet=True)))
        return desk, ReviewPage(driver, demos[-1][1].local_url)

    yield opened
    for desk, demo in demos:
        demo.close()
        desk.close()


@in_a_browser
def test_a_photo_is_looked_over(opened, astronaut, tmp_path):
    desk, page = opened(astronaut)
    page.choose("face 1")
    page.button("Write the result").click()
    page.told("is somebody else")
    first = np.asarray(Image.open(desk.output))
    page.button("Another new face").click()
    page.told("candidate 1")
    page.button("Write the result").click()
    page.wait(lambda: (np.asarray(Image.open(desk.output)) != first).any(), WAIT)
    page.wait(lambda: len(page.shown("img")) == 2, WAIT)
    page.screenshot("review_photo")
    page.button("Leave this person as they are, on purpose").click()
    page.told("KEPT AS IT IS")
    page.button("Write the result").click()
    page.told("is left as it is, as you chose")
    np.testing.assert_array_equal(np.asarray(Image.open(desk.output)), np.asarray(Image.open(astronaut).convert("RGB")))
    (listed,) = read_face_list(tmp_path / "faces.jsonl").values()
    assert listed.seed == 3 and (listed.faces[0].candidate, listed.faces[0].keep) == (1, True)
    page.driver.refresh()
    page.told("KEPT AS IT IS")  # it goes on from what was saved
    assert not page.complaints()


@in_a_browser
def test_a_video_is_looked_over(opened, clip, tmp_path):
    desk, page = opened(clip)
    assert isinstance(desk, VideoDesk)
    page.choose("track 1")
    page.button("The track is of this person").click()
    page.told("Say whose track it is")
    for side in ("right", "bottom"):
        page.enter(side, "50")
    page.button("Add this box in these frames, of this person").click()
    page.told("drawn 1: person 2, frames 0 to 5")  # somebody new: person 1 may be kept
    page.button("Write the result").click()
    page.told("is somebody else")
    assert len(list(VideoReader(desk.output))) == 6
    before = desk.output.read_bytes()
    page.button("Another new face").click()
    page.told("candidate 1")
    page.screenshot("review_video")
    page.button("Write the result").click()
    page.wait(lambda: desk.output.read_bytes() != before, WAIT)
    (listed,) = read_face_list(tmp_path / "faces.jsonl").values()
    assert listed.people[0].candidate == 1
    desk.close()
    assert {path.name for path in tmp_path.iterdir()} == {clip.name, "faces.jsonl", "out.mp4"}
    assert not page.complaints()


@in_a_browser
def test_the_list_is_found_again(opened, pipeline, astronaut, tmp_path):
    """And a list of another content is refused."""
    desk, _ = opened(astronaut)
    desk.save(desk.listed)
    again = open_desk(pipeline, desk.file, desk.list_path, desk.output, OPTIONS)
    assert again.listed == desk.listed and again.listed.seed == 3
    Image.open(astronaut).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(desk.file)
    with pytest.raises(ValueError, match="another file"):
        open_desk(pipeline, desk.file, desk.list_path, desk.output, OPTIONS)


@pytest.fixture
def desk(pipeline, clip, tmp_path):
    """`f(**options)`: that of a copy of the clip, before anybody has looked at it."""

    def desk(**options):
        copy = shutil.copyfile(clip, tmp_path / "clip.mp4")
        options = VideoOptions(**options)
        return open_desk(pipeline, copy, tmp_path / "faces.jsonl", tmp_path / "out.mp4", options, seed=3)

    return desk


def test_a_threshold_is_that_of_the_search(desk):
    desk = desk(threshold=0.5, num_inference_steps=1)
    assert desk.listed.threshold == 0.5
    assert desk.write(desk.listed)[0].is_file()


@pytest.mark.parametrize("painting", [True, False])
def test_a_page_that_is_closed_stops_what_it_writes(desk, pipeline, tmp_path, monkeypatch, painting):
    """While a face is painted, or while frames are counted. Nothing of it stays."""
    monkeypatch.setattr(serving, "CLOSING", threading.Event())
    monkeypatch.setattr(serving, "ON_CPU", ThreadPoolExecutor(1))
    desk, begun, steps, works = desk(num_inference_steps=50), threading.Event(), [], []

    def launch_until_ctrl_c(desk, **_):
        works.append(serving.ON_CPU.submit(desk.write, desk.listed))
        assert begun.wait(WAIT)

    monkeypatch.setattr(review_page, "launch", launch_until_ctrl_c)
    if painting:
        hook = pipeline.unet.register_forward_hook(lambda *_: (steps.append(1), begun.set()))
    else:
        monkeypatch.setattr(VideoReader, "__iter__", _slowly(VideoReader.__iter__, begun))
    show(desk)
    if painting:
        hook.remove()
    assert len(steps) < 25 and isinstance(works[0].exception(), serving.Stopped)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "faces.jsonl"}


def _slowly(frames, begun: threading.Event):
    """A video reader that takes its time, so that there is somebody to wait for."""

    def slowly(reader):
        for frame in frames(reader):
            begun.set()
            time.sleep(0.1)
            yield frame

    return slowly
