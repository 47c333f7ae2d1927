import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffdeid.cli import app
from diffdeid.face_lists import describe, draw, read_face_list
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
    assert invoke("detect", photo, "-o", tmp_path / "out", "--overwrite").exit_code == 0


def test_a_lower_threshold_finds_no_fewer_faces(photo):
    counts = [len(json.loads(invoke("detect", photo, "--json", "--threshold", value).stdout)["faces"]) for value in (0.05, 0.95)]
    assert counts[0] >= 1 and counts[1] == 0


def test_a_bad_file_does_not_stop_the_others(photo, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    result = invoke("detect", tmp_path / "bad.jpg", photo, "--json")
    bad, good = map(json.loads, result.stdout.splitlines())
    assert result.exit_code == 1 and bad["error"] and not bad["faces"] and len(good["faces"]) == 1


def test_videos_are_no_pictures(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert invoke("detect", tmp_path).exit_code == 2


def test_a_list_is_taken_back(photo, face_list):
    path, _ = face_list
    arguments = ["anonymize", photo, "--device", "cpu", "--steps", 2, "--seed", 0, "--overwrite", "--json"]
    searched, listed = (invoke(*arguments, *extra) for extra in ([], ["--faces", path]))
    (face,) = json.loads(listed.stdout)["faces"]
    assert face["method"] == json.loads(searched.stdout)["faces"][0]["method"] == "diffusion"


def test_an_edited_list_says_what_is_done(photo, face_list):
    path, record = face_list
    record["faces"] = [{"box": [300, 300, 380, 420]}]
    path.write_text(json.dumps(record))
    result = invoke("anonymize", photo, "--device", "cpu", "--faces", path, "--json")
    (face,) = json.loads(result.stdout)["faces"]
    assert face["box"] == [300, 300, 380, 420] and face["method"] == "fill"
    before = np.asarray(Image.open(photo).convert("RGB"))
    after = np.asarray(Image.open(json.loads(result.stdout)["output"]))
    np.testing.assert_array_equal(before[:260], after[:260])  # the face of the astronaut, which was struck out
    assert (before[330:390, 320:360] != after[330:390, 320:360]).any()


def test_a_picture_without_listed_faces_has_none(photo, face_list):
    path, record = face_list
    path.write_text(json.dumps(record | {"faces": []}))
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
    with pytest.raises(ValueError, match="Line 3 of .*list.jsonl"):
        read_face_list(path)


def test_a_list_may_name_a_picture_and_a_link_to_it(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "photo.jpg")
    path = tmp_path / "list.jsonl"
    lines = [json.dumps({"input": str(tmp_path / name), "faces": [{"box": [0, 0, 9, 9]}]}) for name in ("photo.jpg", "link.jpg")]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    (faces,) = read_face_list(path).values()
    assert faces[0].box.tolist() == [0, 0, 9, 9]
    path.write_text("\n".join(lines), encoding="utf-16")
    with pytest.raises(ValueError, match="UTF-8"):
        read_face_list(path)


def test_drawings_do_not_replace_each_other_or_inputs(photo, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(photo.read_bytes())
    assert invoke("detect", tmp_path / "a/x.png", tmp_path / "b/x.png", "-o", tmp_path / "out", "--overwrite").exit_code == 2
    (tmp_path / "a" / "x_faces.png").write_bytes(photo.read_bytes())
    assert invoke("detect", tmp_path / "a", "-o", tmp_path / "a", "--overwrite").exit_code == 2
    assert (tmp_path / "a" / "x_faces.png").read_bytes() == photo.read_bytes()


def test_a_list_has_no_effect_on_videos(face_list, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    assert invoke("anonymize", tmp_path / "clip.mp4", "--faces", path).exit_code == 2


def test_drawings_take_faces_of_all_kinds():
    picture = np.zeros((40, 60, 3), np.uint8)
    landmarks = np.random.default_rng(0).uniform(-10, 70, (468, 3)).astype(np.float32)
    faces = [Face(np.float32([-5, -5, 20, 20])), Face(np.float32([10, 10, 30, 30]), landmarks=landmarks)]
    drawn = draw(picture, faces)
    assert drawn.shape == picture.shape and (drawn != picture).any() and not picture.any()
    assert describe(faces[0])["covered"] == "its landmarks could not be placed"
