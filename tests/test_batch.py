from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from PIL import Image

from diffdeid import FileOptions, VideoOptions, batch, read_image, write_image
from diffdeid.batch import plan


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with pictures, a film and other things in it."""
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
    """Leaves pictures as they are; waits until something has happened."""

    def __init__(self, *conditions):
        self.conditions = list(conditions)

    def __call__(self, image, num_images_per_prompt, **_):
        assert self.conditions.pop(0).wait(20)
        return SimpleNamespace(images=[image] * num_images_per_prompt, faces=[[]] * num_images_per_prompt)


def test_pictures_are_decoded_and_encoded_while_others_are_worked_on(tmp_path, monkeypatch):
    """The first waits for the second to be read, and the third for the first to be written. One is damaged in between."""
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
    done = list(batch.run(lambda _: pipe, jobs, VideoOptions(), FileOptions(), "error", False, 0))
    assert [(Path(record["input"]).name, record["status"]) for (record,) in done] == [
        ("a.png", "no_face"), ("b.png", "error"), ("c.png", "no_face"), ("d.png", "no_face"),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.glob("*_anonymized.png")) == [f"{n}_anonymized.png" for n in "acd"]
