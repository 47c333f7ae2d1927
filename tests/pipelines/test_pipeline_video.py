"""Videos of the demo photo and of people rendered into it: everybody is somebody else, in every frame, and stays that person."""

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

from diffdeid import DiffDeIDPipeline, DiffDeIDVideoPipeline, NoFaceFoundError, VideoError, VideoReader, VideoWriter
from diffdeid.pipelines import pipeline_video
from diffdeid.video import Frame

RATE = 10  # gaps of up to 10 frames are bridged
SIDE = 176
SAME, OTHER = 0.6, 0.5  # cosines: frames of one person are more alike, two people less
SKIN = (200, 160, 140)


@pytest.fixture(scope="module")
def video_pipeline(pipeline):
    video_pipeline = DiffDeIDVideoPipeline.sharing(pipeline)
    video_pipeline.set_progress_bar_config(disable=True)
    return video_pipeline


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


def faces_of(pipe, pictures):
    """z_id of the largest face of each picture, and its box."""
    found = []
    for picture in pictures:
        face = pipe.face_analyser(picture)[0]
        found.append((pipe._embed_in(picture, face.landmarks), face.box))
    return found


def cosines(one, other):
    return np.array([first @ second for (first, _), (second, _) in zip(one, other, strict=True)])


def changed(before, after, box):
    """Mean change of pixels in the middle of a box, 0…255."""
    x0, y0, x1, y1 = np.int32(box[[0, 1, 2, 3]] + 0.25 * np.array([1, 1, -1, -1]) * np.tile(box[2:] - box[:2], 2))
    return np.abs(before[y0:y1, x0:x1].astype(float) - after[y0:y1, x0:x1]).mean()


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
    """The network is told one α'; what is rendered of it gets what the source's α takes of the movement."""
    frames = [shifted(portrait, number, number) for number in range(4)]
    rendering = video_pipeline.start(rate=RATE, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    for frame in frames:
        video_pipeline.analyse(rendering, frame)
    (track,) = rendering.tracker.tracks
    person = video_pipeline._owner(rendering, track)
    batch = [
        pipeline_video.Appearance(number, frame, track, person, track.smoothed(number)) for number, frame in enumerate(frames)
    ]
    told, rendered = [], []
    denoise, prepare = DiffDeIDVideoPipeline.denoise, DiffDeIDVideoPipeline.prepare_conditioning
    monkeypatch.setattr(
        DiffDeIDVideoPipeline, "denoise", lambda self, *given: told.append(given[5][:, :80]) or denoise(self, *given)
    )
    monkeypatch.setattr(
        DiffDeIDVideoPipeline, "prepare_conditioning", lambda self, *given: rendered.append(given[1]) or prepare(self, *given)
    )
    video_pipeline._paint(rendering, batch)
    found = video_pipeline._reconstruct_batch(rendering, batch).coefficients
    assert found.identity.std(0).max() > 0 and found.pose.std(0).max() > 0
    torch.testing.assert_close(told, [person.identity[1].expand(4, -1)])
    torch.testing.assert_close(rendered[0] - told[0], found.identity - person.coefficients.identity)


@pytest.mark.parametrize(
    ("beyond", "attempts", "taken"),
    [((0.21,), 1, 0), ((0.01, 0.19, 0.3), 3, 2), ((0.01, 0.1, *[0.05] * 14), 16, 1), ((None, 0.01, *[None] * 14), 16, 1)],
)
def test_who_is_barely_far_enough_is_taken_if_nobody_is_farther(video_pipeline, portrait, monkeypatch, beyond, attempts, taken):
    """Frames differ from the reference: of people just beyond the limit many frames would be covered."""
    drawn, sources, margins = [], [], []
    sample_identity, deidentify = DiffDeIDVideoPipeline.sample_identity, DiffDeIDVideoPipeline.deidentify

    def drawing(self, source, *arguments):
        sources.append(source.identity)
        margins.append(arguments[-1])
        drawn.append(sample_identity(self, source, *arguments))
        return drawn[-1]

    def judged(self, *arguments):
        distance = beyond[len(drawn) - 1]
        attempt = deidentify(self, *arguments)
        if distance is None:
            return replace(attempt, problem="too near")
        return replace(attempt, problem=None, identity_distance=self.config.identity_limit + distance)

    monkeypatch.setattr(DiffDeIDVideoPipeline, "sample_identity", drawing)
    monkeypatch.setattr(DiffDeIDVideoPipeline, "deidentify", judged)
    rendering = video_pipeline.start(num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    for number in range(8):
        video_pipeline.analyse(rendering, shifted(portrait, number))
    (track,) = rendering.tracker.tracks
    with torch.no_grad():
        person = video_pipeline._owner(rendering, track)
    assert person.report.attempts == attempts and person.report.method == "diffusion" and person.report.reason is None
    assert torch.equal(person.identity[0], drawn[taken].embedding) and person.report.level == drawn[taken].level
    assert set(margins) == {pipeline_video.MARGIN}
    assert len(track.embeddings) > 1
    for embedding in map(torch.from_numpy, track.embeddings):  # all that was seen of the face, not only the reference
        assert (sources[0] @ embedding).max() > 0.999


def test_no_frame_comes_out_whose_faces_could_not_be_finished(video_pipeline, portrait, tmp_path, monkeypatch):
    """They are finished in a thread of their own, where an error is easily lost."""

    def fail(*given):
        raise ArithmeticError("broken")

    monkeypatch.setattr(pipeline_video, "begin", fail)
    with pytest.raises(ArithmeticError, match="broken"):
        run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_networks_that_are_offloaded_are_run_by_one_thread_at_a_time(video_pipeline, portrait, tmp_path, monkeypatch):
    """Running one moves others, and itself, off the accelerator; two threads would take each other's away."""
    running, together, threads = [], [], set()

    def watched(method):
        def watch(self, *given):
            running.append(1)
            together.append(len(running))
            threads.add(threading.get_ident())
            time.sleep(0.05)
            result = method(self, *given)
            running.pop()
            return result

        return watch

    for name in ("embed", "regress"):
        monkeypatch.setattr(DiffDeIDPipeline, name, watched(getattr(DiffDeIDPipeline, name)))
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
    """After a cut the same person is elsewhere, before another background, and gets the same new face; nothing is between."""
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
    """A hand passes before the face: in frames 6 to 10 there is no face to be found."""
    seen = np.concatenate([empty, portrait, empty], axis=1)
    covered = seen.copy()
    cv2.ellipse(covered, (SIDE + 90, 82), (46, 62), 0, 0, 360, SKIN, -1)
    return [seen] * 6 + [covered] * 5 + [seen] * 5


@pytest.mark.parametrize("on_miss", ["interpolate", "cover", "error"])
def test_a_face_covered_by_a_hand(video_pipeline, portrait, empty, tmp_path, on_miss):
    source = hidden_for_a_moment(portrait, empty)
    path = write(tmp_path / "a.mp4", source)
    if on_miss == "error":
        with pytest.raises(Exception, match="lost in frame"):
            run(video_pipeline, path, tmp_path / "b.mp4", on_miss=on_miss)
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


def test_an_interrupted_run_goes_on(video_pipeline, portrait, tmp_path, monkeypatch):
    """It ends as an uninterrupted one does, and does not render twice what was done."""
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 4)
    path = write(tmp_path / "a.mp4", [shifted(portrait, number) for number in range(10)])
    options = {"resume": True, "preset": "ultrafast"}  # without mbtree, where x264 reads memory that it never wrote
    whole = run(video_pipeline, path, tmp_path / "whole.mp4", **options)

    def interrupt(stage, done, total):
        if (stage, done) == ("render", 7):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(video_pipeline, path, tmp_path / "b.mp4", callback_on_frame=interrupt, **options)
    assert not (tmp_path / "b.mp4").exists()
    assert sorted(part.name for part in (tmp_path / ".b.mp4.parts").iterdir()) == ["000000.mp4", "index.json"]

    rendered, render = [], DiffDeIDVideoPipeline._render

    def count(self, rendering, frames, finisher):
        rendered.extend(frames)
        return render(self, rendering, frames, finisher)

    monkeypatch.setattr(DiffDeIDVideoPipeline, "_render", count)
    again = run(video_pipeline, path, tmp_path / "b.mp4", **options)
    assert [number for number, _ in rendered] == [4, 5, 6, 7, 8, 9]
    assert again.people == whole.people
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "whole.mp4"]


