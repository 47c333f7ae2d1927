"""Who stays: only those who surely are meant to. The recogniser, the detector and the meshes are real."""

import shutil
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffdeid import Consent, DiffDeIDPipeline, DiffDeIDVideoPipeline, ImageError, VideoReader, VideoWriter
from diffdeid.engine.consent import (
    DOUBTED,
    HIDDEN,
    MOST_HIDDEN,
    NEAR,
    RIVAL,
    SHARED,
    SURELY_OTHERS,
    SURELY_THEM,
    Kept,
    is_shared,
    why_unclear,
)
from diffdeid.engine.faces import Engine
from diffdeid.engine.watch import Watch
from diffdeid.io.video_reader import Frame
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_parser import FaceParserModel
from diffdeid.pipelines import pipeline_video
from diffdeid.structures import Face
from diffdeid.temporal.spool import Spool
from diffdeid.temporal.track import Track
from tests.conftest import ROOT
from tests.tiny import tiny_pipeline

ASSETS = ROOT / "tests/assets"
AXES = np.eye(128, dtype=np.float32)
unit = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4).map(np.float32)


def at(distance, axis=0, towards=5):
    """A unit vector at 1 - cosine from an axis."""
    cosine = np.float32(1 - distance)
    return cosine * AXES[axis] + np.sqrt(1 - cosine**2) * AXES[towards]


def stays(verdict) -> bool:
    return isinstance(verdict, Kept)


def knowing(mode="keep", **people) -> Consent:
    return Consent(mode, {name: np.stack(photos) for name, photos in (people or {"anna": [AXES[0]]}).items()})


