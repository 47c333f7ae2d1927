import json
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffdeid import WEIGHTS, DiffDeIDPipeline, DiffDeIDVideoPipeline, NoFaceFoundError, __version__, batch, cli, write_image
from diffdeid.cli import app
from diffdeid.engine.faces import Engine
from diffdeid.io.images import read_image
from diffdeid.io.stores import location
from diffdeid.io.video_reader import Frame, VideoReader
from diffdeid.io.video_writer import VideoWriter
from tests.tiny import tiny_pipeline

SECRET = b"SECRETPLACE"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def anonymize():
    """Runs `diffdeid anonymize` with few steps; returns the exit code, the JSON records and the runner's result."""

    def run(*arguments):
        options = ["--device", "cpu", "--steps", 2, "--json"]
        result = invoke("anonymize", *options, *arguments)
        return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()], result

    return run


@pytest.fixture
def photo(tmp_path, astronaut) -> Path:
    """A JPEG with one face and with metadata."""
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    path = tmp_path / "photo.jpg"
    Image.open(astronaut).save(path, exif=exif, comment=SECRET)
    return path


@pytest.fixture
def empty_scene(tmp_path) -> Path:
    """A JPEG with metadata and without a face."""
    path = tmp_path / "scene.jpg"
    Image.linear_gradient("L").convert("RGB").save(path, comment=SECRET)
    return path


def test_a_photo_becomes_a_photo_with_another_face(anonymize, photo):
    before = photo.read_bytes()
    code, [record], _ = anonymize(photo)
    assert code == 0 and record["status"] in ("ok", "fallback") and record["error"] is None
    assert record["output"] == str(photo.with_name("photo_anonymized.jpg"))
    assert record["input"] == str(photo) and record["seconds"] > 0
    [face] = record["faces"]
    assert face["method"] in ("diffusion", "fill") and len(face["box"]) == 4
    x0, y0, x1, y1 = map(int, face["box"])
    result = read_image(record["output"]).image
    assert result.size == (512, 512) and result.crop((x0, y0, x1, y1)) != read_image(photo).image.crop((x0, y0, x1, y1))
    assert SECRET not in Path(record["output"]).read_bytes()
    assert photo.read_bytes() == before
    corner = (0, 400, 160, 512)  # of the picture, far from the face
    assert result.crop(corner) == read_image(photo).image.crop(corner)
    assert Image.open(record["output"]).quantization == Image.open(photo).quantization


