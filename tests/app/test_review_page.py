"""The page of `diffdeid review` in Chromium, where it is installed: what is clicked is in the list and in the result."""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffdeid import VideoOptions, VideoReader, review_page, reviewing, serving
from diffdeid.face_lists import PictureList, Source, read_face_list
from diffdeid.review_page import VideoDesk, launch, open_desk, show

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402

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
        """Type a value into the field of a name."""
        field = next(label for label in self.shown("label") if label.text == name).find_element("tag name", "input")
        field.clear()
        field.send_keys(value)

    def press(self, text: str):
        """Click a button, wherever it is on the page."""
        button = self.button(text)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def click_at(self, x: float, y: float):
        """Click the picture, at shares of its width and height, and wait until it is drawn anew, since clicks before are lost."""
        picture = self.shown("img")[0]
        before = picture.get_attribute("src")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        size = picture.size["width"], picture.size["height"]
        offsets = [round((share - 0.5) * side) for share, side in zip((x, y), size, strict=True)]
        ActionChains(self.driver).move_to_element_with_offset(picture, *offsets).click().perform()
        self.wait(lambda: self.shown("img")[0].get_attribute("src") != before, WAIT)
        self.wait(lambda: self.driver.execute_script("return arguments[0].complete", self.shown("img")[0]))

    def chosen(self) -> list[str]:
        """The labels of what is ticked."""
        return [label.text for label in self.shown("label") if label.find_elements("css selector", "input:checked")]

    def load_again(self):
        """Load the page again, and drop its errors about answers that it no longer gets."""
        self.driver.refresh()
        self.button("Write the result")
        self.complaints()

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
    """`f(file)`: the desk of a file, and its page."""
    demos = []

    def opened(file, steps=1):
        copy = tmp_path / file.name
        shutil.copyfile(file, copy)
        output = copy.with_name(f"out{copy.suffix}")
        desk = open_desk(pipeline, copy, tmp_path / "faces.jsonl", output, VideoOptions(num_inference_steps=steps), seed=3)
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
    page.told("was left unchanged, as you chose")
    np.testing.assert_array_equal(np.asarray(Image.open(desk.output)), np.asarray(Image.open(astronaut).convert("RGB")))
    (listed,) = read_face_list(tmp_path / "faces.jsonl").values()
    assert listed.seed == 3 and (listed.faces[0].candidate, listed.faces[0].keep) == (1, True)
    assert not page.complaints()
    page.load_again()
    page.told("KEPT AS IT IS")  # it goes on from what was saved


@in_a_browser
def test_a_face_is_moved_by_two_clicks_and_an_older_page_is_told(opened, astronaut):
    desk, page = opened(astronaut)
    page.click_at(0.43, 0.2)
    page.wait(lambda: "face 1" in page.chosen())
    page.choose("first corner")
    page.click_at(0.6, 0.4)
    page.wait(lambda: "second corner" in page.chosen())
    page.click_at(0.3, 0.1)
    page.wait(lambda: "the face that is chosen" in page.chosen())
    page.screenshot("review_box")
    page.press("Move the chosen face there")
    page.wait(lambda: np.abs(np.array(desk.listed.faces[0].box) - 512 * np.array([0.3, 0.1, 0.6, 0.4])).max() < 3)
    page.wait(lambda: "face 1" in page.chosen())
    desk.correct(desk.listed, lambda one: reviewing.keep(one, 1))  # another page does
    page.press("Another new face")
    page.told("Another page or program changed this list")
    page.load_again()
    page.told("KEPT AS IT IS")


@in_a_browser
def test_stop_ends_what_is_written(opened, astronaut, pipeline):
    desk, page = opened(astronaut, steps=50)
    steps = []
    hook = pipeline.unet.register_forward_hook(lambda *_: steps.append(1))
    page.press("Write the result")
    page.wait(lambda: steps, WAIT)
    page.press("Stop")
    page.told("Stopped.")
    serving.ON_CPU.submit(len, "").result()  # the thread is free again
    hook.remove()
    assert len(steps) < 50 and {path.name for path in desk.file.parent.iterdir()} == {astronaut.name, "faces.jsonl"}