@pytest.fixture(scope="module")
def pipe() -> DiffDeIDPipeline:
    """Tiny networks paint; those that tell who stays are real."""
    weights = ROOT / "weights/diffdeid"
    parts = {"face_analyser": FaceAnalyserModel, "face_parser": FaceParserModel}
    return tiny_pipeline(**{name: kind.from_pretrained(weights, subfolder=name) for name, kind in parts.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Anna and Ben, with a photo each."""
    folder = tmp_path_factory.mktemp("people")
    for name in ("anna", "ben"):
        (folder / name).mkdir()
        shutil.copy(ASSETS / f"{name}.jpg", folder / name)
    return folder


@pytest.fixture(scope="module")
def everybody(pipe, folder) -> Consent:
    return Consent.read(pipe, folder, "keep")


@pytest.fixture(scope="module")
def ben(everybody) -> Consent:
    return Consent("keep", {"ben": everybody.people["ben"]})


@pytest.fixture(scope="module")
def group(astronaut) -> np.ndarray:
    """Ben, seen in a mirror in less light, beside Anna and the demo photo; each 208 pixels wide."""
    mirrored = Image.open(ASSETS / "ben.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda value: 0.8 * value)
    photos = mirrored, Image.open(ASSETS / "anna.jpg"), Image.open(astronaut).crop((120, 0, 328, 208))
    return np.concatenate([np.asarray(photo.convert("RGB")) for photo in photos], axis=1)


def seen_in(pipe, picture, consent, **options):
    """The reports of the three large faces of a picture, from the left, and where it is as it was."""
    generator = torch.Generator().manual_seed(0)
    output = pipe(picture, consent=consent, num_inference_steps=1, generator=generator, output_type="np", **options)
    large = sorted(output.faces[0], key=lambda report: -(report.box[2] - report.box[0]))[: picture.shape[1] // 208]
    reports = sorted(large, key=lambda report: report.box[0])
    return reports, [same_inside(picture, output.images[0], report.box) for report in reports], output


def same_inside(before, after, box):
    """The share of the middle of a box that is as it was."""
    x0, y0, x1, y1 = np.int32(np.array(box) + 0.2 * np.array([1, 1, -1, -1]) * (box[2] - box[0]))
    return float((before == after).all(-1)[y0:y1, x0:x1].mean())


def test_who_agreed_stays_and_nobody_else(pipe, ben, group):
    reports, same, _ = seen_in(pipe, group, ben)
    assert [report.method == "kept" for report in reports] == [True, False, False]
    assert same[0] == 1 and max(same[1:]) < 0.05
    (kept, *others) = reports
    assert kept.person == "ben" and 0 < kept.margin <= SURELY_THEM and kept.level is kept.identity_distance is kept.reason is None
    assert all(report.person is report.margin is None and report.not_kept == DOUBTED for report in others)
    assert kept.not_kept is None


def test_all_but_some_stay(pipe, ben, group):
    """Ben is de-identified. The astronaut is surely not he."""
    picture = group[:, np.r_[:208, 416:624]]
    reports, same, _ = seen_in(pipe, picture, replace(ben, mode="only"))
    assert [report.method == "kept" for report in reports] == [False, True]
    assert same[0] < 0.05 and same[1] == 1
    assert reports[1].person is None and reports[1].margin > 0


def test_without_a_choice_everybody_is_de_identified(pipe, group):
    reports, same, _ = seen_in(pipe, group, None)
    assert not any(report.method == "kept" for report in reports) and max(same) < 0.05


def test_everybody_who_stays_is_no_change(pipe, everybody):
    picture = np.asarray(Image.open(ASSETS / "ben.jpg").convert("RGB"))
    (report,), _, output = seen_in(pipe, picture, everybody)
    assert report.method == "kept" and (output.images[0] == picture).all()


def test_nobody_is_there_twice(pipe, ben, group):
    """A mirror, a poster or a twin: nobody knows which of them agreed."""
    both = np.concatenate([group[:, :208], np.asarray(Image.open(ASSETS / "ben.jpg").convert("RGB"))], axis=1)
    reports, same, _ = seen_in(pipe, both, ben)
    assert not any(report.method == "kept" for report in reports) and max(same) < 0.05


@pytest.mark.parametrize("mode", ["keep", "only"])
@pytest.mark.parametrize("broken", ["raises", "no number"])
def test_when_something_breaks_nobody_stays(pipe, everybody, group, monkeypatch, mode, broken):
    recognise = Engine.recognise

    def fail(self, *given):
        if broken == "raises":
            raise ArithmeticError("broken")
        return [part * torch.nan for part in recognise(self, *given)]

    monkeypatch.setattr(Engine, "recognise", fail)
    picture = group[:, :208]
    _, same, output = seen_in(pipe, picture, replace(everybody, mode=mode))
    assert not any(report.method == "kept" for report in output.faces[0]) and max(same) < 0.05


def test_small_faces_and_those_that_are_to_be_covered_do_not_stay(pipe, ben, group):
    picture = group[:, :208]
    small = np.asarray(Image.fromarray(picture).resize((104, 104), Image.LANCZOS))
    assert not any(report.method == "kept" for report in pipe(small, consent=ben, num_inference_steps=1).faces[0])
    assert not any(report.method == "kept" for report in pipe(picture, consent=ben, num_inference_steps=1, min_face=150).faces[0])


@pytest.mark.parametrize("mode", ["keep", "only"])
def test_blurred_and_hidden_faces_do_not_stay(pipe, ben, group, mode):
    """Neither Ben, who may stay, nor the astronaut, who is surely not he."""
    picture = group[:, :208] if mode == "keep" else group[:, 416:]
    hidden = picture.copy()
    (face, *_) = faces = pipe.detect_faces(picture)
    x0, y0, x1, y1 = face.box.astype(int)
    hidden[(y0 + y1) // 2 : y1, x0:x1] = (150, 190, 220)  # a mask
    consent = replace(ben, mode=mode)
    shown = [consent.staying(pipe.engine, one, faces, [], 0) for one in (picture, cv2.GaussianBlur(picture, (0, 0), 3), hidden)]
    assert isinstance(shown[0][0], Kept) and shown[1][0] == shown[2][0] == HIDDEN


def test_only_clear_views_count(pipe, group):
    (face, *_) = pipe.detect_faces(group[:, :208])
    assert why_unclear(face) is None
    turned = face.landmarks.copy()
    turned[1, :2] += 0.35 * (turned[454, :2] - turned[234, :2])  # the tip of the nose
    wrong = [replace(face, doubt=0.01), replace(face, presence=0.5), replace(face, presence=np.nan), replace(face, iris=None),
             replace(face, landmarks=None), replace(face, landmarks=turned), replace(face, landmarks=0.5 * face.landmarks),
             replace(face, landmarks=np.nan * face.landmarks)]  # fmt: skip
    assert all(why_unclear(one) is not None for one in wrong)


def test_a_face_that_may_have_another_one_in_it_does_not_stay(pipe, ben, group):
    picture = group[:, :208]
    faces = pipe.detect_faces(picture)
    (number,) = [number for number, one in enumerate(ben.staying(pipe.engine, picture, faces, faces, 0)) if isinstance(one, Kept)]
    middle, size = faces[number].landmarks[:, :2].mean(0), 0.2 * np.ptp(faces[number].landmarks[:, 1])
    inside = Face(np.float32([*(middle - size), *(middle + size)]), 0.4)
    assert is_shared(faces[number], [inside], faces) and not is_shared(faces[number], faces, faces)
    assert ben.staying(pipe.engine, picture, faces, [*faces, inside], 0)[number] == SHARED


# Decisions


@given(near=st.floats(0, 2))
def test_a_face_stays_within_the_limit_only(near):
    kept, left = knowing().judge(at(near)), knowing("only").judge(at(near))
    if abs(near - SURELY_THEM) > 1e-4:
        assert stays(kept) == (near < SURELY_THEM)
        assert not stays(kept) or (kept.person == "anna" and kept.margin == pytest.approx(SURELY_THEM - near, abs=1e-5))
    if abs(near - SURELY_OTHERS) > 1e-4:
        assert stays(left) == (near > SURELY_OTHERS)
    assert not (stays(kept) and stays(left))


@given(near=st.floats(0, 2))
def test_a_reason_names_only_who_is_near_and_agreed(near):
    """Of everybody else it is the same, and of those who are not to be seen nobody is named."""
    kept, left = knowing().judge(at(near)), knowing("only").judge(at(near))
    assert stays(kept) or ("anna" in kept if near < NEAR - 1e-4 else kept == DOUBTED or near < NEAR + 1e-4)
    assert stays(left) or left == DOUBTED


@given(embedding=unit, hidden=st.one_of(st.floats(0, 1), st.just(np.nan)), wrong=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_no_number_or_hidden_never_stays(embedding, hidden, wrong):
    face = np.zeros(128, np.float32)
    face[:4] = embedding
    for mode in ("keep", "only"):
        consent = knowing(mode, anna=[AXES[0]], ben=[AXES[1]])
        if not hidden <= MOST_HIDDEN:
            assert consent.judge(AXES[0], hidden) == consent.judge(AXES[9], hidden) == HIDDEN
        face[7] = wrong
        assert consent.judge(face) == DOUBTED


def test_more_photos_make_nobody_nearer_than_the_mean():
    """Somebody near to one odd photo alone does not stay; in the other mode one photo is enough to be hidden."""
    photos = [AXES[0], AXES[1], AXES[0]]
    assert not stays(knowing(anna=photos).judge(AXES[1])) and stays(knowing(anna=[AXES[1]]).judge(AXES[1]))
    assert not stays(knowing("only", anna=photos).judge(AXES[1])) and stays(knowing("only", anna=photos).judge(AXES[2]))


def test_who_is_between_two_people_is_neither():
    consent = knowing(anna=[AXES[0]], ben=[at(0.3)])
    assert consent.judge(at(0.1)) == "it looks like ben, and nearly as much like anna"
    assert consent.judge(AXES[0]).person == "anna"


def test_of_two_alike_the_nearer_one_stays_if_the_other_is_far():
    consent, verdicts = knowing(), {0: Kept("anna", 0.1), 1: Kept("anna", 0.05)}
    for distance, left in ((0.05 + RIVAL / 2, []), (0.06 + RIVAL, [0])):
        judged = consent.without_rivals(verdicts, {0: at(0.05), 1: at(distance)})
        assert [number for number, verdict in judged.items() if stays(verdict)] == left
    (reason,) = consent.without_rivals({0: verdicts[0]}, {0: at(0.05), 1: at(0.06)}).values()  # whatever is said of the other
    assert reason == "another face beside it looks as much like anna"


def test_a_digest_is_of_the_whole_choice():
    choices = [knowing(), knowing("only"), knowing(ben=[AXES[0]]), knowing(anna=[AXES[1]]), knowing(anna=[AXES[0], AXES[1]])]
    assert len({choice.digest() for choice in choices}) == len(choices) and knowing().digest() == knowing().digest()


@pytest.mark.parametrize("people", [{}, {"anna": []}, {"anna": [np.nan * AXES[0]]}, {"anna": [0 * AXES[0]]}])
def test_people_without_a_face_are_refused(people):
    with pytest.raises(ValueError, match="people|unit vectors"):
        Consent("keep", {name: np.array(photos).reshape(-1, 128) for name, photos in people.items()})


# Folders


def test_a_folder_is_read_by_names(everybody):
    assert list(everybody.people) == ["anna", "ben"] and everybody.people["ben"].shape == (1, 128)
    assert everybody.judge(everybody.people["ben"][0]) == Kept("ben", pytest.approx(SURELY_THEM, abs=1e-4))


def test_two_people_who_are_too_much_alike_cannot_both_stay(pipe, folder, tmp_path, group):
    shutil.copytree(folder, tmp_path / "people")
    (tmp_path / "people/twin").mkdir()
    Image.fromarray(group[:, :208]).save(tmp_path / "people/twin/photo.png")
    with pytest.raises(ValueError, match="`ben` and `twin` look too much alike"):
        Consent.read(pipe, tmp_path / "people", "keep")
    assert len(Consent.read(pipe, tmp_path / "people", "only").people) == 3


def test_a_photo_that_shows_nobody_or_several_or_is_none_is_named(pipe, tmp_path, group):
    (tmp_path / "anna").mkdir()
    photo = tmp_path / "anna/photo.png"
    for picture, reason in (
        (np.full((64, 64, 3), 90, np.uint8), "shows 0 faces"),
        (group[:, 208:], "shows 2 faces"),
        (group[::3, 208:416:3], "clearly enough: .* pixels high"),
    ):
        Image.fromarray(picture).save(photo)
        with pytest.raises(ValueError, match=f"photo.png.*{reason}"):
            Consent.read(pipe, tmp_path, "keep")
    photo.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="photo.png"):
        Consent.read(pipe, tmp_path, "keep")


def test_folders_must_hold_people(pipe, tmp_path):
    with pytest.raises(ValueError, match="is empty. Make a folder"):
        Consent.read(pipe, tmp_path, "keep")
    (tmp_path / ".hidden").touch()
    (tmp_path / "anna").mkdir()
    with pytest.raises(ValueError, match="anna` is empty. Put photos"):
        Consent.read(pipe, tmp_path, "keep")
    (tmp_path / "anna").rmdir()
    shutil.copy(ASSETS / "anna.jpg", tmp_path)
    with pytest.raises(ValueError, match="anna.jpg` is no folder"):
        Consent.read(pipe, tmp_path, "keep")
    with pytest.raises(OSError):
        Consent.read(pipe, tmp_path / "nowhere", "keep")


# Videos


@pytest.fixture
def watched(pipe, group, monkeypatch):
    """Lets a watch look at tracks of a clear face whose embeddings are told, frame by frame; `None`: it is not found there."""
    (face, *_) = pipe.detect_faces(group[:, :208])
    said = []
    monkeypatch.setattr(Engine, "recognise", lambda *_: tuple(torch.tensor(np.float32(part))[None] for part in (*said.pop(0), 1)))

    def run(consent, *stories, hidden=0.0):
        engine = replace(pipe.engine, identity_limit=0.5)
        watch, tracks = Watch(engine, consent, rate=4, min_face=0), [Track(n, Spool()) for n in range(len(stories))]
        for frame, embeddings in enumerate(zip(*stories, strict=True)):
            found = [track for track, one in zip(tracks, embeddings, strict=True) if one is not None]
            for track in found:
                track.put(frame, face, "found")
            said[:] = [(one, hidden) for one in embeddings if one is not None]
            watch.look(frame, group, found, [])
        return watch, tracks

    return run


def test_a_track_stays_by_its_mean_if_no_view_contradicts(watched):
    for story, reason in (
        ([at(0.05)] * 8 + [at(0.45)], None),  # single views may be farther than the limit of a photo
        ([at(0.2)] * 9, "it looks like anna, but not surely enough"),  # but not their mean
        ([at(0.4)] * 9, DOUBTED),
        ([at(0.05)] * 40 + [at(0.6)], "it looks like anna in some frames, but not in all"),
        ([at(0.05)] + [at(0.44)] * 9, "it looks like anna in some frames, but not in all"),
        ([at(0.05)] * 40 + [np.nan * AXES[0]], "it looks like anna in some frames, but not in all"),
        ([np.nan * AXES[0]] * 9, DOUBTED),
        ([at(0.9)] * 3, DOUBTED),
    ):
        watch, (track,) = watched(knowing(), story)
        assert watch.verdict(track) == reason or (reason is None and watch.verdict(track).person == "anna")
    watch, (track,) = watched(knowing(), [at(0.05)] * 9, hidden=0.5)
    assert watch.verdict(track) == HIDDEN


def test_all_but_some_stay_in_videos(watched):
    for story, left in (
        ([at(1.0), at(0.7), at(1.0)], True),
        ([at(0.7)] * 9, False),
        ([at(1.0)] * 40 + [at(0.4)], False),
    ):
        watch, (track,) = watched(knowing("only"), story)
        assert stays(watch.verdict(track)) == left
    for distance in (1.0, 0.4):  # the reason does not tell which of them may be Anna
        watch, (track,) = watched(knowing("only"), [at(distance)] * 9, hidden=0.5)
        assert watch.verdict(track) == HIDDEN


def test_of_two_tracks_in_the_same_frames_one_person_is_at_most_one(watched):
    watch, tracks = watched(knowing(), [at(0.1)] * 4, [at(0.12)] * 4)
    assert [watch.verdict(track) for track in tracks] == ["another face beside it looks as much like anna"] * 2
    watch, tracks = watched(knowing(), [at(0.1)] * 4, [at(0.7)] * 4)
    assert [stays(watch.verdict(track)) for track in tracks] == [True, False]
    apart = [at(0.1)] * 2 + [None] * 2, [None] * 2 + [at(0.12)] * 2
    watch, tracks = watched(knowing(), *apart)  # the same person again
    assert all(stays(watch.verdict(track)) for track in tracks)


def test_a_face_is_trusted_for_a_second_about_clear_views_unless_it_was_lost(watched):
    """Nothing was seen of the frames that were never looked at, as of faces that look aside."""
    watch, (track,) = watched(knowing(), [at(0.1)] * 2 + [None] * 18)
    (face, unclear) = track[0].face, [*range(2, 8), *range(10, 12)]
    for frame in unclear:
        track.put(frame, face, "found")
    for frame in (8, 9):
        track.put(frame, face, "interpolated")
    assert watch.verdict(track).person == "anna"
    assert [frame for frame in range(12) if watch.trusts(track, frame)] == [0, 1, 2, 3, 4, 5]
    lost, (track,) = watched(knowing(), [at(0.1)] * 2 + [None] * 2 + [at(0.1)] * 2)
    for frame in (2, 3):
        track.put(frame, face, "interpolated")
    assert all(lost.trusts(track, frame) for frame in range(6)) and not lost.trusts(track, 30)


def test_in_a_video_who_agreed_stays_in_every_frame(pipe, ben, group, tmp_path, monkeypatch):
    """Parts of a run with another choice are not gone on from."""
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 3)
    video = DiffDeIDVideoPipeline(**pipe.components, identity_limit=0.5, crop_factor=pipe.config.crop_factor)
    video.set_progress_bar_config(disable=True)
    with VideoWriter(tmp_path / "a.mp4", Fraction(10), crf=1) as writer:
        for number in range(6):
            writer.write(Frame(np.roll(group[:, np.r_[:208, 416:624]], number, axis=0), Fraction(number, 10)))

    def run(consent, interrupted=False):
        def stop(stage, done, total):
            if interrupted and (stage, done) == ("render", 5):
                raise KeyboardInterrupt

        options = {"num_inference_steps": 1, "resume": True, "crf": 1, "callback_on_frame": stop}
        return video(tmp_path / "a.mp4", tmp_path / "b.mp4", consent=consent, **options)

    with pytest.raises(KeyboardInterrupt):
        run(None, interrupted=True)
    reports = run(ben).people
    (kept,) = [report for report in reports if report.method == "kept"]
    assert kept.person == "ben" and kept.margin > 0 and kept.kept == [(0, 5)] and not kept.found + kept.covered
    assert len(reports) > 1 and all(report.person is None and not report.kept for report in reports if report is not kept)
    assert kept.not_kept is None and all(report.not_kept for report in reports if report is not kept)
    before, after = ([frame.picture.astype(int) for frame in VideoReader(tmp_path / name)] for name in ("a.mp4", "b.mp4"))
    differences = [np.abs(one - other)[50:140] for one, other in zip(before, after, strict=True)]
    assert all(one[:, 60:150].mean() < 4 and one[:, 268:358].mean() > 8 for one in differences)


def test_a_stream_cannot_tell_who_stays(pipe, ben, group):
    with pytest.raises(ValueError, match="cannot use a list of `faces` or a `consent`"):
        list(DiffDeIDVideoPipeline.sharing(pipe).stream([group], consent=ben))
