import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffdeid.cli import app
from diffdeid.detection import describe, draw
from diffdeid.face_lists import (
    DrawnTrack,
    ListedFace,
    ListedPerson,
    ListedTrack,
    PictureList,
    Source,
    VideoList,
    box_at,
    read_face_list,
    refuse_stale,
)
from diffdeid.structures import Face


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def photo(tmp_path, astronaut):
    path = tmp_path / "photo.png"
    path.write_bytes(astronaut.read_bytes())
    return path


@pytest.fixture
def face_list(photo):
    """The list of the photo, and its only record."""
    path = photo.with_suffix(".jsonl")
    path.write_text(invoke("detect", photo, "--json").stdout)
    return path, json.loads(path.read_text())


def test_detect_lists_faces_and_changes_nothing(photo, face_list):
    _, record = face_list
    assert record["input"] == str(photo) and record["error"] is None
    (face,) = record["faces"]
    x0, y0, x1, y1 = face["box"]
    assert x0 < 225 < x1 and y0 < 110 < y1 and 0.5 < face["score"] < 1 and face["covered"] is None
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo.jsonl", "photo.png"]


def test_detect_draws_into_a_folder(photo, tmp_path):
    before = photo.read_bytes()
    result = invoke("detect", tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 0 and "photo.png: 1 face\n" in result.stdout and photo.read_bytes() == before
    drawn, plain = np.asarray(Image.open(tmp_path / "out" / "photo_faces.png")), np.asarray(Image.open(photo).convert("RGB"))
    changed = (drawn != plain).any(axis=-1)
    assert 0.001 < changed.mean() < 0.05
    again = invoke("detect", photo, "-o", tmp_path / "out")
    assert again.exit_code == 1 and "exists" in again.stderr
    assert invoke("detect", photo, "-o", tmp_path / "out", "--existing", "replace").exit_code == 0


def test_a_lower_threshold_finds_no_fewer_faces(photo):
    counts = [len(json.loads(invoke("detect", photo, "--json", "--threshold", value).stdout)["faces"]) for value in (0.05, 0.95)]
    assert counts[0] >= 1 and counts[1] == 0


def test_a_bad_file_does_not_stop_the_others(photo, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    result = invoke("detect", tmp_path / "bad.jpg", photo, "--json")
    bad, good = map(json.loads, result.stdout.splitlines())
    assert result.exit_code == 1 and bad["error"] and not bad["faces"] and len(good["faces"]) == 1


def test_videos_are_not_drawn(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert invoke("detect", tmp_path, "-o", tmp_path / "out").exit_code == 2


def test_a_list_is_taken_back(photo, face_list):
    path, _ = face_list
    arguments = ["anonymize", photo, "--device", "cpu", "--steps", 2, "--seed", 0, "--existing", "replace", "--json"]
    searched, listed = (invoke(*arguments, *extra) for extra in ([], ["--faces", path]))
    (face,) = json.loads(listed.stdout)["faces"]
    assert face["method"] == json.loads(searched.stdout)["faces"][0]["method"] == "diffusion"


def test_an_edited_list_says_what_is_done(photo, face_list):
    path, record = face_list
    record["faces"][0]["deleted"] = True
    record["faces"].append({"box": [300, 300, 380, 420]})
    path.write_text(json.dumps(record))
    result = invoke("anonymize", photo, "--device", "cpu", "--faces", path, "--json")
    said = json.loads(result.stdout)
    (face,) = said["faces"]
    assert said["deleted"] == 1 and face["box"] == [300, 300, 380, 420] and face["method"] == "fill"
    before = np.asarray(Image.open(photo).convert("RGB"))
    after = np.asarray(Image.open(json.loads(result.stdout)["output"]))
    np.testing.assert_array_equal(before[:260], after[:260])  # the face of the astronaut, which was struck out
    assert (before[330:390, 320:360] != after[330:390, 320:360]).any()


def test_a_picture_without_listed_faces_has_none(photo, face_list):
    path, record = face_list
    record["faces"][0]["deleted"] = True
    path.write_text(json.dumps(record))
    assert invoke("anonymize", photo, "--device", "cpu", "--faces", path).exit_code == 3


def test_a_list_of_other_pictures_is_refused(photo, face_list):
    path, record = face_list
    path.write_text(json.dumps(record | {"input": "other.png"}))
    result = invoke("anonymize", photo, "--device", "cpu", "--faces", path)
    assert result.exit_code == 2 and "other.png" in result.stderr.replace("\n", "")


@pytest.mark.parametrize(
    "line",
    [
        "[]", "{}", "photo.jpg", '{"input": "a.jpg"}', '{"input": "a.jpg", "faces": 3}', '{"input": 3, "faces": []}',
        '{"input": "a.jpg", "faces": [{"box": [0, 0, 5]}]}', '{"input": "a.jpg", "faces": [{"box": [5, 0, 1, 9]}]}',
        '{"input": "a.jpg", "faces": [{"box": [0, 0, NaN, 9]}]}', '{"input": "a.jpg", "faces": [{"box": ["left", 0, 1, 9]}]}',
        '{"input": "a.jpg", "faces": [], "error": "broken"}', '{"input": "b.jpg", "faces": [{"box": [0, 0, 9, 9]}]}',
        '{"input": "a.jpg", "faces": ""}', '{"input": "a.jpg", "faces": [{"box": "1289"}]}', "[" * 10**5,
        '{"input": "a.jpg", "faces": [{"box": [0, 0, 9, 9], "score": NaN}]}', '{"input": "a.jpg", "faces": [[0, 0, 9, 9]]}',
        '{"input": "a.jpg", "faces": [{"box": [0, 0, 9, 1' + "0" * 400 + "]}]}",
        '{"input": "a.jpg", "faces": [{"box": [-1e9, -1e9, 1e9, 1e9]}]}',
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "list.jsonl"
    path.write_text('{"input": "b.jpg", "faces": []}\n\n' + line + "\n")
    with pytest.raises(ValueError, match="Line 3 of .*list.jsonl") as error:
        read_face_list(path)
    assert "Error" not in str(error.value)


def test_a_line_that_names_no_photo_is_told_so(tmp_path):
    with pytest.raises(ValueError, match="'input' is missing. Correct the line"):
        read_face_list(lines(tmp_path, {"faces": []}))


def test_a_list_may_name_a_picture_and_a_link_to_it(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "photo.jpg")
    path = tmp_path / "list.jsonl"
    lines = [json.dumps({"input": str(tmp_path / name), "faces": [{"box": [0, 0, 9, 9]}]}) for name in ("photo.jpg", "link.jpg")]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    (listed,) = read_face_list(path).values()
    assert listed.faces == (ListedFace(1, (0, 0, 9, 9)),)
    path.write_text("\n".join(lines), encoding="utf-16")
    with pytest.raises(ValueError, match="UTF-8"):
        read_face_list(path)


def test_drawings_do_not_replace_each_other_or_inputs(photo, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(photo.read_bytes())
    replace = ("--existing", "replace")
    assert invoke("detect", tmp_path / "a/x.png", tmp_path / "b/x.png", "-o", tmp_path / "out", *replace).exit_code == 2
    (tmp_path / "a" / "x_faces.png").write_bytes(photo.read_bytes())
    assert invoke("detect", tmp_path / "a", "-o", tmp_path / "a", *replace).exit_code == 2
    assert (tmp_path / "a" / "x_faces.png").read_bytes() == photo.read_bytes()


def test_an_empty_list_is_refused(photo, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    assert invoke("anonymize", photo, "--faces", path).exit_code == 2


def test_drawings_take_faces_of_all_kinds():
    picture = np.zeros((40, 60, 3), np.uint8)
    landmarks = np.random.default_rng(0).uniform(-10, 70, (468, 3)).astype(np.float32)
    faces = [Face(np.float32([-5, -5, 20, 20])), Face(np.float32([10, 10, 30, 30]), landmarks=landmarks)]
    drawn = draw(picture, faces)
    assert drawn.shape == picture.shape and (drawn != picture).any() and not picture.any()
    listed = describe(faces[0], 1, 0.7)
    assert listed.covered == "its landmarks could not be placed" and len(listed.uncertain) == 2  # and it is small


# The format

PHOTO = Source("0f", 60, 40)
CLIP = Source("0f", 60, 40, frames=30)
FACES = (
    ListedFace(1, (0.5, 1, 20, 30), candidate=3, score=0.4, uncertain=("its score is 0.4",)),
    ListedFace(2, (30, 1, 50, 30), keep=True),
    ListedFace(7, (30, 1, 50, 39.5), deleted=True, covered="too small"),
)
TRACKS = (
    ListedTrack(1, 1, ((0, (0, 0, 9, 9)), (20, (20, 10, 29, 19))), ((3, 5), (20, 20)), 0.5, (((3, 5), "lost for a moment"),)),
    ListedTrack(2, 4, ((29, (0, 0, 9, 9)),)),
)
VIDEO = VideoList(CLIP, TRACKS, (ListedPerson(1, 2), ListedPerson(4, keep=True)), (DrawnTrack(1, TRACKS[0].boxes),), 0.3, -5)


def lines(tmp_path, *records):
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize("listed", [PictureList(FACES, 2, PHOTO, 2**63 - 1), VIDEO])
def test_what_is_written_is_read(tmp_path, listed):
    assert read_face_list(lines(tmp_path, listed.record("a.jpg"))) == {Path("a.jpg").resolve(): listed}


def test_faces_that_are_added_by_hand_get_ids_that_no_other_has(tmp_path):
    record = PictureList(FACES, 2, PHOTO).record("a.jpg")
    record["faces"] = [{"box": [0, 0, 5, 5]}, *record["faces"], {"box": [0, 0, 6, 6]}]
    (listed,) = read_face_list(lines(tmp_path, record)).values()
    assert [face.id for face in listed.faces] == [8, 1, 2, 7, 9]


@pytest.mark.parametrize("kind", ["picture", "video"])
@pytest.mark.parametrize(
    "broken",
    [
        {"version": 2}, {"version": "1"}, {"version": True}, {"version": None}, {"width": -1}, {"fingerprint": 3}, {"seed": 0.5},
        {"kept": True}, {"error": "it could not be read"}, {"seed": 2**63},
    ],
)  # fmt: skip
def test_lists_of_other_kinds_are_refused(tmp_path, kind, broken):
    record = (PictureList(FACES, 2, PHOTO) if kind == "picture" else VIDEO).record("a.jpg")
    with pytest.raises(ValueError, match="Line 1"):
        read_face_list(lines(tmp_path, record | broken))
    for name in {"fingerprint", "width", "version"}:
        with pytest.raises(ValueError, match="Line 1"):
            read_face_list(lines(tmp_path, {other: value for other, value in record.items() if other != name}))


@pytest.mark.parametrize(
    "broken",
    [
        {"keep": "no"}, {"keep": 1}, {"keep": None}, {"deleted": "true"}, {"candidate": -1}, {"candidate": 1.0}, {"id": 0},
        {"candidate": 2**30}, {"kep": True}, {"box": [5, 0, 1, 9]}, {"box": None}, {"id": 3}, {"keep": True, "deleted": True},
        {"uncertain": "weak"}, {"id": 2},
    ],
)  # fmt: skip
def test_slips_in_a_face_are_refused(tmp_path, broken):
    """Also one that takes the place of a face that was found, which would else be left as it is."""
    record = PictureList(FACES, 2, PHOTO).record("a.jpg")
    record["faces"][0] |= broken
    with pytest.raises(ValueError, match="Line 1"):
        read_face_list(lines(tmp_path, record))


def test_a_face_that_was_found_must_be_listed_and_things_are_said_once(tmp_path):
    record = PictureList(FACES, 2, PHOTO).record("a.jpg")
    twice = json.dumps(record).replace('"keep": false', '"keep": false, "keep": true', 1)
    with pytest.raises(ValueError, match="appears twice"):
        read_face_list(lines(tmp_path, twice))
    del record["faces"][1]
    with pytest.raises(ValueError, match='face 2 is not listed.*"deleted": true'):
        read_face_list(lines(tmp_path, record))


@pytest.mark.parametrize(
    "broken",
    [
        {"deleted": [[5, 3]]}, {"deleted": [[0, 30]]}, {"deleted": True}, {"deleted": [[0]]}, {"deleted": [[-1, 3]]},
        {"person": None}, {"id": 2}, {"boxes": []}, {"boxes": [[5, 0, 0, 9, 9], [5, 0, 0, 9, 9]]}, {"boxes": [[0, 9, 9, 0, 0]]},
        {"boxes": [[30, 0, 0, 9, 9]]}, {"keep": True}, {"person": 0},
    ],
)  # fmt: skip
def test_slips_in_a_track_are_refused(tmp_path, broken):
    record = VIDEO.record("a.mp4")
    record["tracks"][0] |= broken
    with pytest.raises(ValueError, match="Line 1"):
        read_face_list(lines(tmp_path, record))


@pytest.mark.parametrize("part", [{"people": [{"id": 1, "keep": "yes"}]}, {"people": [{"id": 1}, {"id": 1}]}, {"frames": 29},
                                  {"drawn": [{"boxes": [[0, 0, 0, 9, 9]]}]}, {"drawn": [[0, 0, 9, 9]]}])  # fmt: skip
def test_slips_in_a_video_are_refused(tmp_path, part):
    with pytest.raises(ValueError, match="Line 1"):
        read_face_list(lines(tmp_path, VIDEO.record("a.mp4") | part))


def test_lists_without_a_version_say_boxes_only(tmp_path):
    with pytest.raises(ValueError, match='"version": 1 is missing'):
        read_face_list(lines(tmp_path, {"input": "a.jpg", "faces": [{"box": [0, 0, 9, 9], "keep": True}]}))


@pytest.mark.parametrize("change", [{"width": 61}, {"height": 41}, {"fingerprint": "10"}, {"frames": 31}])
def test_a_list_of_another_file_is_stale(change):
    refuse_stale(VIDEO, CLIP)
    with pytest.raises(ValueError, match="another file"):
        refuse_stale(VIDEO, replace(CLIP, **change))


def test_boxes_move_evenly_between_key_frames():
    assert box_at(TRACKS[0].boxes, 5).tolist() == [5, 2.5, 14, 11.5]
    assert box_at(TRACKS[0].boxes, 20).tolist() == [20, 10, 29, 19]


def test_a_picture_that_has_changed_since_is_refused(photo, face_list):
    path, _ = face_list
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    result = invoke("anonymize", photo, "--device", "cpu", "--faces", path, "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 1 and "another file" in said["error"] and said["output"] is None
    assert sorted(file.name for file in photo.parent.iterdir()) == ["photo.jsonl", "photo.png"]
