"""Written files are what was meant, and show no face of the source; planted faults are found, and leave no file."""

from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from diffdeid import DiffDeIDVideoPipeline, VerificationError, VideoOptions, VideoReader, VideoWriter, write_image
from diffdeid.batch import How, run
from diffdeid.engine.written import Known, VideoCheck, check_picture, picture_check
from diffdeid.face_lists import ListedFace, PictureList
from diffdeid.io.images import Picture, read_image
from diffdeid.io.video_reader import Frame
from diffdeid.options import FileOptions
from diffdeid.planning import Job
from diffdeid.structures import Face

SIDE = 176
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def portrait(astronaut):
    """Head and shoulders."""
    return np.array(Image.open(astronaut).convert("RGB").crop((124, 0, 324, 200)).resize((SIDE, SIDE), Image.LANCZOS))


@pytest.fixture(scope="module")
def made(pipeline, portrait):
    """The picture with a new face, and its report."""
    output = pipeline(portrait, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="np")
    assert output.faces[0][0].method == "diffusion"
    return output.images[0], output.faces[0]


def written(pipeline, path, source, result, known, shown=None, alpha=None, profile=None, **options):
    """Write `shown`, by default the result, where `result` was meant to be written."""
    expected = Picture(Image.fromarray(result), alpha, profile, "PNG")
    check = partial(check_picture, engine=pipeline.engine, source=source, expected=expected, known=known, **options)
    write_image(path, Image.fromarray(result if shown is None else shown), alpha, profile, check=check)


