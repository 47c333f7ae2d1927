"""Corrections of lists of faces, step by step, as the page of `diffdeid review` makes them."""

import xml.etree.ElementTree as xml
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffdeid import reviewing
from diffdeid.face_lists import DrawnTrack, ListedFace, ListedTrack, PictureList, Source, VideoList, read_face_list

BOX, OTHER = (0.0, 0.0, 20.0, 20.0), (5.0, 5.0, 10.0, 10.0)
PHOTO = PictureList((ListedFace(1, BOX), ListedFace(2, OTHER, uncertain=("its score is 0.4",))), 2, Source("0f", 60, 40))
TRACKS = (
    ListedTrack(1, 1, ((0, BOX), (9, BOX))),
    ListedTrack(2, 2, ((4, OTHER), (19, OTHER)), uncertain=(((5, 6), "lost for a moment"),)),
)
VIDEO = VideoList(Source("0f", 60, 40, 20), TRACKS)


def test_doubtful_faces_come_first():
    assert [number for _, number in reviewing.queue(PHOTO)] == [2, 1]
    words = reviewing.queue(reviewing.strike(reviewing.add(VIDEO, BOX, 3, 5), 1, 2, 3))
    assert [number for _, number in words] == [2, 1, -1]
    assert "lost for a moment (5 to 6)" in words[0][0] and "deleted 2 to 3" in words[1][0] and "drawn" in words[2][0]
    assert "KEPT" in reviewing.queue(reviewing.keep(PHOTO, 1))[1][0] and "KEPT" in reviewing.queue(reviewing.keep(VIDEO, 1))[1][0]


@pytest.mark.parametrize("listed", [PHOTO, VIDEO])
def test_corrections_change_their_own_entry_alone_and_can_be_taken_back_and_written(listed, tmp_path):
    steps = [
        lambda one: reviewing.another(one, 1), lambda one: reviewing.keep(one, 1), lambda one: reviewing.strike(one, 1, 3, 5),
        lambda one: reviewing.add(one, OTHER, 3, 5), lambda one: reviewing.another(one, 2),
    ]  # fmt: skip
    for step in steps:
        corrected = step(listed)
        assert corrected != listed
        path = tmp_path / "faces.jsonl"
        reviewing.save_list({Path("a").resolve(): corrected}, path)
        assert read_face_list(path) == {Path("a").resolve(): corrected}
    for change in steps[1:3]:
        back = reviewing.restore(change(listed), 1)
        assert reviewing.boxes_at(back) == reviewing.boxes_at(listed) and "KEPT" not in str(reviewing.queue(back))


def test_people_of_a_video_are_merged_split_and_drawn():
    merged = reviewing.assign(VIDEO, 2, 1)
    assert [track.person for track in merged.tracks] == [1, 1]
    drawn = reviewing.add(reviewing.add(VIDEO, BOX, 3, 5), OTHER, 7, 7, person=1)
    assert drawn.drawn == (DrawnTrack(3, ((3, BOX), (5, BOX))), DrawnTrack(1, ((7, OTHER),)))
    assert reviewing.boxes_at(drawn, 4) == {1: BOX, 2: OTHER, -1: BOX} and -2 in reviewing.boxes_at(drawn, 7)
    assert reviewing.assign(drawn, -1, 2).drawn[0].person == 2
    assert reviewing.strike(drawn, -1).drawn == drawn.drawn[1:] and reviewing.strike(drawn, -2).drawn == drawn.drawn[:1]
    assert reviewing.keep(drawn, -1).people[0].id == 3


def test_somebody_new_is_nobody_who_was_kept():
    kept = reviewing.strike(reviewing.keep(reviewing.add(VIDEO, BOX, 3, 5), -1), -1)  # of person 3, nothing but this is left
    (drawn,) = reviewing.add(kept, BOX, 3, 5).drawn
    assert not reviewing.person_of(kept, drawn.person).keep


