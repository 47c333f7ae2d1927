import io
import itertools
import pickle
import tempfile
from pathlib import Path
from threading import Event, Lock
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffdeid import FileOptions, VideoOptions, batch, read_image, write_image
from diffdeid.batch import How
from diffdeid.engine.pictures import draw_seeds
from diffdeid.engine.reports import FaceReport
from diffdeid.errors import NoFaceFoundError, VerificationError
from diffdeid.face_lists import ListedFace, PictureList
from diffdeid.io.manifest import Manifest
from diffdeid.io.stores import location
from diffdeid.planning import Job, plan, shard


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with pictures, a video and other files in it."""
    names = ["a.jpg", "b.PNG", "a_anonymized.jpg", "c_anonymized_2.jpg", ".hidden.jpg", "notes.txt", "film.mp4"]
    for name in [f"photos/{name}" for name in [*names, "deep/a.jpg", ".cache/x.jpg"]] + ["other/a.jpg", "-dash.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(inputs, output=None, candidates=1) -> dict[str, list[str]]:
    jobs = plan(inputs, None if output is None else Path(output), candidates)
    return {str(job.source): [str(path) for path in job.outputs] for job in jobs}


def test_the_default_output_is_next_to_the_input(folder):
    assert planned(["photos/a.jpg"]) == {"photos/a.jpg": ["photos/a_anonymized.jpg"]}


def test_a_folder_is_searched_and_mirrored_without_hidden_files_and_earlier_outputs(folder):
    assert planned(["photos"], "out") == {
        "photos/a.jpg": ["out/a_anonymized.jpg"],
        "photos/b.PNG": ["out/b_anonymized.PNG"],
        "photos/deep/a.jpg": ["out/deep/a_anonymized.jpg"],
        "photos/film.mp4": ["out/film_anonymized.mp4"],
    }


def test_videos_become_mp4_unless_told_otherwise(folder):
    (folder / "b.avi").touch()
    assert planned(["b.avi"]) == {"b.avi": ["b_anonymized.mp4"]}
    assert planned(["b.avi"], "c.mkv") == {"b.avi": ["c.mkv"]}


def test_clips_of_one_name_get_outputs_of_their_own(folder):
    """Phones write IMG_1.mov beside IMG_1.mp4."""
    for name in ("b.mov", "b.mp4", "b.avi"):
        (folder / name).touch()
    assert planned(["b.*"]) == {
        "b.avi": ["b.avi_anonymized.mp4"],
        "b.mov": ["b.mov_anonymized.mp4"],
        "b.mp4": ["b_anonymized.mp4"],
    }
    assert planned(["b.mov", "b.avi"], candidates=2)["b.mov"] == ["b.mov_anonymized_1.mp4", "b.mov_anonymized_2.mp4"]


def test_a_pattern_is_mirrored_below_its_fixed_part(folder):
    assert planned(["photos/**/a*.jpg"], "out") == {
        "photos/a.jpg": ["out/a_anonymized.jpg"],
        "photos/deep/a.jpg": ["out/deep/a_anonymized.jpg"],
    }


def test_one_input_can_go_to_one_file(folder):
    assert planned(["photos/a.jpg"], "x/y.png") == {"photos/a.jpg": ["x/y.png"]}
    assert planned(["photos/a.jpg"], "x/y.png", candidates=2) == {"photos/a.jpg": ["x/y_1.png", "x/y_2.png"]}


def test_candidates_are_numbered(folder):
    assert planned(["photos/a.jpg"], candidates=2) == {"photos/a.jpg": ["photos/a_anonymized_1.jpg", "photos/a_anonymized_2.jpg"]}


def test_a_file_named_twice_is_done_once(folder):
    assert list(planned(["photos/a.jpg", "./photos/../photos/a.jpg", "photos/a*.jpg"])) == ["photos/a.jpg"]


def test_names_with_a_dash_and_with_brackets_are_names(folder):
    (folder / "x[1].jpg").touch()
    assert list(planned(["-dash.jpg", "x[1].jpg"])) == ["-dash.jpg", "x[1].jpg"]


def test_links_to_pictures_are_followed_and_links_to_folders_are_not(folder):
    (folder / "other" / "link.jpg").symlink_to(folder / "photos" / "a.jpg")
    (folder / "other" / "loop").symlink_to(folder / "other")
    assert list(planned(["other"])) == ["other/a.jpg", "other/link.jpg"]


@pytest.mark.parametrize("name", ["nowhere.jpg", "*.tiff", "empty"])
def test_an_input_that_matches_nothing_is_an_error(folder, name):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="matches no picture"):
        plan(["photos", name], None, 1)


def test_two_inputs_with_one_output_are_an_error(folder):
    with pytest.raises(ValueError, match="both be written"):
        plan(["photos/a.jpg", "other/a.jpg"], Path("out"), 1)


def test_many_inputs_for_one_file_are_an_error(folder):
    with pytest.raises(ValueError, match="one file, but there are 4 inputs"):
        plan(["photos"], Path("out.jpg"), 1)


@pytest.mark.parametrize("link", [False, True])
def test_an_output_that_is_an_input_is_an_error(folder, link):
    output = folder / "photos" / "a.jpg"
    if link:
        output = folder / "link.jpg"
        output.symlink_to(folder / "photos" / "a.jpg")
    with pytest.raises(ValueError, match="never written to"):
        plan(["photos/a.jpg"], output, 1)


class Pipe:
    """A pipeline that leaves pictures as they are, and waits until something has happened."""

    def __init__(self, *conditions):
        self.conditions = list(conditions)

    def __call__(self, images, **_):
        assert self.conditions.pop(0).wait(20)
        return SimpleNamespace(images=images, faces=[[]] * len(images), errors=[None] * len(images))


def test_pictures_are_decoded_and_encoded_while_others_are_worked_on(tmp_path, monkeypatch):
    """The first picture waits until the second is read, and the third until the first is written. One is damaged in between."""
    names = ("a.png", "b.png", "c.png", "d.png")
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    read, written = Event(), Event()

    def reading(path):
        if path.name == "b.png":
            read.set()
        return read_image(path)

    def writing(path, *rest):
        write_image(path, *rest)
        written.set()

    monkeypatch.setattr(batch, "read_image", reading)
    monkeypatch.setattr(batch, "write_image", writing)
    pipe = Pipe(read, written, written)
    jobs = plan([str(tmp_path / name) for name in names], None, 1)
    done = list(batch.run(lambda _: pipe, jobs, How(VideoOptions(), FileOptions(), verify=False)))
    assert [(Path(record["input"]).name, record["status"]) for (record,) in done] == [
        ("a.png", "no_face"), ("b.png", "error"), ("c.png", "no_face"), ("d.png", "no_face"),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob("*_anonymized.png")) == [f"{n}_anonymized.png" for n in "acd"]


def test_no_more_than_three_pictures_are_in_memory(tmp_path, monkeypatch):
    """One picture is decoded ahead, one is worked on, and one is written."""
    for number in range(8):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    lock, held, most = Lock(), [0], []

    def reading(path):
        with lock:
            held[0] += 1
            most.append(held[0])
        return read_image(path)

    def writing(path, *rest):
        write_image(path, *rest)
        with lock:
            held[0] -= 1

    monkeypatch.setattr(batch, "read_image", reading)
    monkeypatch.setattr(batch, "write_image", writing)
    for _ in run(plan([str(tmp_path)], None, 1)):
        pass
    assert len(most) == 8 and max(most) <= 3 and held == [0]


@pytest.mark.parametrize("known", [None, {}, {Path("/elsewhere.png"): []}])
def test_pictures_whose_faces_are_not_known_are_searched(tmp_path, known):
    """Without a list, a picture is searched; an empty list would leave all of its faces as they are."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    seen = []
    pipe = lambda *given, **options: seen.append(options.get("faces")) or Numbered()(*given, **options)  # noqa: E731
    list(batch.run(lambda _: pipe, plan([str(tmp_path)], None, 1), How(VideoOptions(), FileOptions(), verify=False), known))
    assert seen == [None]


