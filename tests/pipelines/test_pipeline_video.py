"""Videos of the demo photo and of people rendered into it: everybody becomes one other person, in every frame."""

import json
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffdeid import DiffDeIDVideoPipeline, NoFaceFoundError, VideoError, VideoReader, VideoWriter
from diffdeid.engine import people
from diffdeid.engine.faces import MARGIN, Engine
from diffdeid.engine.session import Session
from diffdeid.io.video_reader import Frame
from diffdeid.pipelines import pipeline_video
from diffdeid.stages import components
from diffdeid.stages.identity import Casting
from diffdeid.temporal import tracker as tracker_module
from diffdeid.temporal.filter import TemporalFilter
from diffdeid.temporal.spool import Spool
from diffdeid.temporal.track import Track
from tests.io.test_videos import tones
from tests.io.test_videos import write as write_with_sound

RATE = 10  # gaps of up to 10 frames are bridged
SIDE = 176
SAME, OTHER = 0.6, 0.5  # cosines: frames of one person are more alike, two people less
SKIN = (200, 160, 140)


@pytest.fixture(scope="module")
def portrait(astronaut):
    """Head and shoulders."""
    return np.array(Image.open(astronaut).convert("RGB").crop((124, 0, 324, 200)).resize((SIDE, SIDE), Image.LANCZOS))


@pytest.fixture(scope="module")
def stranger(pipeline, portrait):
    """The same head with a face that was rendered, mirrored."""
    output = pipeline(portrait, level=9, num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="np")
    return np.ascontiguousarray(output.images[0][:, ::-1])


@pytest.fixture(scope="module")
def empty():
    """A wall."""
    ramp = np.linspace(90, 130, SIDE)
    return np.dstack([np.tile(ramp, (SIDE, 1))] * 3).astype(np.uint8)


