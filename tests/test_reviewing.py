"""Corrections of lists of faces, step by step, as the page of `diffdeid review` makes them."""

import json
import xml.etree.ElementTree as xml
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from diffdeid import reviewing
from diffdeid.detection import LOST
from diffdeid.engine.reports import FaceReport, PersonReport
from diffdeid.face_lists import DrawnTrack, ListedFace, ListedTrack, PictureList, Source, VideoList, read_face_list
from diffdeid.structures import Replaced

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
    assert (
        "lost for a moment, frames 5 to 6" in words[0][0] and "DELETED in frames 2 to 3" in words[1][0] and "drawn" in words[2][0]
    )
    assert "KEPT" in reviewing.queue(reviewing.keep(PHOTO, 1))[1][0] and "KEPT" in reviewing.queue(reviewing.keep(VIDEO, 1))[1][0]


def face_report(method="diffusion", distance=0.9, attempts=1, reason=None, straying=0.5):
    return FaceReport(BOX, None, method, 7, distance, attempts, reason, straying=straying)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (face_report(), ""),
        (face_report(distance=0.48), "new face near the limit of the distance (0.48; at least 0.45)"),
        (face_report(straying=0.93), "its features stray by 93% of what is allowed"),
        (face_report(attempts=4), "new face after 4 of at most 6 attempts"),
        (face_report("fill", None, 6, "it is no face", None), "covered: it is no face"),
        (face_report("kept", None, 0, None, None), ""),
    ],
)
def test_doubts_about_a_result_come_before_all_others_until_its_entry_changes(report, words):
    foreseen = ListedFace(3, OTHER, uncertain=("it would be covered: it is no face", "it is smaller than 40 pixels"))
    listed = replace(PHOTO, faces=(*PHOTO.faces, foreseen), found=3)
    written = reviewing.Written.of(listed, {1: face_report(), 3: report}, 0.45)
    queue = reviewing.queue(listed, written)
    assert [number for _, number in queue] == ([3, 2, 1] if words else [2, 3, 1])
    assert words in dict(map(reversed, queue))[3] and "would" not in str(queue)
    another = reviewing.another(listed, 3)  # nothing is known of this one
    assert reviewing.queue(another, written) == reviewing.queue(another)


def test_doubts_about_people_are_about_their_tracks_in_these_frames():
    listed = reviewing.add(VIDEO, BOX, 0, 2, person=1)
    one = PersonReport(1, "diffusion", 7, 0.47, 10, "it is turned away", covered=[(2, 3)], nearest=8)
    written = reviewing.Written.of(listed, {1: one, 2: PersonReport(2, "diffusion", 7, 0.9, 1, nearest=5)}, 0.45)
    queue = reviewing.queue(listed, written)
    assert [number for _, number in queue] == [1, -1, 2]
    near = "new face near the limit of the distance (0.47; at least 0.45), frame 8"
    for words in ("covered: it is turned away, frames 2 to 3", near, "new face after 10 of at most 18 attempts, frames 0 to 9"):
        assert words in queue[0][0]
    assert "turned away, frame 2" in queue[1][0] and "near" not in queue[1][0] and "attempts, frames 0 to 2" in queue[1][0]
    assert reviewing.timeline(listed, written=written).count(f"rgb{reviewing.DOUBTFUL}") == 6
    assert [reviewing.frame_of(listed, number, 18, written) for number in (1, -1, 2)] == [2, 2, 5]
    assert [reviewing.frame_of(listed, number, 18) for number in (1, -1)] == [0, 0]
    for change in (reviewing.another(listed, -1), reviewing.assign(listed, 2, 1), reviewing.strike(listed, 1, 0, 3)):
        assert "covered" not in str(reviewing.queue(change, written))


def test_that_the_place_of_a_lost_face_is_covered_is_no_news():
    lost = replace(VIDEO, tracks=(replace(TRACKS[0], uncertain=(((0, 1), LOST),)), TRACKS[1]))
    one = PersonReport(1, "diffusion", 7, 0.9, 1, "nobody is seen", covered=[(0, 1)], nearest=8)
    assert reviewing.queue(lost, reviewing.Written.of(lost, {1: one}, 0.45)) == reviewing.queue(lost)
    longer = reviewing.Written.of(lost, {1: replace(one, covered=[(0, 2)])}, 0.45)
    assert "covered: nobody is seen, frames 0 to 2" in reviewing.queue(lost, longer)[0][0]


def test_a_report_names_the_frame_in_which_a_person_is_nearest_to_the_source():
    parts = []
    for distances in ({3: 0.6, 4: 0.5, 5: 0.55}, {6: 0.7}, {7: 0.47, 8: 0.47}):
        parts.append(PersonReport(1, "diffusion"))
        for frame, distance in distances.items():
            parts[-1].add(frame, "found", Replaced(None, None, None, distance, None, 1, 0.5))
    early = parts[0].joined(parts[1])
    assert (early.identity_distance, early.nearest, early.found) == (0.5, 4, [(3, 6)])
    stored = PersonReport.stored(json.loads(json.dumps(asdict(early.joined(parts[2])))))
    assert (stored.identity_distance, stored.nearest) == (0.47, 7)


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
    assert reviewing.assign(drawn, -1, 2).drawn[0].person == 2 and reviewing.assign(drawn, 2).tracks[1].person == 4
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
    assert len(drawing.findall("rect")) == 5 and [text.text for text in drawing.findall("text")] == ["1", "2", "drawn 1"]


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