class Numbered:
    """A pipeline whose results are pictures that tell the number of the candidate, and the seed, by their colour."""

    def __call__(self, images, num_images_per_prompt, generator, **_):
        seeds = [0 if one is None else one.initial_seed() for one in generator]
        made = [Image.new("RGB", (8, 8), (number, seed, 0)) for seed in seeds for number in range(num_images_per_prompt)]
        reports = [FaceReport((0, 0, 1, 1), None, "fill", None, None, 0, "test")]
        return SimpleNamespace(images=made, faces=[reports] * len(made), errors=[None] * len(images))


def run(jobs, manifest=None, on_no_face="error", existing="error", seed=None, pipe=None, at_once=1, **options):
    """The records of jobs, by the name of the input."""
    how = How(VideoOptions(**options), FileOptions(), on_no_face, existing, seed, verify=False)
    done = batch.run(lambda _: pipe or Numbered(), jobs, how, None, manifest, at_once)
    return [(Path(record["input"]).name, record["status"]) for records in done for record in records]


class Grouped(Numbered):
    """Notes how many pictures it gets at once; fails on several if one of them is red; finds nobody in black ones."""

    def __init__(self):
        self.groups: list[int] = []
        self.drawn: set[int] = set()

    def __call__(self, images, **given):
        self.groups.append(len(images))
        self.drawn.update(*(draw_seeds(one, 1) for one in given["generator"]))
        if len(images) > 1 and any(image.getpixel((0, 0))[0] for image in images):
            raise RuntimeError("red")
        output = super().__call__(images, **given)
        output.errors = [None if image.getbbox() else NoFaceFoundError("nobody") for image in images]
        return output