def test_what_is_deleted_has_no_box():
    assert reviewing.boxes_at(reviewing.strike(PHOTO, 1)) == {2: OTHER}
    struck = reviewing.strike(VIDEO, 2, 5, 9)
    assert [2 in reviewing.boxes_at(struck, frame) for frame in (3, 4, 5, 9, 10, 19)] == [False, True, False, False, True, True]


def test_the_smallest_box_about_a_click_is_meant():
    assert [reviewing.number_at(PHOTO, 0, x, y) for x, y in ((7, 7), (15, 3), (30, 30))] == [2, 1, None]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: reviewing.another(PHOTO, 3), lambda: reviewing.strike(VIDEO, 1, 5, 3), lambda: reviewing.strike(VIDEO, 1, 0, 20),
        lambda: reviewing.add(VIDEO, BOX, -1, 3), lambda: reviewing.add(PHOTO, (5, 5, 5, 9)),
        lambda: reviewing.assign(VIDEO, 1, 0), lambda: reviewing.assign(VIDEO, 1, 2**20 + 1),
        lambda: reviewing.add(VIDEO, BOX, 3, 5, person=0), lambda: reviewing.add(VIDEO, BOX, 3, 5, person=-2),
        lambda: reviewing.move(PHOTO, 1, (9, 9, 0, 0)), lambda: reviewing.keep(VIDEO, 7),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_drawings_show_who_is_chosen_and_where_frames_are_doubtful():
    picture = np.zeros((40, 60, 3), np.uint8)
    one, other = reviewing.draw(picture, PHOTO), reviewing.draw(picture, PHOTO, selected=1)
    assert (one != picture).any() and (one != other).any() and not picture.any()
    drawing = xml.fromstring(reviewing.timeline(reviewing.strike(reviewing.add(VIDEO, BOX, 3, 5), 1, 2, 3), 4, 2))
    assert len(drawing.findall("rect")) == 5 and [text.text for text in drawing.findall("text")] == ["1", "2", "-1"]


def test_a_list_keeps_the_lines_of_other_files(tmp_path):
    path, files = tmp_path / "faces.jsonl", {Path(name).resolve(): PHOTO for name in ("a.jpg", "b.jpg")}
    reviewing.save_list(files, path)
    lists = reviewing.open_list(None, Path("a.jpg"), path)  # nothing is searched
    lists[Path("a.jpg").resolve()] = replace(PHOTO, seed=5)
    reviewing.save_list(lists, path)
    assert read_face_list(path) == files | {Path("a.jpg").resolve(): replace(PHOTO, seed=5)}


def test_a_list_that_cannot_be_written_again_is_refused_at_once(tmp_path):
    path = tmp_path / "faces.jsonl"
    reviewing.save_list({Path("a.jpg").resolve(): PHOTO}, path)
    written = path.read_text() + '{"input": "b.jpg", "faces": [{"box": [0, 0, 20, 20]}]}\n'
    path.write_text(written)
    for file in ("a.jpg", "b.jpg", "c.jpg"):
        with pytest.raises(ValueError, match="`b.jpg` without a version"):
            reviewing.open_list(None, Path(file), path)
    assert path.read_text() == written


def test_a_list_of_another_threshold_is_refused_at_once(tmp_path):
    path, listed = tmp_path / "faces.jsonl", {Path("a.jpg"): PHOTO, Path("b.mp4"): replace(VIDEO, threshold=0.5)}
    listed = {file.resolve(): one for file, one in listed.items()}
    reviewing.save_list(listed, path)
    for file, threshold in (("b.mp4", 0.4), ("a.jpg", 0.5)):
        with pytest.raises(ValueError, match="--threshold"):
            reviewing.open_list(None, Path(file), path, threshold)
    for file, threshold in (("b.mp4", 0.5), ("b.mp4", None), ("a.jpg", None)):
        assert reviewing.open_list(None, Path(file), path, threshold) == listed