def test_a_run_with_other_options_begins_anew(video_pipeline, portrait, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 4)
    path = write(tmp_path / "a.mp4", [portrait] * 6)

    def interrupt(stage, done, total):
        if (stage, done) == ("render", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(video_pipeline, path, tmp_path / "b.mp4", resume=True, level=3, callback_on_frame=interrupt)
    assert run(video_pipeline, path, tmp_path / "b.mp4", resume=True, level=9).people[0].level == 9


def test_a_network_that_fails_covers(video_pipeline, portrait, tmp_path, monkeypatch):
    """Values that are not finite, in frames after the reference was made: solid covers, and the report says why."""
    denoise, calls = DiffDeIDVideoPipeline.denoise, []

    def fail(self, latents, *rest):
        calls.append(1)
        generated = denoise(self, latents, *rest)
        return generated if len(calls) == 1 else generated * torch.nan

    monkeypatch.setattr(DiffDeIDVideoPipeline, "denoise", fail)
    output = run(video_pipeline, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4")
    (person,) = output.people
    assert frames_in(person.covered) == [0, 1, 2] and "not finite" in person.reason
    (_, box), *_ = faces_of(video_pipeline, [portrait])
    x, y = np.int32((box[:2] + box[2:]) / 2)
    assert all(picture[y - 20 : y + 20, x - 20 : x + 20].max() < 12 for picture in read(output.path))


def test_covers_of_different_reasons_are_reported_in_their_order(video_pipeline, portrait, empty, tmp_path, monkeypatch):
    """Lost in frame 3, and in frame 1 the network fails: what is known before the network runs must not come first."""
    denoise, batches = DiffDeIDVideoPipeline.denoise, []

    def fail(self, latents, *rest):
        generated = denoise(self, latents, *rest)
        if len(generated) > 1:  # frames; before, candidates for I_d come alone
            batches.append(generated)
            if len(batches) == 1:
                generated[1] = torch.nan
        return generated

    monkeypatch.setattr(DiffDeIDVideoPipeline, "denoise", fail)
    source = write(tmp_path / "a.mp4", [portrait] * 3 + [empty] + [portrait] * 2)
    (person,) = run(video_pipeline, source, tmp_path / "b.mp4", on_miss="cover").people
    assert person.covered == [(1, 1), (3, 3)] and frames_in(person.found) == [0, 2, 4, 5]


def test_nobody_far_enough_covers_throughout(video_pipeline, portrait, tmp_path):
    strict = DiffDeIDVideoPipeline(**video_pipeline.components, identity_limit=1.9)
    output = run(strict, write(tmp_path / "a.mp4", [portrait] * 3), tmp_path / "b.mp4")
    (person,) = output.people
    assert person.method == "solid" and frames_in(person.covered) == [0, 1, 2] and person.reason


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