@pytest.mark.parametrize(
    ("colours", "at_once", "groups"),
    [
        ("bbbbb", 1, [1] * 5),
        ("bbbbb", 3, [3, 2]),
        ("bb-bb", 2, [2, 1, 1]),  # one that cannot be read
        ("bb.bb", 3, [3, 2]),  # one that shows nobody
        ("bbBbb", 4, [3, 2]),  # a large one
        ("bbrb", 4, [4, 1, 1, 1, 1]),  # one that lets a group fail
    ],
)
def test_pictures_go_to_the_networks_in_groups_and_none_touches_another(tmp_path, monkeypatch, colours, at_once, groups):
    monkeypatch.setattr(batch, "MOST_PIXELS", 2000)
    expected = []
    for number, kind in enumerate(colours):
        file, side = tmp_path / f"{number}.png", 40 if kind == "B" else 8
        Image.new("RGB", (side, side), {"r": "red", ".": "black"}.get(kind, "blue")).save(file)
        if kind == "-":
            file.write_bytes(b"no picture")
        expected.append((file.name, {"-": "error", ".": "no_face"}.get(kind, "fallback")))
    pipe, jobs = Grouped(), plan([str(tmp_path)], None, 2)
    done = run(jobs, seed=3, pipe=pipe, at_once=at_once)
    assert pipe.groups == groups and list(dict.fromkeys(done)) == expected
    assert len(pipe.drawn) == 1  # whatever failed before, all randomness comes from the seed
    made = [job.outputs for job, (_, status) in zip(jobs, expected, strict=True) if status == "fallback"]
    assert all([colour(path) for path in outputs] == [(0, 3, 0), (1, 3, 0)] for outputs in made)