@in_a_browser
def test_the_page_fits_a_phone(opened, astronaut, driver):
    screen = {"width": 390, "height": 1100, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    _, page = opened(astronaut)
    page.choose("face 1")
    page.press("Another new face")
    page.told("candidate 1")
    page.screenshot("review_phone")
    width = driver.execute_script("return document.documentElement.scrollWidth")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 390


@in_a_browser
def test_a_video_is_looked_over(opened, clip, tmp_path):
    desk, page = opened(clip)
    assert isinstance(desk, VideoDesk)
    page.choose("track 1")
    page.press("The track is of this person")  # 0: of somebody new
    page.told("track 1: person 2")
    page.press("Take the last correction back")
    page.told("track 1: person 1")
    for side in ("right", "bottom"):
        page.enter(side, "50")
    page.press("Add this box in the frames above, of the person above")
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
    """A list that was made for another content of the file is refused."""
    desk, _ = opened(astronaut)
    again = open_desk(pipeline, desk.file, desk.list_path, desk.output, OPTIONS)
    assert again.listed == desk.listed and again.listed.seed == 3
    Image.open(astronaut).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(desk.file)
    with pytest.raises(ValueError, match="another file"):
        open_desk(pipeline, desk.file, desk.list_path, desk.output, OPTIONS)


@pytest.fixture
def desk(pipeline, clip, tmp_path):
    """`f(**options)`: the desk of a copy of the clip, before anybody has corrected its list."""

    def desk(**options):
        copy = shutil.copyfile(clip, tmp_path / "clip.mp4")
        options = VideoOptions(**options)
        return open_desk(pipeline, copy, tmp_path / "faces.jsonl", tmp_path / "out.mp4", options, seed=3)

    return desk


def test_a_threshold_is_that_of_the_search(desk):
    desk = desk(threshold=0.5, num_inference_steps=1)
    assert desk.listed.threshold == 0.5
    assert "**Person 1** is somebody else" in finished(writing(desk))[0] and desk.output.is_file()


def writing(desk) -> Generator:
    """The work by which a page writes the result of a desk."""
    watch = serving.Watch()
    return watch.follow(desk.write, desk.pipe, desk.listed, watch, meanwhile=lambda progress: progress)


def finished(work: Generator):
    """The result of work that is done to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_of_two_pages_the_older_one_is_told_and_nothing_is_lost(desk, tmp_path):
    desk = desk(num_inference_steps=1)
    seen = desk.listed
    kept = desk.correct(seen, lambda one: reviewing.keep(one, 1))
    assert desk.listed == kept != seen
    older = replace(seen, seed=4)
    for what in (
        lambda: desk.correct(seen, lambda one: reviewing.another(one, 1)),
        lambda: desk.undo(seen),
        lambda: desk.write(desk.pipe, older, serving.Watch()),
    ):
        with pytest.raises(ValueError):
            what()
        assert desk.listed == kept and not desk.output.exists()
    other = {tmp_path / "other.jpg": PictureList((), 0, Source("0f", 8, 8))}
    reviewing.save_list(other | read_face_list(desk.list_path), desk.list_path)  # by a program
    assert desk.undo(kept) == seen == desk.listed and other.items() <= read_face_list(desk.list_path).items()
    with pytest.raises(ValueError, match="no correction"):
        desk.undo(seen)
    for lists in (other, {desk.file: older}):
        reviewing.save_list(lists, desk.list_path)
        with pytest.raises(ValueError, match="does not list `clip.mp4` any more"):
            desk.correct(older, lambda one: reviewing.keep(one, 1))


@pytest.mark.parametrize("painting", [True, False])
def test_a_page_that_is_closed_stops_what_it_writes(desk, pipeline, tmp_path, monkeypatch, painting):
    """The page is closed while a face is painted, or while frames are counted. No file of the result is left."""
    monkeypatch.setattr(serving, "CLOSING", threading.Event())
    monkeypatch.setattr(serving, "ON_CPU", ThreadPoolExecutor(1))
    desk, begun, steps, works = desk(num_inference_steps=50), threading.Event(), [], []

    def launch_until_ctrl_c(desk, **_):
        works.append(writing(desk))
        next(works[0])
        assert begun.wait(WAIT)

    monkeypatch.setattr(review_page, "launch", launch_until_ctrl_c)
    if painting:
        hook = pipeline.unet.register_forward_hook(lambda *_: (steps.append(1), begun.set()))
    else:
        monkeypatch.setattr(VideoReader, "__iter__", _slowly(VideoReader.__iter__, begun))
    show(desk)
    if painting:
        hook.remove()
    assert len(steps) < 25
    with pytest.raises(serving.Stopped):
        finished(works[0])
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "faces.jsonl"}


def test_a_page_that_is_told_to_end_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(serving, "CLOSING", threading.Event())
    monkeypatch.setattr(serving, "ON_CPU", ThreadPoolExecutor(1))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")

    def launch(*_, **__):
        Path(os.environ["GRADIO_TEMP_DIR"], "source.jpg").touch()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(review_page, "launch", launch)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            show(SimpleNamespace(close=lambda: None))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert serving.CLOSING.is_set() and not list(tmp_path.iterdir())


def _slowly(frames, begun: threading.Event):
    """`frames` of a video reader, slowed down, so that the page can be closed in between."""

    def slowly(reader):
        for frame in frames(reader):
            begun.set()
            time.sleep(0.1)
            yield frame

    return slowly