def test_a_seed_gives_the_same_bytes_whatever_the_order(anonymize, astronaut, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(astronaut.read_bytes())
    anonymize(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "one", "--seed", 5)
    anonymize(tmp_path / "b.png", "-o", tmp_path / "two", "--seed", 5)
    b = (tmp_path / "two" / "b_anonymized.png").read_bytes()
    assert b == (tmp_path / "one" / "b_anonymized.png").read_bytes() == (tmp_path / "one" / "a_anonymized.png").read_bytes()


def test_candidates_are_files_and_lines_of_their_own(anonymize, photo):
    code, records, _ = anonymize(photo, "--candidates", 2)
    assert code == 0
    assert [Path(record["output"]).name for record in records] == ["photo_anonymized_1.jpg", "photo_anonymized_2.jpg"]
    assert all(Path(record["output"]).is_file() for record in records)


def test_small_faces_are_covered(anonymize, photo):
    code, [record], _ = anonymize(photo, "--min-face", 500, "--fallback", "blur")
    assert code == 0 and record["status"] == "fallback" and record["faces"][0]["method"] == "blur"


def test_transparency_survives(anonymize, astronaut, tmp_path):
    alpha = Image.linear_gradient("L").resize((512, 512))
    write_image(tmp_path / "clear.png", Image.open(astronaut), alpha)
    _, [record], _ = anonymize(tmp_path / "clear.png")
    assert read_image(record["output"]).alpha == alpha


def test_a_bad_file_does_not_stop_the_others(anonymize, photo, tmp_path):
    (tmp_path / "bad.jpg").write_text("text")
    (tmp_path / "empty.png").touch()
    (tmp_path / "film.mp4").touch()
    code, records, _ = anonymize(tmp_path, "-o", tmp_path / "out")
    assert code == 1
    assert [Path(record["input"]).name for record in records] == ["bad.jpg", "empty.png", "film.mp4", "photo.jpg"]
    assert [record["status"] == "error" for record in records] == [True, True, True, False]
    assert all(record["output"] is None and record["faces"] == [] for record in records[:3])
    assert "video" in records[2]["error"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo_anonymized.jpg"]


@pytest.fixture
def clip(tmp_path, astronaut) -> Path:
    """Six frames of a face with a title, a comment and sound."""
    picture = np.array(Image.open(astronaut).convert("RGB").crop((124, 0, 324, 200)))
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as file:
        file.metadata.update({"title": SECRET.decode(), "comment": SECRET.decode()})
        film, voice = file.add_stream("libx264", rate=10), file.add_stream("aac", rate=48000)
        film.height, film.width, film.pix_fmt, voice.layout = 200, 200, "yuv420p", "mono"
        for number in range(6):
            file.mux(film.encode(av.VideoFrame.from_ndarray(np.roll(picture, number, axis=1))))
        file.mux(film.encode(None))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 28800), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        file.mux(voice.encode(sound))
        file.mux(voice.encode(None))
    return path


def test_a_video_becomes_a_video_with_another_face(anonymize, clip):
    assert SECRET in clip.read_bytes()
    before = clip.read_bytes()
    code, [record], _ = anonymize(clip)
    output = clip.with_name("clip_anonymized.mp4")
    assert code == 0 and record["output"] == str(output) and record["status"] in ("ok", "fallback")
    assert record["frames"] == 6 and record["notes"] == []
    [face] = record["faces"]
    assert face["number"] == 1 and face["found"] == [[0, 5]] and face["interpolated"] == face["covered"] == []
    assert clip.read_bytes() == before and SECRET not in output.read_bytes()
    with av.open(str(output)) as file:
        assert not file.streams.audio
    source, result = (list(VideoReader(path)) for path in (clip, output))
    assert [frame.time for frame in source] == [frame.time for frame in result]
    assert all(
        np.abs(a.picture[40:120, 60:140].astype(float) - b.picture[40:120, 60:140]).mean() > 8
        for a, b in zip(source, result, strict=True)
    )


def test_options_of_videos(anonymize, clip, tmp_path):
    output = tmp_path / "out.mkv"
    code, [record], _ = anonymize(
        clip, "-o", output, "--start", 0.2, "--end", 0.5, "--audio", "keep", "--crf", 30, "--preset", "fast", "--steps", 2
    )
    assert code == 0 and record["frames"] == 3, record
    with av.open(str(output)) as file:
        assert len(file.streams.audio) == 1


@pytest.mark.parametrize(
    ("on_no_face", "code", "written"), [("error", 3, []), ("skip", 0, []), ("copy", 0, ["a_anonymized.mp4"])]
)
def test_a_video_without_a_face(anonymize, tmp_path, on_no_face, code, written):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for number in range(3):
            writer.write(Frame(np.full((64, 64, 3), 90, np.uint8), Fraction(number, 25)))
    found, [record], _ = anonymize(tmp_path / "a.mp4", "--on-no-face", on_no_face)
    assert found == code and record["status"] == "no_face"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", *written]


def test_photos_and_videos_of_a_store(anonymize, photo, clip, tmp_path, monkeypatch):
    store = location("memory://cli/in")
    for file in (photo, clip):
        store.fs.pipe_file(f"{store.path}/deep/{file.name}", file.read_bytes())
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    code, records, _ = anonymize("memory://cli/in", "-o", "memory://cli/out")
    assert code == 0 and {record["input"]: (record["output"], record["verified"]) for record in records} == {
        "memory://cli/in/deep/clip.mov": ("memory://cli/out/deep/clip_anonymized.mp4", True),
        "memory://cli/in/deep/photo.jpg": ("memory://cli/out/deep/photo_anonymized.jpg", True),
    }
    written = [store.fs.cat_file(record["output"]) for record in records]
    assert all(map(len, written)) and not any(SECRET in content for content in written)
    assert not [path for path in private.iterdir() if path.name.startswith("diffdeid-")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["anonymize", "memory://cli/in", "-o", "nothing://out"], "cannot be reached"),
        (["anonymize", "{photo}", "-o", "memory://cli/a.mp4", "--manifest", "memory://cli/done.jsonl"], "on this computer"),
        (["anonymize", "{clip}", "-o", "memory://cli", "--resume"], "--resume"),
        (["detect", "memory://cli/in"], "detect"),
    ],
)
def test_what_urls_are_not_for_is_wrong_usage(photo, clip, arguments, said):
    result = invoke(*[argument.format(photo=photo, clip=clip) for argument in arguments])
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())