def test_videos_are_in_no_group():
    tasks = [SimpleNamespace(job=Job(Path(name), (), Path(name)), picture=None, read=lambda: None) for name in
             ("a.png", "b.png", "c.mp4", "d.mp4", "e.png")]  # fmt: skip
    groups = batch.gathered(tasks, 64)
    assert [[task.job.source.stem for task in group] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"]]


def colour(path: Path) -> tuple[int, ...]:
    return tuple(np.asarray(Image.open(path))[0, 0].tolist())


@pytest.mark.parametrize(("existing", "status"), [("error", "error"), ("skip", "skipped"), ("replace", "error")])
def test_what_becomes_of_existing_outputs_is_decided_before_decoding(tmp_path, monkeypatch, existing, status):
    (tmp_path / "a.png").write_bytes(b"damaged")
    (tmp_path / "a_anonymized.png").write_bytes(b"mine")
    read = []
    monkeypatch.setattr(batch, "read_image", lambda path: read.append(path) or read_image(path))
    assert run(plan([str(tmp_path / "a.png")], None, 1), existing=existing) == [("a.png", status)]
    assert (tmp_path / "a_anonymized.png").read_bytes() == b"mine" and bool(read) == (existing == "replace")


def test_missing_candidates_are_made_and_the_others_stay(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    jobs = plan([str(tmp_path / "a.png")], None, 3)
    jobs[0].outputs[1].write_bytes(b"mine")
    assert [status for _, status in run(jobs, existing="skip")] == ["skipped", "fallback", "fallback"]
    assert jobs[0].outputs[1].read_bytes() == b"mine"
    assert colour(jobs[0].outputs[0])[0] == 0 and colour(jobs[0].outputs[2])[0] == 2


def test_a_candidate_that_fails_stops_no_other(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    jobs = plan([str(tmp_path / "a.png")], None, 3)

    def write(path, *given):
        if path == jobs[0].outputs[1]:
            raise VerificationError("it shows the source")
        write_image(path, *given)

    monkeypatch.setattr(batch, "write_image", write)
    assert [status for _, status in run(jobs)] == ["fallback", "error", "fallback"]
    assert [path.exists() for path in jobs[0].outputs] == [True, False, True]


def test_a_run_goes_on_from_its_manifest(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"damaged")
    jobs, path = plan([str(tmp_path)], None, 1), tmp_path / "done.jsonl"

    def go_on(seed=1, **choices):
        return [status for _, status in run(jobs, Manifest(path, seed), seed=seed, **choices)]

    assert go_on() == ["fallback", "fallback", "error"]
    assert go_on() == ["skipped", "skipped", "error"]  # without --existing skip
    assert go_on(level=3) == ["error", "error", "error"]  # what is there was made otherwise
    how = How(VideoOptions(level=3), FileOptions(), seed=1, verify=False)
    ((record,), *_) = batch.run(lambda _: Numbered(), jobs, how, None, Manifest(path, 1))
    assert "the options" in record["error"] and "have changed. Pass `--existing replace`" in record["error"]
    assert go_on(level=3, existing="replace") == ["fallback", "fallback", "error"]
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    assert go_on(level=3, existing="replace") == ["skipped", "fallback", "fallback"]
    assert go_on(2, level=3, existing="replace") == ["fallback"] * 3 and colour(jobs[0].outputs[0])[1] == 2


def test_an_interrupted_run_has_all_finished_files_in_its_manifest(tmp_path, monkeypatch):
    """That includes the file that was written while the next one was interrupted."""
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    jobs, path, numbers = plan([str(tmp_path)], None, 1), tmp_path / "done.jsonl", itertools.count()

    class Interrupted(Numbered):
        def __call__(self, *given, **options):
            if next(numbers) == 2:
                raise KeyboardInterrupt
            return super().__call__(*given, **options)

    with pytest.raises(KeyboardInterrupt):
        run(jobs, Manifest(path, 0), pipe=Interrupted())
    assert [status for _, status in run(jobs, Manifest(path, 0))] == ["skipped", "skipped", "fallback"]


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path, monkeypatch):
    """A folder of a store with two pictures and a damaged one; fails if a copy of them is left on this disk."""
    folder = location(f"memory://{uuid4().hex}" if request.param == "memory" else f"local://{tmp_path}/store")
    folder.fs.makedirs((folder / "in").path)
    for name, content in {"a.png": png((8, 8)), "b.png": b"damaged", "c.png": png((8, 8))}.items():
        folder.fs.pipe_file((folder / "in" / name).path, content)
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "private"))
    yield folder
    assert not list((tmp_path / "private").iterdir())