def shifted(picture, x, y=0):
    """The picture moved, its border repeated."""
    return cv2.warpAffine(picture, np.float64([(1, 0, x), (0, 1, y)]), picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def write(path, pictures):
    with VideoWriter(path, Fraction(RATE), crf=8) as writer:
        for number, picture in enumerate(pictures):
            writer.write(Frame(picture, Fraction(number, RATE)))
    return path


def run(pipe, source, output, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return pipe(source, output, generator=generator, **{"num_inference_steps": 1} | options)


def read(path):
    return [frame.picture for frame in VideoReader(path)]


@torch.no_grad()
def faces_of(pipe, pictures):
    """z_id of the largest face of each picture, and its box."""
    found = []
    for picture in pictures:
        face = pipe.face_analyser(picture)[0]
        found.append((pipe.engine.embed_in(picture, face.landmarks), face.box))
    return found


def cosines(one, other):
    return np.array([first @ second for (first, _), (second, _) in zip(one, other, strict=True)])


def changed(before, after, box):
    """Mean change of pixels in the middle of a box, 0…255."""
    x0, y0, x1, y1 = np.int32(box[[0, 1, 2, 3]] + 0.25 * np.array([1, 1, -1, -1]) * np.tile(box[2:] - box[:2], 2))
    return np.abs(before[y0:y1, x0:x1].astype(float) - after[y0:y1, x0:x1]).mean()


def middle(picture, box):
    """The pixels in the middle of a box."""
    x, y = np.int32((box[:2] + box[2:]) / 2)
    return picture[y - 20 : y + 20, x - 20 : x + 20]


def frames_in(ranges):
    return [frame for first, last in ranges for frame in range(first, last + 1)]


def test_one_person_is_one_other_person_in_every_frame(video_pipeline, portrait, tmp_path):
    source = [shifted(portrait, round(6 * np.sin(number / 3)), number % 3) for number in range(16)]
    output = run(video_pipeline, write(tmp_path / "a.mp4", source), tmp_path / "b.mp4")
    (person,) = output.people
    assert output.num_frames == 16 and person.method == "diffusion"
    assert frames_in(person.found) == list(range(16)) and not person.interpolated and not person.covered
    assert person.identity_distance >= video_pipeline.config.identity_limit

    before, after = (faces_of(video_pipeline, pictures) for pictures in (source, read(output.path)))
    assert cosines(before, after).max() < OTHER
    assert cosines(after[1:], after[:-1]).min() > SAME
    assert cosines(after, [after[0]] * 16).min() > SAME
    corner = np.s_[-20:, :20]
    assert all(np.abs(a[corner].astype(float) - b[corner]).mean() < 6 for a, b in zip(source, read(output.path), strict=True))


@torch.no_grad()
def test_a_person_has_one_shape_that_moves_as_that_of_the_source(video_pipeline, portrait, monkeypatch):
    """The network is given one α'; the rendered one also gets the part of the movement that the source's α absorbs."""
    pictures = [shifted(portrait, number, number) for number in range(4)]
    session = video_pipeline.start(rate=RATE, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    for picture in pictures:
        session.analyse(picture)
    (track,) = session.tracker.tracks
    role = session.people.owner(track).stand_in
    told, paint = [], Engine.paint

    def watched(self, source, people, *given, shown):
        told.append((source.coefficients.shape, people.shape, shown))
        return paint(self, source, people, *given, shown=shown)

    monkeypatch.setattr(Engine, "paint", watched)
    list(session.render([list(enumerate(pictures))]))
    ((found, shape, shown),) = told
    assert found.std(0).max() > 0
    torch.testing.assert_close(shape, role.identity.shape.expand(4, -1))
    torch.testing.assert_close(shown - shape, found - role.coefficients.shape)


@pytest.mark.parametrize(
    ("beyond", "attempts", "taken"),
    [((0.21,), 1, 0), ((0.01, 0.19, 0.3), 3, 2), ((0.01, 0.1, *[0.05] * 16), 18, 1), ((None, 0.01, *[None] * 16), 18, 1)],
)
def test_who_is_barely_far_enough_is_taken_if_nobody_is_farther(video_pipeline, portrait, monkeypatch, beyond, attempts, taken):
    """Frames differ from the reference, so with people just beyond the limit many frames would be covered."""
    drawn, sources, margins = [], [], []
    draw, finish = Casting.draw, Engine.finish

    def drawing(self, source, *arguments):
        sources.append(source)
        margins.append(arguments[-1])
        drawn.append(draw(self, source, *arguments))
        return drawn[-1]

    def judged(self, *arguments):
        distance = beyond[len(drawn) - 1]
        (attempt,) = finish(self, *arguments)
        if distance is None:
            return [replace(attempt, problem="too near")]
        return [replace(attempt, problem=None, identity_distance=self.identity_limit + distance)]

    monkeypatch.setattr(Casting, "draw", drawing)
    monkeypatch.setattr(Engine, "finish", judged)
    session = video_pipeline.start(num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    for number in range(8):
        session.analyse(shifted(portrait, number))
    (track,) = session.tracker.tracks
    with torch.no_grad():
        role = session.people.owner(track).stand_in
    assert role.attempts == attempts and role.identity.level == drawn[taken].level
    assert torch.equal(role.identity.embedding, drawn[taken].embedding)
    assert set(margins) == {MARGIN}
    assert len(track.embeddings) > 1
    for embedding in map(torch.from_numpy, track.embeddings):  # all that was seen of the face, not only the reference
        assert (sources[0] @ embedding).max() > 0.999


@pytest.mark.parametrize("stage", ["register", "lay_over_crops", "verify", "render_new_heads", "denoise"])
def test_a_face_with_which_something_goes_wrong_is_covered(video_pipeline, portrait, tmp_path, monkeypatch, stage):
    """This holds for all stages, also for those of the second thread, where an error is easily lost."""
    whole, rendering = getattr(components, stage), []

    def fail(*given):
        if rendering:
            raise ArithmeticError("broken")
        return whole(*given)

    def note(stage, done, total):
        if stage == "render":  # the person is cast before
            rendering.append(done)

    monkeypatch.setattr(components, stage, fail)
    output = run(
        video_pipeline, write(tmp_path / "a.mp4", [portrait] * 6), tmp_path / "b.mp4", callback_on_frame=note, fallback="solid"
    )
    (person,) = output.people
    assert frames_in(person.covered) == list(range(6)) and "broken" in person.reason
    (_, box), *_ = faces_of(video_pipeline, [portrait])
    assert all(middle(picture, box).max() < 12 for picture in read(output.path))


def test_networks_that_are_offloaded_are_run_by_one_thread_at_a_time(video_pipeline, portrait, tmp_path, monkeypatch):
    """Running one moves others, and itself, off the accelerator, so two threads would remove each other's networks."""
    running, together, threads = [], [], set()

    def watched(function):
        def watch(*given):
            running.append(1)
            together.append(len(running))
            threads.add(threading.get_ident())
            time.sleep(0.05)
            result = function(*given)
            running.pop()
            return result

        return watch

    monkeypatch.setattr(components, "verify", watched(components.verify))
    for name in ("embed", "follow_coefficients"):
        monkeypatch.setattr(components.reconstruct, name, watched(getattr(components.reconstruct, name)))
    run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 20), tmp_path / "b.mp4", reconstruction="network")
    assert max(together) == 1 and len(threads) == 2


def test_two_people_one_turns_away_and_comes_back(video_pipeline, portrait, stranger, tmp_path):
    away = portrait.copy()
    cv2.ellipse(away, (SIDE // 2, 80), (50, 70), 0, 0, 360, (60, 45, 40), -1)  # the back of a head
    left = [portrait] * 6 + [away] * 13 + [portrait] * 6
    source = [np.concatenate([picture, stranger], axis=1) for picture in left]
    output = run(video_pipeline, write(tmp_path / "a.mp4", source), tmp_path / "b.mp4")
    assert len(output.people) == 2
    one, other = sorted(output.people, key=lambda person: len(frames_in(person.found)))
    assert set(range(6)) | set(range(19, 25)) <= set(frames_in(one.found))
    assert frames_in(other.found) == list(range(25))

    result = read(output.path)
    halves = {name: [picture[:, part] for picture in result] for name, part in (("one", np.s_[:SIDE]), ("other", np.s_[SIDE:]))}
    shown = [*halves["one"][:6], *halves["one"][19:]]
    embeddings = faces_of(video_pipeline, shown)
    assert cosines(embeddings, [embeddings[0]] * 12).min() > SAME  # before and after it is the same new person
    assert cosines(embeddings, faces_of(video_pipeline, [portrait]) * 12).max() < OTHER
    others = faces_of(video_pipeline, halves["other"][:3])
    assert cosines(others, faces_of(video_pipeline, [stranger]) * 3).max() < OTHER
    assert cosines(others, embeddings[:3]).max() < OTHER  # and not that of the other


def test_a_scene_cut(video_pipeline, portrait, empty, tmp_path):
    """After a cut the same person is elsewhere, with another background, and gets the same new face; nothing is interpolated."""
    wide = np.concatenate([empty, 255 - empty], axis=1)
    first, second = wide.copy(), 255 - wide
    first[:, :SIDE], second[:, SIDE:] = portrait, portrait
    output = run(video_pipeline, write(tmp_path / "a.mp4", [first] * 6 + [second] * 6), tmp_path / "b.mp4")
    (person,) = output.people
    assert frames_in(person.found) == list(range(12)) and not person.interpolated and not person.covered
    embeddings = faces_of(video_pipeline, read(output.path))
    assert cosines(embeddings, [embeddings[0]] * 12).min() > SAME
    assert cosines(embeddings, faces_of(video_pipeline, [portrait]) * 12).max() < OTHER


def hidden_for_a_moment(portrait, empty):
    """A hand passes in front of the face: in frames 6 to 10 no face is found."""
    seen = np.concatenate([empty, portrait, empty], axis=1)
    covered = seen.copy()
    cv2.ellipse(covered, (SIDE + 90, 82), (46, 62), 0, 0, 360, SKIN, -1)
    return [seen] * 6 + [covered] * 5 + [seen] * 5


@pytest.mark.parametrize("on_miss", ["interpolate", "cover", "error"])
def test_a_face_covered_by_a_hand(video_pipeline, portrait, empty, tmp_path, on_miss):
    source = hidden_for_a_moment(portrait, empty)
    path = write(tmp_path / "a.mp4", source)
    if on_miss == "error":
        stages = []
        with pytest.raises(Exception, match="lost in frame"):
            run(video_pipeline, path, tmp_path / "b.mp4", on_miss=on_miss, callback_on_frame=lambda *said: stages.append(said[0]))
        assert set(stages) == {"analyse"}  # not in the middle of the work
        assert not (tmp_path / "b.mp4").exists()
        return
    output = run(video_pipeline, path, tmp_path / "b.mp4", on_miss=on_miss)
    (person,) = output.people
    assert set(frames_in(person.found)) >= {*range(6), *range(11, 16)}
    missed = frames_in(person.interpolated) + frames_in(person.covered)
    assert sorted(frames_in(person.found) + missed) == list(range(16)) and missed
    if on_miss == "cover":
        assert not person.interpolated
    (_, box), *_ = faces_of(video_pipeline, source[:1])
    assert all(changed(a, b, box) > 8 for a, b in zip(source, read(output.path), strict=True))  # something is done in every frame


@pytest.mark.parametrize("resume", [False, True])
def test_no_face(video_pipeline, empty, tmp_path, resume):
    with pytest.raises(NoFaceFoundError):
        run(video_pipeline, write(tmp_path / "a.mp4", [empty] * 4), tmp_path / "b.mp4", resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_broken_file(video_pipeline, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(VideoError, match="cannot be read"):
        run(video_pipeline, tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_file_that_breaks_halfway(video_pipeline, portrait, tmp_path):
    path = write(tmp_path / "a.mp4", [portrait] * 8)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(VideoError):
        run(video_pipeline, path, tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_same_seed_same_bytes(video_pipeline, portrait, tmp_path):
    path = write(tmp_path / "a.mp4", [portrait] * 3)
    made = [
        run(video_pipeline, path, tmp_path / f"{number}.mp4", seed).path.read_bytes() for number, seed in enumerate((0, 0, 1))
    ]
    assert made[0] == made[1] != made[2]


def interrupted_at(frame):
    """A callback that stops the rendering at a frame, as Ctrl-C does."""

    def interrupt(stage, done, total):
        if (stage, done) == ("render", frame):
            raise KeyboardInterrupt

    return interrupt


def watch_rendering(monkeypatch):
    """The numbers of the frames that are rendered."""
    rendered, render = [], Session.render

    def watched(self, groups):
        noted = ([rendered.append(number) or (number, picture) for number, picture in group] for group in groups)
        return render(self, noted)

    monkeypatch.setattr(Session, "render", watched)
    return rendered


def test_an_interrupted_run_goes_on(video_pipeline, portrait, tmp_path, monkeypatch):
    """It ends as an uninterrupted one does, and does not render finished parts again."""
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 4)
    path = write(tmp_path / "a.mp4", [shifted(portrait, number) for number in range(10)])
    options = {"resume": True, "preset": "ultrafast"}  # without mbtree, where x264 reads memory that it never wrote
    whole = run(video_pipeline, path, tmp_path / "whole.mp4", **options)

    interrupt = interrupted_at(7)

    with pytest.raises(KeyboardInterrupt):
        run(video_pipeline, path, tmp_path / "b.mp4", callback_on_frame=interrupt, **options)
    assert not (tmp_path / "b.mp4").exists()
    assert len(list((tmp_path / ".b.mp4.parts").glob("*.mp4"))) == 1

    rendered = watch_rendering(monkeypatch)
    again = run(video_pipeline, path, tmp_path / "b.mp4", **options)
    assert frames_in(again.people[0].found) == list(range(10)) and again.people[0].identity_distance > 0.5
    assert rendered == [4, 5, 6, 7, 8, 9]
    assert again.people == whole.people
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "whole.mp4"]


def test_a_run_with_other_options_begins_anew(video_pipeline, portrait, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 4)
    path = write(tmp_path / "a.mp4", [portrait] * 6)

    interrupt = interrupted_at(5)

    with pytest.raises(KeyboardInterrupt):
        run(video_pipeline, path, tmp_path / "b.mp4", resume=True, level=3, callback_on_frame=interrupt)
    assert run(video_pipeline, path, tmp_path / "b.mp4", resume=True, level=9).people[0].level == 9


def test_a_network_that_fails_covers(video_pipeline, portrait, tmp_path, monkeypatch):
    """In frames after the reference, values that are not finite give solid covers, and the report says why."""
    denoise, calls = components.denoise, []

    def fail(*given):
        calls.append(1)
        return denoise(*given) * (1 if len(calls) == 1 else torch.nan)

    monkeypatch.setattr(components, "denoise", fail)
    output = run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4", fallback="solid")
    (person,) = output.people
    assert frames_in(person.covered) == [0, 1, 2] and "not finite" in person.reason
    (_, box), *_ = faces_of(video_pipeline, [portrait])
    assert all(middle(picture, box).max() < 12 for picture in read(output.path))


def test_a_face_that_is_not_finite_never_comes_into_the_filter(video_pipeline, portrait, tmp_path, monkeypatch):
    """It would be seen as a ghost in the frames that follow."""
    denoise, steadied, seen = components.denoise, TemporalFilter.__call__, []

    def fail(*given):
        generated = denoise(*given)
        if len(generated) > 1:  # frames; before, candidates for I_d come alone
            generated[1] = torch.inf
        return generated

    monkeypatch.setattr(components, "denoise", fail)
    monkeypatch.setattr(
        TemporalFilter, "__call__", lambda self, frame, *given: seen.append(frame) or steadied(self, frame, *given)
    )
    (person,) = run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 4), tmp_path / "b.mp4").people
    assert person.covered == [(1, 1)] and seen == [0, 2, 3]


def test_covers_of_different_reasons_are_reported_in_their_order(video_pipeline, portrait, empty, tmp_path, monkeypatch):
    """The network fails in frame 1, and the face is lost in frame 3, which is known earlier but must be reported later."""
    denoise, batches = components.denoise, []

    def fail(*given):
        generated = denoise(*given)
        if len(generated) > 1:  # frames; before, candidates for I_d come alone
            batches.append(generated)
            if len(batches) == 1:
                generated[1] = torch.nan
        return generated

    monkeypatch.setattr(components, "denoise", fail)
    source = write(tmp_path / "a.mp4", [portrait] * 3 + [empty] + [portrait] * 2)
    (person,) = run(video_pipeline, source, tmp_path / "b.mp4", on_miss="cover").people
    assert person.covered == [(1, 1), (3, 5)] and frames_in(person.found) == [0, 2]  # it does not come and go and come again


def test_nobody_far_enough_covers_throughout(video_pipeline, portrait, tmp_path):
    strict = DiffDeIDVideoPipeline(**video_pipeline.components, identity_limit=1.9)
    output = run(strict, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4")
    (person,) = output.people
    assert person.method == "fill" and frames_in(person.covered) == [0, 1, 2] and person.reason


def test_small_faces_are_covered(video_pipeline, portrait, tmp_path):
    output = run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4", min_face=150)
    assert frames_in(output.people[0].covered) == [0, 1, 2]
    assert "smaller than 150 pixels" in output.people[0].reason


def test_a_stream_has_as_many_frames_and_holds_few(video_pipeline, portrait):
    taken = []

    def camera():
        for number in range(20):
            taken.append(number)
            yield shifted(portrait, number % 4)

    lead, made = [], []
    for picture in video_pipeline.stream(camera(), lookahead=3, rate=RATE, num_inference_steps=1):
        made.append(picture)
        lead.append(len(taken) - len(made))
    assert len(made) == 20 and max(lead) <= 3 + 4
    source = faces_of(video_pipeline, [portrait]) * 20
    assert cosines(source, faces_of(video_pipeline, made)).max() < OTHER


@pytest.mark.parametrize("options", [
    {"on_miss": "ignore"}, {"attributes": "own"}, {"level": 0}, {"fallback": "none"}, {"audio": "maybe"}, {"start": -1},
    {"start": 2, "end": 1},
])  # fmt: skip
def test_options_that_make_no_sense(video_pipeline, portrait, tmp_path, options):
    path = write(tmp_path / "a.mp4", [portrait] * 2)
    with pytest.raises(ValueError):
        run(video_pipeline, path, tmp_path / "b.mp4", **options)


def test_it_loads_from_the_folder_of_the_picture_pipeline(pipeline, caplog):
    folder = Path(__file__).parents[2] / "weights" / "diffdeid"
    loaded = DiffDeIDVideoPipeline.from_pretrained(folder, reconstructor=None)
    assert loaded.config.identity_limit == pipeline.config.identity_limit and not caplog.records


def test_the_input_is_never_the_output(video_pipeline, portrait, tmp_path):
    path = write(tmp_path / "a.mp4", [portrait] * 2)
    (tmp_path / "b.mp4").symlink_to(path)
    before = path.read_bytes()
    for output in (path, tmp_path / "b.mp4"):
        with pytest.raises(VideoError, match="never written to"):
            run(video_pipeline, path, output, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("more", [True, False])
def test_a_file_that_changes_between_the_passes_gives_no_output(video_pipeline, portrait, tmp_path, monkeypatch, more):
    """Nobody has followed the faces of an additional frame, or of other contents."""
    path, passes = write(tmp_path / "a.mp4", [portrait] * 5), []
    read = VideoReader.__iter__

    def changing(self):
        passes.append(1)
        frames = list(read(self))
        if len(passes) == 2:
            if more:
                frames.append(Frame(frames[-1].picture, frames[-1].time + 1))
            else:
                path.write_bytes(path.read_bytes() + b"0")
        return iter(frames)

    monkeypatch.setattr(VideoReader, "__iter__", changing)
    with pytest.raises(VideoError, match="changed"):
        run(video_pipeline, path, tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_file_of_another_content_under_the_same_name_gives_no_output(video_pipeline, portrait, empty, tmp_path):
    path, other = write(tmp_path / "a.mp4", [empty] * 2 + [portrait] * 3), write(tmp_path / "c.mp4", [portrait] * 5)

    def replace_it(stage, done, total):
        if (stage, done) == ("analyse", 5):
            other.replace(path)

    with pytest.raises(VideoError, match="changed"):
        run(video_pipeline, path, tmp_path / "b.mp4", callback_on_frame=replace_it)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_file_may_lose_its_name_while_it_is_rendered(video_pipeline, portrait, tmp_path):
    """For example uploads, which servers delete after a while."""
    path = write(tmp_path / "a.mp4", [portrait] * 6)

    def unlink(stage, done, total):
        if (stage, done) == ("render", 2):
            path.unlink()

    assert run(video_pipeline, path, tmp_path / "b.mp4", callback_on_frame=unlink).num_frames == 6


@pytest.mark.parametrize("name", ["out.webm", "out.mkv", "out.mov"])
def test_parts_have_the_kind_of_the_output(video_pipeline, portrait, tmp_path, name):
    output = run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / name, resume=True)
    assert output.num_frames == len(read(output.path)) == 3


@pytest.mark.parametrize(("audio", "frequency"), [("keep", 500), ("distort", 400)])
def test_sound_comes_along_from_where_the_pictures_begin(video_pipeline, portrait, tmp_path, audio, frequency):
    path = write_with_sound(tmp_path / "a.mp4", [portrait] * 20, sounds=[("aac", 500)])
    output = run(video_pipeline, path, tmp_path / "b.mp4", audio=audio, start=0.6, resume=audio == "distort").path
    ((heard, seconds),) = tones(output)
    assert heard == pytest.approx(frequency, abs=8) and seconds == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("options", [{"codec": "libx264"}, {"preset": "nonsense"}, {"codec": "nonsense"}])
def test_what_cannot_be_encoded_is_refused_before_work(video_pipeline, portrait, tmp_path, options):
    path = write(tmp_path / "a.mp4", [portrait] * 2)
    output = tmp_path / ("out.webm" if "codec" in options else "out.mp4")
    with pytest.raises(VideoError, match="out.mp4|not a video encoder for `.webm`"):
        run(video_pipeline, path, output, callback_on_frame=pytest.fail, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"job": 1, "seed": 2, "parts": ["x"]}', b'{"seed": 2, "parts": {}}'])
def test_a_broken_index_of_parts_begins_anew(video_pipeline, portrait, tmp_path, content):
    path, parts = write(tmp_path / "a.mp4", [portrait] * 2), tmp_path / ".b.mp4.parts"
    parts.mkdir()
    (parts / "index.json").write_bytes(content)
    assert run(video_pipeline, path, tmp_path / "b.mp4", resume=True).num_frames == 2


def test_parts_made_with_other_weights_or_another_cast_are_not_taken(video_pipeline, portrait, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 4)
    path = write(tmp_path / "a.mp4", [portrait] * 6)

    interrupt = interrupted_at(5)

    strict = DiffDeIDVideoPipeline(**video_pipeline.components, identity_limit=video_pipeline.config.identity_limit - 0.01)
    strict.set_progress_bar_config(disable=True)
    index = tmp_path / ".b.mp4.parts" / "index.json"
    rendered, summary = watch_rendering(monkeypatch), people.Presence.summary
    for pipe, cast in ((strict, b""), (video_pipeline, b"somebody else")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(people.Presence, "summary", lambda self, cast=cast: summary(self) + cast)
            run(pipe, path, tmp_path / "b.mp4", resume=True, overwrite=True, callback_on_frame=interrupt)
        assert len(json.loads(index.read_text())["parts"]) == 1
        rendered.clear()
        run(video_pipeline, path, tmp_path / "b.mp4", resume=True, overwrite=True)
        assert rendered == list(range(6))


@torch.no_grad()
def test_a_stream_of_any_length_stays_flat(video_pipeline, monkeypatch):
    """People who left long ago are forgotten, and new people may then look like them."""
    monkeypatch.setattr(people, "REMEMBERED", 2)
    session = video_pipeline.start(rate=RATE)
    tracks = [Track(number, Spool(), RATE) for number in range(100)]
    for track in tracks:  # everybody comes twice, and one of them ten times
        who = track.number // 2 if track.number < 80 else 39
        track.add_embedding(np.eye(128, dtype=np.float32)[who])
        track.last_frame = track.number
        session.people.owner(track)
        session.people.forget(tracks[max(track.number - 1, 0) : track.number])  # as the tracker says it: each once
    known = session.people
    assert [person.number for person in known.everybody] == [39, 40] and len(known.everybody[-1].tracks) <= 5
    assert len(known._owners) <= 8 and len(known._ended) <= 8 and not known._views and not known._qualities


@torch.no_grad()
def test_a_person_who_is_cast_late_is_reported_as_cast(video_pipeline, portrait, monkeypatch):
    """In a stream the first frames may be covered, for lack of a view."""
    look, calls = people.People.look, []

    def blind(self, picture, tracks):
        calls.append(1)
        if len(calls) > 6:
            look(self, picture, tracks)

    monkeypatch.setattr(people.People, "look", blind)
    session = video_pipeline.start(rate=RATE, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    list(video_pipeline.stream([portrait] * 12, lookahead=0, session=session))
    (report,) = session.reports.values()
    assert report.method == "diffusion" and report.level == 7 and report.attempts >= 1
    assert frames_in(report.covered) == list(range(6)) and frames_in(report.found) == list(range(6, 12))
    with pytest.raises(ValueError, match="session"):
        next(video_pipeline.stream([portrait], session=session, level=3))


def test_somebody_for_whom_casting_fails_is_covered(video_pipeline, portrait, tmp_path, monkeypatch):
    monkeypatch.setattr(components, "match", lambda *given: 1 / 0)
    (person,) = run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4").people
    assert person.method == "fill" and frames_in(person.covered) == [0, 1, 2] and "ZeroDivisionError" in person.reason


def test_what_is_kept_of_frames_is_bounded_in_bytes(video_pipeline, monkeypatch):
    """Whatever rate a file claims."""
    monkeypatch.setattr(tracker_module, "RECENT_BYTES", 3 * SIDE * SIDE * 3)
    wall = np.full((SIDE, SIDE, 3), 127, np.uint8)
    session = video_pipeline.start(rate=1e9)
    for _ in range(8):
        session.analyse(wall)
    assert len(session.tracker._recent) == 3 and session.tracker.rate <= 240