@pytest.mark.parametrize("suffix", [".bmp", ".heic", ".jpg", ".png", ".tif", ".webp"])
def test_good_files_pass(pipeline, portrait, made, tmp_path, suffix):
    """The picture has odd sides, a colour profile, and a face half of which lies under transparent pixels."""
    source, result = portrait[:-1, :-3], made[0][:-1, :-3]
    alpha = np.full(source.shape[:2], 200, np.uint8)
    alpha[:, SIDE // 2 :] = 0
    alpha = None if suffix in (".bmp", ".jpg") else Image.fromarray(alpha)
    known = [Known.of(report) for report in made[1]]
    written(pipeline, tmp_path / f"a{suffix}", source, result, known, alpha=alpha, profile=PROFILE, search=suffix == ".jpg")
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("quality", [5, 95])
def test_noise_of_an_encoder_is_no_face_and_hides_none(pipeline, portrait, made, tmp_path, quality):
    known = [Known.of(report) for report in made[1]]
    expected = Picture(Image.fromarray(made[0]), None, None, "JPEG")
    check = partial(check_picture, tmp_path / "a.jpg", pipeline.engine, portrait, expected, known, search=False)
    Image.fromarray(made[0]).save(tmp_path / "a.jpg", quality=quality)
    check()
    Image.fromarray(portrait).save(tmp_path / "a.jpg", quality=quality)
    with pytest.raises(VerificationError, match="still that of the source"):
        check()


@pytest.mark.parametrize("side", [26, 64, 128])  # the face is about half as high
def test_small_pictures_may_be_coded_badly(pipeline, portrait, made, tmp_path, side):
    small = [np.asarray(Image.fromarray(one).resize((side, side), Image.LANCZOS)) for one in (portrait, made[0])]
    Image.fromarray(small[0]).save(tmp_path / "a.jpg", quality=10)
    source = read_image(tmp_path / "a.jpg")
    box = tuple(number * side / SIDE for number in made[1][0].box)
    check = picture_check(pipeline.engine, source, Image.fromarray(small[1]), [Known(Face(np.float32(box)))], search=False)
    write_image(tmp_path / "b.jpg", Image.fromarray(small[1]), check=check, source=tmp_path / "a.jpg")
    assert (tmp_path / "b.jpg").exists()
    write_image(tmp_path / "c.jpg", source.image, source=tmp_path / "a.jpg")
    with pytest.raises(VerificationError, match="still that of the source|looks otherwise"):
        check(tmp_path / "c.jpg")


@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[:, SIDE // 2 :]])
def test_a_face_of_the_source_in_the_file_is_found(pipeline, portrait, made, tmp_path, part):
    """The file shows the whole face, or half of it."""
    shown = made[0].copy()
    shown[part] = portrait[part]
    with pytest.raises(VerificationError, match=r"a\.jpg` was not written.*still that of the source"):
        written(pipeline, tmp_path / "a.jpg", portrait, made[0], [Known.of(report) for report in made[1]], shown)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("placed", [False, True])
def test_a_face_that_was_never_replaced_is_found(pipeline, portrait, made, tmp_path, placed):
    """The face is also in the picture that was meant, as if rendering had left it out."""
    (report,) = made[1]
    known = Known.of(report if placed else replace(report, landmarks=None))
    with pytest.raises(VerificationError, match="still that of the source"):
        written(pipeline, tmp_path / "a.jpg", portrait, portrait, [known])
    written(pipeline, tmp_path / "a.jpg", portrait, portrait, [replace(known, stays=True)])  # as somebody wished


def test_a_veil_that_somebody_asked_for_is_no_fault(pipeline, portrait, made, tmp_path):
    (report,) = made[1]
    veiled = cv2.GaussianBlur(portrait, (0, 0), 1.5)
    with pytest.raises(VerificationError, match="still that of the source"):
        written(pipeline, tmp_path / "a.jpg", portrait, veiled, [Known.of(report)])
    written(pipeline, tmp_path / "a.jpg", portrait, veiled, [Known.of(replace(report, method="blur"))])
    with pytest.raises(VerificationError, match="still that of the source|looks otherwise"):
        veiled = cv2.GaussianBlur(portrait, (0, 0), 12)
        written(pipeline, tmp_path / "b.jpg", portrait, veiled, [Known.of(replace(report, method="blur"))], shown=portrait)


def test_a_face_that_was_missed_is_found(pipeline, portrait, made, tmp_path):
    """The file shows two faces, and only one is known."""
    source, result = (np.concatenate([picture, portrait], axis=1) for picture in (portrait, made[0]))
    known = [Known.of(report) for report in made[1]]
    with pytest.raises(VerificationError, match="not found before.*--threshold.*--faces"):
        written(pipeline, tmp_path / "a.png", source, result, known)
    assert not list(tmp_path.iterdir())
    other = Known(Face(known[0].face.box + np.float32([SIDE, 0, SIDE, 0])), stays=True)
    written(pipeline, tmp_path / "a.png", source, result, [*known, other])
    written(pipeline, tmp_path / "b.png", source, result, known, search=False)  # the faces were listed
    written(pipeline, tmp_path / "c.png", source, result, known, threshold=0.95)  # only surer ones were asked for


def test_a_small_face_in_the_box_of_a_large_one_is_found(pipeline, portrait, made, tmp_path):
    """A face that lies within another one that stays, or in a part of a replaced one that did not change, is a missed face."""
    (report,) = made[1]
    x0, y0, x1, y1 = map(int, report.box)
    small = cv2.resize(portrait[y0 - 10 : y1 + 10, x0 - 10 : x1 + 10], None, fx=1.0, fy=1.0)
    canvas = np.full((3 * SIDE, 3 * SIDE, 3), 120, np.uint8)
    canvas[SIDE : SIDE + small.shape[0], SIDE : SIDE + small.shape[1]] = small
    around = Known(Face(np.float32([SIDE // 2, SIDE // 2, 2.5 * SIDE, 2.5 * SIDE])))
    result = canvas.copy()
    result[SIDE // 2 : SIDE - 10] = 30
    for known in (around, replace(around, stays=True)):
        with pytest.raises(VerificationError, match="not found before|still that of the source"):
            written(pipeline, tmp_path / "a.png", canvas, result, [known])


def test_another_picture_is_no_result(pipeline, portrait, made, tmp_path):
    known = [Known.of(report) for report in made[1]]
    by_chance = "looks otherwise|still that of the source"  # whichever of source and result it happens to be nearer to
    others = (np.full_like(portrait, 128), by_chance), (np.ascontiguousarray(made[0][:, ::-1]), by_chance)
    for shown, reason in (*others, (made[0][:-8], "pixels instead of")):
        with pytest.raises(VerificationError, match=reason):
            written(pipeline, tmp_path / "a.png", portrait, made[0], known, shown)
    assert not list(tmp_path.iterdir())


def test_transparency_and_profile_must_be_those_of_the_source(pipeline, portrait, tmp_path):
    alpha = Image.new("L", (SIDE, SIDE), 60)
    for expected, match in (
        (Picture(Image.fromarray(portrait), None, PROFILE, ""), "transparency"),
        (Picture(Image.fromarray(portrait), alpha, None, ""), "profile"),
    ):
        write_image(tmp_path / "a.png", Image.fromarray(portrait), alpha, PROFILE, overwrite=True)
        with pytest.raises(VerificationError, match=match):
            check_picture(tmp_path / "a.png", pipeline.engine, portrait, expected, [])


# --- videos ---


def film(pipeline, path, source, shown, known, times=None, **options):
    """Write `shown` where frames of a source with the faces `known` were to be de-identified."""
    check = VideoCheck(pipeline.engine, lambda _: known, rate=5, **options)
    times = [Fraction(number, 5) for number in range(len(source))]
    list(check.watch(Frame(*frame) for frame in zip(source, times, strict=True)))
    with VideoWriter(path, Fraction(5), check=check) as writer:
        for picture, time in zip(shown, times, strict=False):
            writer.write(Frame(picture, time))


def test_a_good_film_passes_and_a_face_in_one_frame_of_it_does_not(pipeline, portrait, made, tmp_path):
    known = [replace(Known.of(made[1][0]), embedding=pipeline.engine.embed_in(portrait, made[1][0].landmarks))]
    source, good = [portrait] * 4, [made[0]] * 4
    film(pipeline, tmp_path / "a.mp4", source, good, known)
    for shown, faces, match in (
        ([*good[:2], portrait, good[3]], known, "in frame 2, the face at .* is still that of the source"),
        (good, [], "in frame 0, .* looks otherwise|not found before"),  # a face that nobody followed
        (good[:3], known, "less than 4 frames"),
        ([*good[:3], made[0][::-1]], known, "in frame 3, it looks otherwise"),
        ([picture[:-8] for picture in good], known, "pixels instead of"),
    ):
        with pytest.raises(VerificationError, match=match):
            film(pipeline, tmp_path / "b.mp4", source, shown, faces)
    film(pipeline, tmp_path / "c.mp4", source, source, [replace(known[0], stays=True)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "c.mp4"]


def test_who_is_near_to_the_source_is_recognised_though_the_pixels_changed(pipeline, portrait, made, tmp_path):
    landmarks = made[1][0].landmarks
    known = [replace(Known.of(made[1][0]), embedding=pipeline.engine.embed_in(made[0], landmarks))]
    with pytest.raises(VerificationError, match="still that of the source"):
        film(pipeline, tmp_path / "a.mp4", [portrait], [made[0]], known)


def test_odd_sides_and_an_empty_wall_pass(pipeline, tmp_path):
    wall = np.tile(np.linspace(90, 130, 65), (33, 1)).astype(np.uint8)[..., None].repeat(3, axis=2)
    held = Known(Face(np.float32([10, 5, 30, 30])))  # the place of a face that was lost: there is none, so nothing changed
    film(pipeline, tmp_path / "a.mp4", [wall] * 2, [wall] * 2, [held])


def test_a_video_in_which_a_frame_is_not_rendered_leaves_no_file(pipeline, portrait, tmp_path, monkeypatch):
    """The pipeline keeps parts of the result, which are deleted as well."""
    from diffdeid.engine import frames

    with VideoWriter(tmp_path / "a.mp4", Fraction(5), crf=8) as writer:
        for number in range(3):
            writer.write(Frame(portrait, Fraction(number, 5)))
    pipe = DiffDeIDVideoPipeline.sharing(pipeline)
    pipe.set_progress_bar_config(disable=True)
    laid, count = frames._laid, []

    def forget_one(job, outcomes, options):
        count.append(1)
        return (job.picture, outcomes) if len(count) == 2 else laid(job, outcomes, options)

    seen = []
    how = {"num_inference_steps": 1, "resume": True, "callback_on_frame": lambda *news: seen.append(news)}
    with monkeypatch.context() as patch:
        patch.setattr(frames, "_laid", forget_one)
        with pytest.raises(VerificationError, match="in frame 1, .*still that of the source"):
            pipe(tmp_path / "a.mp4", tmp_path / "b.mp4", generator=torch.Generator().manual_seed(0), **how)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert seen[-1] == ("verify", 1, 3)


# --- the command ---


def test_records_say_whether_files_were_verified(pipeline, portrait, tmp_path, monkeypatch):
    """With a list of faces nothing is searched, and covers need no network."""
    from diffdeid.engine import review

    Image.fromarray(portrait).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", (tmp_path / "b.png",), Path("a.png"))
    known = {tmp_path / "a.png": PictureList((ListedFace(1, (50.0, 30.0, 130.0, 140.0)),))}

    def record(verify):
        how = How(VideoOptions(min_face=1000), FileOptions(), existing="replace", seed=0, verify=verify)
        (records,) = run(lambda _: pipeline, [job], how, known)
        return records[0]

    assert record(True)["verified"] and not record(False)["verified"]
    (tmp_path / "b.png").unlink()
    monkeypatch.setattr(review, "compose", lambda picture, *_: picture)
    failed = record(True)
    assert failed["status"] == "error" and failed["output"] is None and failed["verified"] is False
    assert "still that of the source" in failed["error"] and not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_copies_of_files_without_a_face_are_verified_too(pipeline, tmp_path, name):
    wall = np.tile(np.linspace(90, 130, 64), (64, 1)).astype(np.uint8)[..., None].repeat(3, axis=2)
    if name == "a.png":
        Image.fromarray(wall).save(tmp_path / name)
        pipe = pipeline
    else:
        with VideoWriter(tmp_path / name) as writer:
            writer.write(Frame(wall, Fraction(0)))
        pipe = DiffDeIDVideoPipeline.sharing(pipeline)
        pipe.set_progress_bar_config(disable=True)
    target = tmp_path / f"b{name[1:]}"
    job = Job(tmp_path / name, (target,), Path(name))
    ((record,),) = run(lambda _: pipe, [job], How(VideoOptions(), FileOptions(), on_no_face="copy", seed=0))
    assert record["status"] == "no_face" and record["verified"] and target.exists()
    assert name == "a.png" or len(list(VideoReader(target))) == 1