def png(size: tuple[int, int]) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size).save(written, "png")
    return written.getvalue()


def test_a_store_is_read_and_written_as_a_disk_is(store, tmp_path):
    def go_on(**choices):
        jobs = plan([f"{store}/in"], location(f"{store}/out"), 2)
        return run(jobs, Manifest(tmp_path / "done.jsonl", 0), seed=1, **choices)

    damaged = [("b.png", "error")]
    assert go_on() == [("a.png", "fallback")] * 2 + damaged + [("c.png", "fallback")] * 2
    names = [f"{name}_anonymized_{number}.png" for name in "ac" for number in (1, 2)]
    assert sorted(path.name for path in (store / "out").iterdir()) == names
    assert go_on() == [("a.png", "skipped")] * 2 + damaged + [("c.png", "skipped")] * 2
    assert go_on(level=3) == [("a.png", "error"), *damaged, ("c.png", "error")]
    store.fs.pipe_file((store / "in/a.png").path, png((9, 9)))
    store.fs.rm_file((store / "out/c_anonymized_2.png").path)
    assert go_on() == [("a.png", "error"), *damaged, ("c.png", "skipped"), ("c.png", "fallback")]
    assert go_on(existing="replace") == [("a.png", "fallback")] * 2 + damaged + [("c.png", "skipped")] * 2


def test_records_say_urls(store):
    jobs = plan([f"{store}/in/{name}.png" for name in "bc"], location(f"{store}/out/"), 1)
    how = How(VideoOptions(), FileOptions(), verify=False)
    (bad,), (good,) = batch.run(lambda _: Numbered(), jobs, how)
    assert bad["input"] == f"{store}/in/b.png" and bad["error"].startswith(f"`{store}/in/b.png` is no picture")
    assert good["input"] == f"{store}/in/c.png" and good["output"] == f"{store}/out/c_anonymized.png"


def test_an_interrupted_run_leaves_no_copy(store):
    """No copy is left, neither of the picture in hand nor of the next one: the fixture checks that."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan([f"{store}/in"], location(f"{store}/out"), 1), pipe=interrupt)


def test_workers_elsewhere_get_tasks_with_urls(store):
    (job,) = plan([f"{store}/in/a.png"], location(f"{store}/out"), 1)
    task = pickle.loads(pickle.dumps(batch.Task(job, How(VideoOptions(), FileOptions(), verify=False))))
    task.decide()
    task.read()
    batch.make([task], lambda _: Numbered())
    assert task.finish()[0]["output"] == f"{store}/out/a_anonymized.png" and task.job.outputs[0].exists()


names = st.sets(st.text("abcdé/ ", min_size=1).map(lambda name: name.strip("/") + ".png"), min_size=1)


@given(names, names, st.integers(1, 9))
def test_shards_are_disjoint_and_complete_and_new_files_move_no_other(some, others, count):
    def shards(folder: str, names: set[str]) -> dict[str, int]:
        jobs = [Job(Path(folder, name), (Path("out", name),), Path(name)) for name in names]
        return {str(job.relative): number for number in range(1, count + 1) for job in shard(jobs, number, count)}

    few, many = shards("here", some), shards("there", {*others, *some})
    assert few.keys() == {str(Path(name)) for name in some} and few.items() <= many.items()
    assert sum(
        len(shard([Job(Path(name), (), Path(name))], number, count)) for name in some for number in range(1, count + 1)
    ) == len(some)


def test_shards_are_of_one_size_about():
    jobs = [Job(Path(f"{number}.png"), (), Path(f"{number}.png")) for number in range(2000)]
    assert all(400 < len(shard(jobs, number, 4)) < 600 for number in range(1, 5))


def test_a_manifest_takes_lists_without_a_version(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (job,) = plan([str(tmp_path)], None, 1)
    task = batch.Task(job, How(VideoOptions(), FileOptions()), PictureList((ListedFace(1, (0.0, 0.0, 4.0, 4.0)),)))
    task.decide(Manifest(tmp_path / "m.jsonl", 0))
    assert task.missing and task.digest and not task.records