def test_an_end_before_the_start(clip):
    result = invoke("anonymize", clip, "--start", 3, "--end", 2)
    assert result.exit_code == 2 and "--end" in result.stderr


def test_no_camera(monkeypatch):
    import cv2

    monkeypatch.setattr(cv2.VideoCapture, "isOpened", lambda self: False, raising=False)
    result = invoke("anonymize", "cam")
    assert result.exit_code == 1 and "camera" in result.stderr


def test_a_picture_of_one_pixel_has_no_face(anonymize, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    code, [record], _ = anonymize(tmp_path / "dot.png")
    assert code == 3 and record["status"] == "no_face" and record["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["dot.png"]


@pytest.mark.parametrize(("choice", "expected"), [("error", 3), ("skip", 0), ("copy", 0)])
def test_what_happens_without_a_face_is_the_users_choice(anonymize, empty_scene, choice, expected):
    output = empty_scene.with_name("scene_anonymized.jpg")
    code, [record], _ = anonymize(empty_scene, "--on-no-face", choice)
    assert code == expected and record["status"] == "no_face" and (record["error"] is None) == (choice != "error")
    assert choice != "error" or {"`--on-no-face", "`--threshold`"} <= {word.strip(".") for word in record["error"].split()}
    assert output.exists() == (choice == "copy") == (record["output"] is not None)
    if choice == "copy":
        assert SECRET in empty_scene.read_bytes() and SECRET not in output.read_bytes()
        assert read_image(output).image == read_image(empty_scene).image


def test_an_error_counts_more_than_a_missing_face(anonymize, empty_scene):
    (empty_scene.parent / "bad.jpg").write_text("text")
    assert anonymize(empty_scene.parent, "-o", empty_scene.parent / "out")[0] == 1


def test_existing_outputs_are_kept_unless_told(anonymize, photo):
    output = photo.with_name("photo_anonymized.jpg")
    output.write_bytes(b"mine")
    code, [record], _ = anonymize(photo)
    assert code == 1 and "--existing replace" in record["error"] and output.read_bytes() == b"mine"
    assert anonymize(photo, "--existing", "replace")[0] == 0 and output.read_bytes() != b"mine"


def test_existing_outputs_are_skipped_if_told_and_change_no_exit_code(anonymize, photo, tmp_path):
    output = photo.with_name("photo_anonymized.jpg")
    output.write_bytes(b"mine")
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "clip_anonymized.mp4").write_bytes(b"mine")
    code, records, _ = anonymize(tmp_path, "--existing", "skip")
    assert code == 0 and [record["status"] for record in records] == ["skipped", "skipped"]
    assert records[1]["output"] == str(output) and output.read_bytes() == b"mine" and records[1]["verified"] is None
    assert "(skipped)" in invoke("anonymize", photo, "--existing", "skip").stdout


def test_a_video_candidate_that_is_missing_gets_the_people_it_would_have_had(anonymize, clip):
    outputs = [clip.with_name(f"clip_anonymized_{number}.mp4") for number in (1, 2)]
    assert anonymize(clip, "--candidates", 2, "--seed", 3)[0] == 0
    first, second = (list(VideoReader(path)) for path in outputs)
    outputs[1].unlink()
    code, records, _ = anonymize(clip, "--candidates", 2, "--seed", 3, "--existing", "skip")
    assert code == 0 and [record["status"] == "skipped" for record in records] == [True, False]
    again = list(VideoReader(outputs[1]))
    assert all((a.picture == b.picture).all() for a, b in zip(second, again, strict=True))
    assert not all((a.picture == b.picture).all() for a, b in zip(first, second, strict=True))


def test_shards_do_everything_once_and_a_manifest_says_what_is_done(anonymize, photo, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for name in "abc":
        (inputs / f"{name}.jpg").write_bytes(photo.read_bytes())
    options = ["-o", tmp_path / "out", "--seed", 0, "--manifest", tmp_path / "done.jsonl"]
    parts = [anonymize(inputs, *options, "--shard", f"{number}/2") for number in (1, 2)]
    assert [code for code, *_ in parts] == [0, 0]
    assert sorted(Path(record["input"]).name for _, records, _ in parts for record in records) == ["a.jpg", "b.jpg", "c.jpg"]
    assert {record["status"] for record in anonymize(inputs, *options)[1]} == {"skipped"}
    (inputs / "d.jpg").symlink_to(photo)  # d.jpg would be written to an input, which either part refuses
    (inputs / "d_anonymized.jpg").touch()
    assert invoke("anonymize", inputs, inputs / "d_anonymized.jpg", "--shard", "1/2").exit_code == 2


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none_is_wrong_usage(photo, part):
    assert invoke("anonymize", photo, "--shard", part).exit_code == 2


def test_a_file_that_is_no_manifest_is_not_written_to(anonymize, photo):
    before = photo.read_bytes()
    code, records, result = anonymize(photo, "--manifest", photo)
    assert code == 1 and not records and "--manifest" in result.stderr and photo.read_bytes() == before


def test_an_interrupt_keeps_finished_files_and_no_others(anonymize, astronaut, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(astronaut.read_bytes())

    def write_then_interrupt(path, *arguments):
        if path.name.startswith("b"):
            raise KeyboardInterrupt
        write_image(path, *arguments)

    monkeypatch.setattr(batch, "write_image", write_then_interrupt)
    code, [record], _ = anonymize(tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out")
    assert code not in (0, 2, 3) and record["input"].endswith("a.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_anonymized.png"]


@pytest.mark.parametrize(("asked", "expected"), [((), torch.bfloat16), (("--dtype", "float32"), torch.float32)])
def test_the_precision_is_that_of_the_denoiser_alone(anonymize, photo, monkeypatch, asked, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    seen, paint = set(), Engine.paint

    def watched(engine, *given):
        seen.add((engine.unet.dtype, engine.face_recognition.dtype))
        return paint(engine, *given)

    monkeypatch.setattr(Engine, "paint", watched)
    assert anonymize(photo, *asked)[0] == 0 and seen == {(expected, torch.float32)}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["{photo}", "--audio", "keep"], "--audio"),
        (["{photo}", "--on-miss", "cover", "--resume"], "--on-miss, --resume"),
        (["cam", "-o", "out.mp4"], "--output"),
        (["cam", "--end", "3", "--json"], "--end, --json"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(photo, arguments, word):
    result = invoke("anonymize", *[argument.format(photo=photo) for argument in arguments])
    assert result.exit_code == 2 and word in " ".join(result.stderr.replace("│", " ").split())


def test_the_camera_takes_options_and_a_seed(photo, monkeypatch):
    monkeypatch.setattr(cli, "load", lambda *_: tiny_pipeline())
    monkeypatch.setattr(
        "diffdeid.camera.show_camera", lambda pipe, options, seed: seen.append((options.num_inference_steps, seed))
    )
    seen = []
    assert invoke("anonymize", "cam", "--steps", 2, "--seed", 5).exit_code == 0
    assert seen == [(2, 5)]


def test_names_may_start_with_a_dash(anonymize, photo, monkeypatch):
    photo.rename(photo.with_name("-photo.jpg"))
    monkeypatch.chdir(photo.parent)
    assert anonymize("--", "-photo.jpg")[0] == 0


def test_people_get_a_sentence(photo, tmp_path):
    (tmp_path / "bad.jpg").write_text("text")
    result = invoke("anonymize", photo, tmp_path / "bad.jpg", "--steps", 2)
    assert "photo_anonymized.jpg (1 " in result.stdout and "bad.jpg" not in result.stdout
    assert "bad.jpg" in result.stderr and "Traceback" not in result.stderr


def test_debug_shows_the_traceback(anonymize, tmp_path, caplog):
    (tmp_path / "bad.jpg").write_text("text")
    assert anonymize(tmp_path / "bad.jpg", "--debug")[0] == 1
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere.jpg"],
        [],
        ["{photo}", "--level", "11"],
        ["{photo}", "--candidates", "0"],
        ["{photo}", "-o", "{photo}"],
        ["{photo}", "--attributes", "own"],
    ],
)
def test_wrong_usage_is_exit_code_2(photo, arguments):
    result = invoke("anonymize", *[argument.format(photo=photo) for argument in arguments])
    assert result.exit_code == 2 and not result.stdout


@pytest.mark.parametrize(("asked", "attributes"), [([], "context"), *((["--attributes", it], it) for it in ("any", "source"))])
@pytest.mark.parametrize("name", ["photo.jpg", "clip.mp4"])
def test_whom_the_new_person_fits_reaches_the_pipeline(photo, monkeypatch, name, asked, attributes):
    def answer(pipe, *_, **options):
        seen.append((type(pipe), options["attributes"], options["level"]))
        raise NoFaceFoundError("nobody")

    seen = []
    for kind in (DiffDeIDPipeline, DiffDeIDVideoPipeline):
        monkeypatch.setattr(kind, "__call__", answer)
    monkeypatch.setattr(cli, "load", lambda *_: tiny_pipeline())
    path = photo.with_name(name)
    path.touch()
    assert invoke("anonymize", path, *asked).exit_code == 3
    assert seen == [(DiffDeIDPipeline if path == photo else DiffDeIDVideoPipeline, attributes, 7)]


@pytest.mark.parametrize("model", ["weights/nowhere", "nowhere", "/no/where/at/all"])
def test_missing_weights_are_one_line(photo, model):
    result = invoke("anonymize", photo, "--model", model)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and f"`{model}`" in result.stderr


def test_the_version_is_printed():
    assert invoke("--version").stdout == f"diffdeid {__version__}\n"


@pytest.mark.parametrize("command", [["data", "prepare"], ["train", "lds"], ["train", "diffdeid"], ["sample-identity"]])
def test_every_command_has_help(command):
    assert invoke(*command, "--help").exit_code == 0


def test_help_does_not_say_where_the_weights_lie():
    for command in (["anonymize"], ["evaluate"], ["data", "prepare"], ["convert", "bfm"]):
        assert str(WEIGHTS.parent) not in "".join(invoke(*command, "--help").stdout.replace("│", "").split())


def test_identities_are_json_lines_or_a_file(tmp_path):
    from safetensors.torch import load_file

    options = ["sample-identity", "--count", 3, "--seed", 1]
    lines = [json.loads(line) for line in invoke(*options).stdout.splitlines()]
    assert invoke(*options, "-o", tmp_path / "identities.safetensors").exit_code == 0
    stored = load_file(tmp_path / "identities.safetensors")
    assert [line["identity"] for line in lines] == stored["identity"].tolist()
    assert [line["shape"] for line in lines] == stored["shape"].tolist()


def test_who_agreed_is_named_and_stays(anonymize, astronaut, tmp_path):
    """The picture shows Ben, who agreed, mirrored, and the astronaut, who did not agree."""
    (tmp_path / "people/ben").mkdir(parents=True)
    ben = Image.open(astronaut.with_name("ben.jpg"))
    ben.save(tmp_path / "people/ben/photo.png")
    photo = Image.new("RGB", (416, 208))
    photo.paste(ben.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    photo.paste(Image.open(astronaut).convert("RGB").crop((120, 0, 328, 208)), (208, 0))
    photo.save(tmp_path / "both.png")
    people = tmp_path / "people"
    code, [both, alone], _ = anonymize(tmp_path / "both.png", people, "-o", tmp_path / "out", "--keep", people)
    faces = sorted(both["faces"], key=lambda face: face["box"][0])
    assert code == 0 and [face["person"] for face in faces] == ["ben", None] and both["status"] in ("ok", "fallback")
    assert faces[0]["method"] == "kept" and 0 < faces[0]["margin"] < 0.2 and faces[1]["method"] != "kept"
    assert faces[0]["reason"] is faces[0]["level"] is faces[0]["not_kept"] is faces[1]["margin"] is None
    assert faces[1]["not_kept"] == "it is not surely somebody who stays"
    assert alone["status"] == "ok" and len(alone["faces"]) == 1  # everybody stays: that is not a picture without a face


@pytest.mark.parametrize("given", [("--keep", ".", "--only", "."), ("--keep", "nowhere"), ("--only", "nowhere")])
def test_who_stays_must_make_sense(photo, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert invoke("anonymize", photo, *given).exit_code == 2 and [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_nobody_stays_before_the_camera(tmp_path):
    result = invoke("anonymize", "cam", "--keep", tmp_path)
    assert result.exit_code == 2 and "camera" in result.stderr


def test_people_who_cannot_be_read_are_an_error_in_one_line(photo, tmp_path):
    (tmp_path / "people").mkdir()
    result = invoke("anonymize", photo, "--keep", tmp_path / "people")
    assert result.exit_code == 1 and result.stderr.startswith("error: `") and "is empty" in result.stderr
