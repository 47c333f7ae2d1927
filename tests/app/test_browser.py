"""The page in Chromium, where it is installed: `make test-browser`. Screenshots go to `demo/browser/`, to be looked at."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import app
from diffdeid import VideoReader, serving

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SCREENSHOTS = Path(__file__).parents[2] / "demo" / "browser"
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium and its driver are not installed")


class Page:
    """The page as somebody uses it."""

    def __init__(self, driver, address: str, downloads: Path):
        self.driver, self.downloads = driver, downloads
        driver.get(address)
        self.button("De-identify")

    def wait(self, condition, seconds: float = 120):
        """Wait until `condition` gives something; returns that."""
        return WebDriverWait(self.driver, seconds, ignored_exceptions=[Exception]).until(lambda _: condition())

    def shown(self, css: str) -> list:
        return [element for element in self.driver.find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]

    def button(self, text: str):
        """Wait for a button, as the page may be redrawing; returns it."""
        return self.wait(lambda: next(element for element in self.shown("button") if element.text == text))

    def upload(self, path: Path, shown: str = "button[aria-label='Remove Image']"):
        """Put a file into the first empty upload of the open tab, and wait until the page shows `shown`."""
        panel = self.shown("[role=tabpanel]")[0]
        panel.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))
        self.wait(lambda: self.shown(shown))

    def download(self, name: str) -> Path:
        """Click on a result and wait for its file."""
        self.wait(lambda: [link for link in self.shown("a[download]") if name in link.get_attribute("href")])[0].click()
        self.wait(lambda: (self.downloads / name).is_file())
        return self.downloads / name

    def screenshot(self, name: str):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def complaints(self) -> list[str]:
        """The errors of the page, without those about fonts and icons of other servers, which tests cannot reach."""
        return [
            entry["message"] for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and "net::ERR_" not in entry["message"] and "favicon" not in entry["message"]
        ]  # fmt: skip


@pytest.fixture(scope="module")
def address(serve) -> str:
    return serve(app.CACHE)


@pytest.fixture
def open_page(address, tmp_path):
    """`f(width, dark)`: the page in a window of its own."""
    drivers = []

    def open_page(width: int = 1280, dark: bool = False) -> Page:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={max(width, 500)},1100"):
            options.add_argument(argument)
        drivers.append(webdriver.Chrome(options=options, service=Service(DRIVER)))
        screen = {"width": width, "height": 1100, "deviceScaleFactor": 1, "mobile": width < 600}
        drivers[-1].execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        return Page(drivers[-1], f"{address}?__theme={'dark' if dark else 'light'}", tmp_path)

    yield open_page
    for driver in drivers:
        driver.quit()


def test_a_photo_is_uploaded_replaced_and_downloaded(open_page, astronaut):
    page = open_page()
    page.upload(astronaut)
    page.button("De-identify").click()
    result = page.download("astronaut_anonymized.png")
    before, after = (np.asarray(Image.open(path)) for path in (astronaut, result))
    changed = (before != after).any(-1)
    assert 0.02 < changed.mean() < 0.3
    page.wait(lambda: any("somebody else" in element.text for element in page.shown(".prose")))
    page.screenshot("photo-light")

    page.shown("button.label-wrap")[1].click()
    page.button("Show candidates").click()
    candidates = page.wait(lambda: page.shown("button.thumbnail-item, button.gallery-item"))
    assert len(candidates) >= 2
    page.screenshot("candidates")
    assert page.complaints() == []


def test_ticks_of_one_photo_spare_no_face_of_the_next(open_page, astronaut, tmp_path, monkeypatch):
    find = serving.find_faces
    monkeypatch.setattr(serving, "find_faces", lambda *given: time.sleep(3) or find(*given))
    two, others = tmp_path / "two.png", tmp_path / "others.png"
    person = Image.open(astronaut)
    for path, small in ((two, (540, 100)), (others, (520, 120))):
        picture = Image.new("RGB", (900, 512), "white")
        picture.paste(person)
        picture.paste(person.resize((340, 340)), small)
        picture.save(path)
    page = open_page()
    page.upload(two)
    boxes = page.wait(lambda: page.shown("input[type=checkbox]")[:2])
    boxes[0].click()
    page.shown("button[aria-label='Remove Image']")[0].click()
    page.wait(lambda: page.driver.find_elements(By.CSS_SELECTOR, "input[type=file]"))
    page.upload(others)
    page.button("De-identify").click()  # before the faces are known
    page.wait(lambda: any("Face 2" in element.text for element in page.shown(".prose")))
    assert not any("as you chose" in element.text for element in page.shown(".prose"))


def test_a_video_is_uploaded_replaced_and_downloaded(open_page, clip):
    page = open_page(dark=True)
    page.button("Video").click()
    page.button("Stop")
    page.upload(clip, shown="video")
    page.button("De-identify").click()
    result = page.download("talk_anonymized.mp4")
    before, after = ([frame.picture.astype(int) for frame in VideoReader(path)] for path in (clip, result))
    assert len(after) == len(before)
    assert all(np.abs(new - old)[30:100, 90:160].mean() > 5 for new, old in zip(after, before, strict=True))
    page.screenshot("video-dark")
    assert page.complaints() == []


def test_somebody_in_a_video_is_left_as_they_are_but_nobody_in_the_next(open_page, clip, clip_of_two):
    page = open_page(width=390)
    page.button("Video").click()
    page.upload(clip_of_two, shown="video")
    page.button("Find people").click()
    page.wait(lambda: len(page.shown("input[type=checkbox]")) == 2)
    page.wait(lambda: len(page.shown("button.thumbnail-item")) == 2)
    page.shown("input[type=checkbox]")[0].click()
    page.button("De-identify").click()
    told = lambda: " ".join(element.text for element in page.shown(".prose"))  # noqa: E731
    page.wait(lambda: "Person 1 was left unchanged, as you chose." in told() and "Person 2 is somebody else" in told())
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    page.screenshot("video-people-phone")
    page.shown("button[aria-label='Clear']")[0].click()
    page.wait(lambda: not page.shown("input[type=checkbox]"))
    page.upload(clip, shown="video")
    page.button("De-identify").click()
    page.wait(lambda: "Person 1 is somebody else" in told())
    assert "as you chose" not in told() and page.complaints() == []


def test_an_example_is_clicked_and_the_files_go_with_the_page(open_page, folders):
    page = open_page()
    page.wait(lambda: page.shown("button.gallery-item"))[1].click()
    page.wait(lambda: len(page.shown("input[type=checkbox]")) == 4)
    page.shown("input[type=checkbox]")[0].click()
    page.button("De-identify").click()
    page.wait(lambda: any("as you chose" in element.text for element in page.shown(".prose")))
    page.screenshot("example")
    files = lambda: [path for path in folders[0].rglob("four_people*") if path.is_file()]  # noqa: E731
    page.wait(files)
    page.shown("button.gallery-item")[0].click()  # ticks of one example spare no face of the next
    page.wait(lambda: not page.shown("input[type=checkbox]"))
    page.button("De-identify").click()
    page.wait(lambda: any("Face 1 is somebody else" in element.text for element in page.shown(".prose")))
    page.wait(lambda: not files())  # the page shows the result of the other photo in its place
    assert page.complaints() == [] and [path for path in folders[0].rglob("*") if path.is_file()]
    page.driver.quit()
    deadline = time.monotonic() + 60
    while [path for path in folders[0].rglob("*") if path.is_file()]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_stop_ends_the_work_and_the_next_works(open_page, clip, folders):
    page = open_page()
    page.button("Video").click()
    page.upload(clip, shown="video")
    page.button("De-identify").click()
    page.wait(lambda: any("frames" in element.text for element in page.shown(".prose")))
    page.button("Stop").click()
    page.wait(lambda: any("Stopped" in element.text for element in page.shown(".prose")))
    page.screenshot("stopped")
    page.wait(lambda: not list(folders[1].iterdir()))
    page.button("De-identify").click()
    page.download("talk_anonymized.mp4")
    assert page.complaints() == []


def test_the_page_fits_a_phone(open_page, astronaut):
    page = open_page(width=390)
    page.upload(astronaut)
    page.button("De-identify").click()
    page.wait(lambda: [link for link in page.shown("a[download]") if "astronaut_anonymized" in link.get_attribute("href")])
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    page.screenshot("phone")
    assert page.complaints() == []
