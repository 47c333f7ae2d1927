"""The page, through its own server, as a browser or a program uses it; and which files it leaves behind."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

import app
from diffdeid import DiffDeIDVideoPipeline, VideoReader, serving

OPTIONS = {"level": 7, "steps": 1, "keep_mouth": False, "attributes": "context", "seed": 0}


@pytest.fixture(scope="module")
def client(serve, tmp_path_factory) -> Client:
    return Client(serve(app.CACHE), verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture
def two(astronaut, tmp_path) -> Path:
    """A photo with a large and a small face."""
    picture = Image.new("RGB", (900, 512), "white")
    person = Image.open(astronaut)
    picture.paste(person)
    picture.paste(person.resize((340, 340)), (540, 100))
    picture.save(tmp_path / "two.png")
    return tmp_path / "two.png"


def only(generator):
    """The last value that a handler yields, while its files are still there."""
    *_, last = generator
    return last


def contents(folders) -> list[Path]:
    """All files in folders, without empty ones."""
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def wait_for(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_programs_find_endpoints_with_named_parameters(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    parameters = {name: [one["parameter_name"] for one in entry["parameters"]] for name, entry in endpoints.items()}
    assert parameters == {
        "/faces": ["photo"],
        "/anonymize": ["photo", "faces", *OPTIONS],
        "/people": ["video"],
        "/anonymize_video": ["video", *OPTIONS, "people"],
        "/anonymize_files": ["files", *OPTIONS],
        "/explain": ["photo", *OPTIONS],
    }


def test_a_photo_comes_back_with_another_face(client, astronaut):
    _, file, report = client.predict(photo=handle_file(astronaut), **OPTIONS, api_name="/anonymize")
    before, after = (np.asarray(Image.open(path)) for path in (astronaut, file))
    assert Path(file).name == "astronaut_anonymized.png" and set(Image.open(file).info) == {"icc_profile"}
    assert before.shape == after.shape
    changed = (before != after).any(-1)
    assert 0.02 < changed.mean() < 0.3 and not changed[300:].any()
    assert report.startswith("**Face 1** is somebody else")
    _, again, _ = client.predict(photo=handle_file(astronaut), **OPTIONS, api_name="/anonymize")
    assert (np.asarray(Image.open(again)) == after).all()


def test_options_may_be_left_out(client, astronaut):
    _, file, report = client.predict(photo=handle_file(astronaut), api_name="/anonymize")
    assert Path(file).is_file() and "somebody else" in report


def test_a_program_can_choose_among_the_faces(client, two):
    assert client.predict(photo=handle_file(two), api_name="/faces")[1]["value"] == [1, 2]
    _, file, report = client.predict(photo=handle_file(two), faces=[2], **OPTIONS, api_name="/anonymize")
    assert report.startswith("**Face 1** was left unchanged") and Path(file).name == "two_anonymized.png"


def test_a_video_comes_back_with_another_face(client, clip):
    _, file, report = client.predict(video=handle_file(clip), **OPTIONS, api_name="/anonymize_video")
    before, after = ([frame.picture for frame in VideoReader(path)] for path in (clip, file))
    assert len(after) == len(before) == 6 and "**Person 1** is somebody else" in report
    assert all(np.abs(new.astype(int) - old)[30:100, 90:160].mean() > 5 for new, old in zip(after, before, strict=True))


def test_one_of_two_people_in_a_video_is_left_as_they_are(client, clip, clip_of_two):
    shown, choice, _ = client.predict(video=handle_file(clip_of_two), api_name="/people")
    assert [one["caption"] for one in shown["value"]] == ["Person 1", "Person 2"] and choice["value"] == [1, 2]
    _, file, report = client.predict(video=handle_file(clip_of_two), people=[2], **OPTIONS, api_name="/anonymize_video")
    assert report.startswith("**Person 1** was left unchanged, as you chose.\n\n**Person 2** is somebody else")
    for old, new in zip(VideoReader(clip_of_two), VideoReader(file), strict=True):
        difference = np.abs(new.picture.astype(int) - old.picture)
        assert difference[40:210, 330:440].mean() < 3  # the encoder's
        assert difference[30:100, 80:145].mean() > 5
    with pytest.raises(Exception, match="Find its people first"):  # the list is of the other video
        client.predict(video=handle_file(clip), people=[2], **OPTIONS, api_name="/anonymize_video")


def test_a_batch_gives_what_could_be_done_and_says_what_could_not(client, astronaut, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "nobody.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    files = [handle_file(path) for path in (astronaut, tmp_path / "nobody.png", tmp_path / "broken.jpg")]
    archive, report = client.predict(files=files, **OPTIONS, api_name="/anonymize_files")
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["01_astronaut_anonymized.png"] and opened.testzip() is None
    parts = report.split("### ")[1:]
    assert [part.split("\n")[0] for part in parts] == ["astronaut.png", "nobody.png", "broken.jpg"]
    assert "somebody else" in parts[0] and "No face" in parts[1] and "broken.jpg" in parts[2]


def test_the_stages_are_shown(client, astronaut):
    stages = client.predict(photo=handle_file(astronaut), **OPTIONS, api_name="/explain")
    assert [stage["caption"][0] for stage in stages] == list("1234567")
    pictures = [np.asarray(Image.open(stage["image"])).astype(int) for stage in stages]
    assert len({picture.tobytes() for picture in pictures}) == 7
    erased = (pictures[1] == 128).all(-1)
    assert erased.mean() > 0.1 and (pictures[0] == pictures[1])[~erased].all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Choose a photo first"),
        (b"no picture", "photo.png"),
        (b"", "empty"),
        ((64, 64), "No face"),
        ((5001, 5000), "megapixels"),
    ],
)
def test_what_cannot_be_done_is_said_without_paths(client, tmp_path, folders, content, message):
    path = tmp_path / "photo.png"
    if isinstance(content, tuple):
        Image.new("L", content).save(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(Exception, match=message) as caught:
        client.predict(photo=None if content is None else handle_file(path), **OPTIONS, api_name="/anonymize")
    assert str(folders[0]) not in str(caught.value)


def test_the_new_person_is_a_choice_of_three_words(client, astronaut):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    parameters = {name: {one["parameter_name"]: one for one in entry["parameters"]} for name, entry in endpoints.items()}
    for name in ("/anonymize", "/anonymize_video", "/anonymize_files", "/explain"):
        choice = parameters[name]["attributes"]
        assert choice["parameter_default"] == "context" and choice["type"]["enum"] == ["context", "any", "source"]
    with pytest.raises(Exception, match="own"):
        client.predict(photo=handle_file(astronaut), attributes="own", api_name="/anonymize")


def test_faces_get_the_people_that_were_chosen_for_them_whoever_the_others_are(pipeline, two):
    """A new person does not depend on what becomes of other faces, and nothing changes around a face that stays."""
    picture = serving.load_photo(two)
    faces = serving.find_faces(pipe := pipeline, picture)
    asked = [serving.options(**OPTIONS | {"seed": 1}) for _ in range(3)]
    (_, somebody), *_ = serving.sample_people(pipe, picture, faces, 2, 1, asked[0])
    both, reports = serving.replace_faces(pipe, picture, faces, [1, 2], {2: somebody}, asked[1])
    alone, report = serving.replace_faces(pipe, picture, faces, [1], {2: somebody}, asked[2])
    assert [reports[number].method for number in (1, 2)] == ["diffusion"] * 2 and set(report) == {1}
    half = np.s_[:, :540]
    assert np.abs(np.asarray(both)[half].astype(int) - np.asarray(alone)[half]).max() <= 1
    assert (np.asarray(alone)[:, 540:] == np.asarray(picture.image)[:, 540:]).all()
    with pytest.raises(serving.DiffDeIDError, match="Choose again"):
        serving.replace_faces(pipe, picture, faces, [3], {}, asked[0])


def test_surprises_are_logged_without_what_they_say(pipeline, astronaut, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError(name)

    name = "Jane " + "Doe"

    monkeypatch.setattr(app.serving, "find_faces", fail)
    with pytest.raises(gr.Error, match="could not be processed"):
        only(app.anonymize(pipeline, str(astronaut), None, None, **OPTIONS))
    assert "RuntimeError" in caplog.text and "find_faces" in caplog.text and name not in caplog.text


def test_networks_work_in_one_thread(pipeline, astronaut, clip):
    threads = set()
    hook = pipeline.unet.register_forward_hook(lambda *_: threads.add(threading.current_thread().name))
    chosen = 7, 1, False, "context", 0
    only(app.anonymize(pipeline, astronaut, None, {}, *chosen))
    only(app.anonymize_video(DiffDeIDVideoPipeline.sharing(pipeline), clip, *chosen))
    only(app.show_candidates(pipeline, astronaut, 1, *chosen))
    only(app.explain(pipeline, astronaut, *chosen))
    hook.remove()
    assert len(threads) == 1 and threads.pop().startswith("networks")


def test_only_the_wanted_faces_change_and_the_page_says_so(pipeline, two):
    drawn, choice, number, chosen = only(app.show_faces(pipeline, str(two)))
    assert [label for _, label in drawn["value"][1]] == ["Face 1", "Face 2"] and choice["value"] == [1, 2]
    assert number["maximum"] == 2 and chosen == {}
    (before, after), _, report = only(app.anonymize(pipeline, str(two), [2], {}, **OPTIONS))
    changed = (np.asarray(before) != np.asarray(after)).any(-1)
    assert changed[:, 540:].any() and not changed[:, :540].any()
    assert report.split("\n\n")[0] == "**Face 1** was left unchanged, as you chose."
    _, _, report = only(app.anonymize(pipeline, str(two), [], {}, **OPTIONS))
    assert "as you chose" not in report


def test_a_candidate_that_was_clicked_is_taken(pipeline, astronaut):
    gallery, candidates = only(app.show_candidates(pipeline, str(astronaut), 1, **OPTIONS))
    assert len(gallery["value"]) == len(candidates[1]) >= 2
    click = gr.SelectData(None, {"index": 1, "value": None})
    chosen = app.choose({}, candidates, click)
    assert chosen[1] is candidates[1][1]
    asked = OPTIONS | {"seed": 5}
    (_, after), _, _ = only(app.anonymize(pipeline, str(astronaut), None, chosen, **asked))
    (_, other), _, _ = only(app.anonymize(pipeline, str(astronaut), None, {}, **asked))
    face = pipeline.detect_faces(np.asarray(Image.open(astronaut)))[0]
    shown, taken, sampled = (
        np.asarray(picture, float)
        for picture in (gallery["value"][1], *(pipeline.engine.crop(np.asarray(one), face).image for one in (after, other)))
    )
    assert np.abs(taken - shown).mean() < 0.6 * np.abs(sampled - shown).mean()


def followed(pipe, clip, target, **options):
    watch, asked = serving.Watch(), serving.options(**OPTIONS | options)
    pipe = DiffDeIDVideoPipeline.sharing(pipe)
    return watch.follow(serving.deidentify_video, pipe, clip, target, asked, watch, meanwhile=lambda progress: progress)


@pytest.fixture
def steps(pipeline) -> list:
    """A list that grows by one at each step of the denoiser."""
    steps = []
    hook = pipeline.unet.register_forward_hook(lambda *_: steps.append(1))
    yield steps
    hook.remove()


def test_a_video_says_how_far_it_is(pipeline, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.01)
    updates = [update for update in followed(pipeline, clip, tmp_path / "out.mp4") if update]
    assert {update.stage for update in updates} == {"analyse", "render", "verify"} and {update.total for update in updates} == {6}
    assert (tmp_path / "out.mp4").is_file()


def test_a_video_that_nobody_waits_for_stops_while_people_are_cast(pipeline, clip, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(serving, "PATIENCE", 0.01)
    updates = followed(pipeline, clip, tmp_path / "out.mp4", steps=50)
    next(update for update in updates if steps)
    updates.close()
    serving.ON_CPU.submit(len, "").result()  # the thread is free again
    assert len(steps) < 25 and list(tmp_path.iterdir()) == []


def test_a_photo_that_nobody_waits_for_stops(pipeline, astronaut, monkeypatch, steps):
    monkeypatch.setattr(serving, "PATIENCE", 0.01)
    updates = app.anonymize(pipeline, str(astronaut), None, {}, **OPTIONS | {"steps": 50})
    next(update for update in updates if steps)
    updates.close()
    serving.ON_CPU.submit(len, "").result()
    assert len(steps) < 25


@pytest.mark.parametrize("function", ["show_faces", "show_people"])
def test_a_search_that_nobody_waits_for_stops_between_two_looks(pipeline, astronaut, clip, folders, monkeypatch, function):
    monkeypatch.setattr(serving, "PATIENCE", 0.01)
    look, looks = pipeline.face_analyser.run, []
    monkeypatch.setattr(pipeline.face_analyser, "run", lambda *given: looks.append(1) or look(*given))
    updates = getattr(app, function)(pipeline, str(astronaut if function == "show_faces" else clip))
    next(update for update in updates if looks)
    updates.close()
    serving.ON_CPU.submit(len, "").result()
    assert len(looks) <= 2 and not contents([folders[1]])


@pytest.mark.parametrize("function", ["anonymize", "explain", "show_candidates", "anonymize_video"])
def test_all_work_stops_when_the_server_closes_and_covers_nobody(pipeline, astronaut, clip, monkeypatch, steps, function):
    monkeypatch.setattr(serving, "CLOSING", closing := threading.Event())
    hook = pipeline.unet.register_forward_pre_hook(lambda *_: closing.set())
    inputs = {"anonymize": (astronaut, None, {}), "explain": (astronaut,), "show_candidates": (astronaut, 1)}
    pipe = DiffDeIDVideoPipeline.sharing(pipeline) if function == "anonymize_video" else pipeline
    with pytest.raises(gr.Error, match="closing down"):
        only(getattr(app, function)(pipe, *inputs.get(function, (clip,)), **OPTIONS | {"steps": 2}))
    hook.remove()
    assert len(steps) == 1


def test_a_deleted_upload_is_said_to_be_one(pipeline):
    with pytest.raises(gr.Error, match="Upload it again"):
        only(app.anonymize(pipeline, "/gone/photo.png", None, {}, **OPTIONS))


def test_messages_name_files_without_their_folders():
    with pytest.raises(gr.Error) as caught, app.errors_in_words():
        raise serving.VideoError("`/tmp/a b/c.mp4` is broken: [Errno 2] '/tmp/a b/c.mp4'. It's `--start`.")
    assert caught.value.message == "`c.mp4` is broken: [Errno 2] `c.mp4`. It's `--start`."


def test_a_video_that_hides_its_length_is_refused_once_it_is_too_long(pipeline, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "MAX_FRAMES", 3)
    monkeypatch.setattr(serving, "check_video", lambda _: None)
    with pytest.raises(serving.VideoError, match="more than 3 frames"):
        list(followed(pipeline, clip, tmp_path / "out.mp4"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("endpoint", ["/anonymize", "/anonymize_video", "/anonymize_files"])
def test_stop_ends_the_work_and_the_next_request_is_answered(client, clip, astronaut, folders, steps, endpoint):
    sent = {"photo": handle_file(astronaut), "video": handle_file(clip), "files": [handle_file(astronaut)]}
    name = {"/anonymize": "photo", "/anonymize_video": "video", "/anonymize_files": "files"}[endpoint]
    job = client.submit(**{name: sent[name]}, **OPTIONS | {"steps": 50}, api_name=endpoint)
    wait_for(lambda: steps)
    job.cancel()
    wait_for(lambda: not contents([folders[1]]))
    serving.ON_CPU.submit(len, "").result()
    assert len(steps) < 25
    assert "somebody else" in client.predict(photo=handle_file(astronaut), **OPTIONS, api_name="/anonymize")[2]


@pytest.mark.parametrize(("limit", "value", "message"), [("MAX_FRAMES", 5, "longer than 0 seconds"), ("MAX_SIDE", 200, "larger")])
def test_videos_beyond_the_limits_are_refused(clip, monkeypatch, limit, value, message):
    serving.check_video(clip)
    monkeypatch.setattr(serving, limit, value)
    with pytest.raises(serving.VideoError, match=message):
        serving.check_video(clip)


def test_requests_leave_no_picture(serve, folders, tmp_path, monkeypatch, astronaut):
    """The server deletes files once they are eight seconds old."""
    served, downloads = (tmp_path / name for name in ("served", "downloads"))
    downloads.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(served))  # alone, or it would delete those of other tests
    client, own = Client(serve((1, 8)), verbose=False, download_files=downloads), [served, folders[1]]
    for _ in range(3):
        client.predict(photo=handle_file(astronaut), **OPTIONS, api_name="/anonymize")
    assert contents(own)  # the last results at least
    wait_for(lambda: not contents(own))


def test_programs_may_send_the_same_photo_several_times_at_once(client, astronaut):
    asked = [{"photo": handle_file(astronaut)} | OPTIONS | {"seed": seed} for seed in range(3)]
    jobs = [client.submit(**one, api_name="/anonymize") for one in asked]
    assert all("somebody else" in job.result()[2] for job in jobs)


def test_files_go_when_no_page_shows_them(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside.png"
    inside.mkdir()
    photo, result, other = files = [inside / name for name in ("photo.png", "result.png", "other.png")]
    there = lambda: [file for file in (*files, outside) if file.exists()]  # noqa: E731
    for file in (*files, outside):
        file.touch()
    waiting = [str(photo)]
    uploads = serving.Uploads(inside, lambda: waiting)
    uploads.show("a page", map(str, (photo, result, outside)))
    uploads.show("another page", [str(photo)])
    uploads.show("a page", [str(photo), str(other)])
    assert there() == [photo, other, outside]
    uploads.close("a page")
    assert there() == [photo, outside]
    waiting.clear()
    uploads.show("a third page", [str(photo)])
    uploads.close("another page")
    assert there() == [photo, outside]
    uploads.close("a third page")
    assert there() == [outside]


def test_examples_are_served_from_where_they_are(serve, folders):
    """Examples are neither copied nor deleted."""
    before = {path: path.read_bytes() for path in app.EXAMPLES.iterdir()}
    photo, *_ = photos = sorted(path for path in before if path.suffix == ".jpg")
    assert len(photos) >= 3 and sum(map(len, before.values())) < 310_000
    server = f"{serve(app.CACHE)}gradio_api"
    assert all(httpx.get(f"{server}/file={path}").content == before[path] for path in photos)
    example = {"path": str(photo), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{server}/call/anonymize", json={"data": [example, [], {}, *OPTIONS.values()]}).json()["event_id"]
    answer = httpx.get(f"{server}/call/anonymize/{event}", timeout=300).text
    assert "event: complete" in answer and "**Face 1** is somebody else" in answer
    assert not [copy for copy in contents(folders) if copy.name in {path.name for path in photos}]
    assert {path: path.read_bytes() for path in app.EXAMPLES.iterdir()} == before


def test_a_gpu_is_asked_for_where_one_is_lent(pipeline, clip, monkeypatch):
    asked = []
    monkeypatch.setattr(app, "GPU", lambda duration: asked.append(duration) or (lambda handler: handler))
    app.build_demo(pipeline)
    fixed = [duration for duration in asked if not callable(duration)]
    (of_video,) = set(asked) - set(fixed)
    assert fixed == [60, 60, 300, 60] and of_video(str(clip), 7, 8) == 60 and of_video(None) == 60


def test_a_space_is_built_and_answers_what_the_readme_asks(started, astronaut, clip, tmp_path):
    """The app runs in a folder of its own, and in a process that cannot import another copy of the package."""
    root, temporary, asker = Path(app.__file__).parent, tmp_path / "temporary", tmp_path / "asker"
    release = runpy.run_path(str(root / "scripts/release.py"))
    release["build_space"](release["ROOT"] / "weights/diffdeid", space := tmp_path / "space")
    names = {"LICENSE", "README.md", "app.py", "diffdeid", "examples", "requirements.txt", "weights"}
    assert {path.name for path in space.iterdir()} == names
    assert not [path for path in space.rglob("*") if "evaluators" in path.parts or path.is_symlink()]
    assert f"sdk_version: {gr.__version__.split('.')[0]}." in (space / "README.md").read_text().split("---")[1]
    where = subprocess.run([sys.executable, "-c", "import diffdeid; print(diffdeid.__file__)"], cwd=space, stdout=subprocess.PIPE)
    assert Path(where.stdout.decode().strip()) == space / "diffdeid/__init__.py"

    asker.mkdir()
    for source, names in ((astronaut, ("photo.jpg", "a.jpg", "b.jpg")), (clip, ("clip.mp4",))):
        for name in names:
            shutil.copy(source, asker / name)
    code = re.search(r"```python\n(from gradio_client .*?)```", (root / "README.md").read_text(), re.DOTALL)[1]
    with started(space, temporary) as (process, address):
        code = code.replace("http://127.0.0.1:7860", address) + "print(file, archive)"
        own = os.environ | {"GRADIO_TEMP_DIR": str(asker)}  # of no other server, which would delete what it downloads
        asked = subprocess.run([sys.executable, "-c", code], cwd=asker, env=own, capture_output=True, text=True)
        assert asked.returncode == 0, asked.stderr
        video, archive = map(Path, asked.stdout.splitlines()[-1].split())
        assert VideoReader(video).num_frames == 6
        assert zipfile.ZipFile(archive).namelist() == ["01_a_anonymized.jpg", "02_b_anonymized.jpg"]
        assert contents([temporary])
        ends_at_once(process, address, clip, temporary)


def ends_at_once(process: subprocess.Popen, address: str, clip: Path, temporary: Path):
    """Press Ctrl-C while a server casts people for a video: nothing of the video is left."""
    client = Client(address, verbose=False, download_files=False)
    job = client.submit(video=handle_file(clip), **OPTIONS | {"steps": 50}, api_name="/anonymize_video")
    wait_for(lambda: any("6 of about" in str(output) for output in job.outputs()))
    assert contents([temporary])
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not list(temporary.glob("diffdeid-*")) and not contents([temporary / "gradio"])
