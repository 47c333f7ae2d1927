"""Videos with corrected lists of faces: who is who, who is kept, what was missed, and which parts are rendered again."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from diffdeid import FileOptions, VideoOptions, VideoReader, VideoWriter, batch
from diffdeid.detection import list_video
from diffdeid.engine import faces as faces_module
from diffdeid.engine.corrections import Corrections
from diffdeid.engine.people import People
from diffdeid.engine.session import Session
from diffdeid.face_lists import DrawnTrack, ListedPerson, box_at, read_face_list
from diffdeid.io.video_reader import Frame
from diffdeid.pipelines import pipeline_video
from diffdeid.planning import Job
from diffdeid.structures import Covered

RATE, SIDE, LENGTH = 10, 176, 6


@pytest.fixture(scope="module", autouse=True)
def _first_who_passes_is_taken():
    """Searching for stand-ins would take most of the time here, and their distances do not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces_module, "MARGIN_SEEN", -1.0)
        yield


@pytest.fixture(scope="module")
def clip(astronaut, tmp_path_factory):
    """A clip of the astronaut twice, moving a little; two faces in one frame are two people."""
    portrait = np.array(Image.open(astronaut).convert("RGB").crop((124, 0, 324, 200)).resize((SIDE, SIDE), Image.LANCZOS))
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    with VideoWriter(path, Fraction(RATE), crf=8) as writer:
        for number in range(LENGTH):
            left = cv2.warpAffine(
                portrait, np.float64([(1, 0, number), (0, 1, 0)]), (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE
            )
            writer.write(Frame(np.concatenate([left, portrait[:, ::-1]], axis=1), Fraction(number, RATE)))
    return path


@pytest.fixture(scope="module")
def pictures(clip):
    return [frame.picture for frame in VideoReader(clip)]


@pytest.fixture(scope="module")
def listed(pipeline, clip):
    return list_video(pipeline, clip)


def session_of(video_pipeline, pictures, faces=None, seed=0) -> tuple[Session, list]:
    """The session of an analysed video, and everybody in it."""
    session = video_pipeline.start(rate=RATE, seed=seed, faces=faces, num_inference_steps=1)
    for picture in pictures:
        session.analyse(picture)
    with torch.no_grad():
        return session, session.cast()


@pytest.fixture(scope="module")
def uncorrected(video_pipeline, pictures):
    return session_of(video_pipeline, pictures)


def embedding(person):
    return person.stand_in.identity.embedding


def present(session, frame):
    return session.people.present(frame, session.tracker.at(frame))


def run(pipe, source, output, faces=None, **options):
    return pipe(source, output, faces=faces, generator=torch.Generator().manual_seed(0), num_inference_steps=1, **options)


def test_tracks_are_listed(listed, clip):
    assert [(one.id, one.person, one.deleted) for one in listed.tracks] == [(1, 1, ()), (2, 2, ())]
    assert [one.id for one in listed.people] == [1, 2] and listed.source.frames == LENGTH
    for track in listed.tracks:
        assert (track.boxes[0][0], track.boxes[-1][0]) == (0, LENGTH - 1) and 0.5 < track.score < 1
    lefts = sorted(box_at(track.boxes, 3)[0] // SIDE for track in listed.tracks)
    assert lefts == [0, 1]  # one in each half
    assert len(listed.tracks[0].boxes) < LENGTH


def test_an_untouched_list_changes_nothing(video_pipeline, pictures, listed, uncorrected):
    session, people = session_of(video_pipeline, pictures, listed)
    assert [person.number for person in people] == [person.number for person in uncorrected[1]]
    assert session.digest(range(LENGTH)) == uncorrected[0].digest(range(LENGTH)) != session.digest(range(1, LENGTH))


def test_a_deleted_track_and_another_candidate_leave_the_others_who_they_are(video_pipeline, pictures, listed, uncorrected):
    one, two = listed.tracks
    faces = replace(listed, tracks=(replace(one, deleted=((2, 4),)), replace(two, deleted=((0, LENGTH - 1),))))
    session, people = session_of(video_pipeline, pictures, faces)
    assert [person.number for person in people] == [1]
    assert torch.equal(embedding(people[0]), embedding(uncorrected[1][0]))
    assert [len(present(session, frame)) for frame in range(LENGTH)] == [1, 1, 0, 0, 0, 1]

    _, people = session_of(video_pipeline, pictures, replace(listed, people=(ListedPerson(2, candidate=1),)))
    assert torch.equal(embedding(people[0]), embedding(uncorrected[1][0]))
    assert not torch.equal(embedding(people[1]), embedding(uncorrected[1][1]))


def test_tracks_are_merged_and_split_as_the_list_says(video_pipeline, pictures, listed, uncorrected):
    merged = replace(listed, tracks=tuple(replace(track, person=1) for track in listed.tracks))
    session, (person,) = session_of(video_pipeline, pictures, merged)
    assert person.number == 1 and {one.person for one in present(session, 4)} == {person}

    split = replace(listed, tracks=(listed.tracks[0], replace(listed.tracks[1], person=9)))
    _, people = session_of(video_pipeline, pictures, split)
    assert [one.number for one in people] == [1, 9]
    assert torch.equal(embedding(people[0]), embedding(uncorrected[1][0]))


def test_only_who_is_said_to_be_kept_is_kept(video_pipeline, listed, clip, pictures, tmp_path):
    """The list is written to a file and read again, as on the command line."""
    path = tmp_path / "faces.jsonl"
    path.write_text(json.dumps(replace(listed, people=(ListedPerson(2, keep=True),), seed=5).record(str(clip))))
    how = batch.How(VideoOptions(num_inference_steps=1), FileOptions(crf=4))
    jobs = [Job(clip, (tmp_path / "b.mp4",), Path(clip.name))]
    done = batch.run(lambda file: video_pipeline, jobs, how, read_face_list(path))
    (((record,),),) = [list(done)]
    assert record["status"] == "ok" and record["deleted"] == 0
    methods = {person["number"]: (person["method"], person["found"] or person["kept"]) for person in record["faces"]}
    assert methods == {1: ("diffusion", [(0, LENGTH - 1)]), 2: ("kept", [(0, LENGTH - 1)])}
    half = int(box_at(listed.tracks[1].boxes, 0)[0] // SIDE)
    for before, after in zip(pictures, VideoReader(tmp_path / "b.mp4"), strict=True):
        change = np.abs(before.astype(float) - after.picture).reshape(SIDE, 2, SIDE, 3)[50:130, :, 50:130].mean(axis=(0, 2, 3))
        assert change[half] < 3 < 8 < change[1 - half]


def test_what_is_drawn_is_replaced_where_a_face_is_seen_and_else_covered(video_pipeline, pictures, listed):
    """The track is deleted and drawn by hand; then a box moves to a place where nobody is."""
    box = tuple(listed.tracks[1].boxes[0][1])
    corner = (SIDE - 40.0, 0.0, SIDE - 10.0, 35.0)
    drawn = (DrawnTrack(2, ((1, box), (4, box))), DrawnTrack(3, ((3, corner), (4, corner))))
    struck = replace(listed.tracks[1], deleted=((0, LENGTH - 1),))
    session, people = session_of(video_pipeline, pictures, replace(listed, tracks=(listed.tracks[0], struck), drawn=drawn))
    assert [person.number for person in people] == [1, 2, 3]
    seen = [{one.person.number: isinstance(one.entry, Covered) for one in present(session, frame)} for frame in range(LENGTH)]
    both, three = {1: False, 2: False}, {1: False, 2: False, 3: True}
    assert seen == [{1: False}, both, both, three, three, {1: False}]


def test_a_list_of_another_file_or_search_gives_no_output(video_pipeline, listed, clip, tmp_path):
    other_file = replace(listed, source=replace(listed.source, fingerprint="0"))
    for faces, options in [(other_file, {}), (listed, {"threshold": 0.6}), (listed, {"start": 0.2})]:
        with pytest.raises(ValueError, match="another|Leave"):
            run(video_pipeline, clip, tmp_path / "b.mp4", faces, callback_on_frame=pytest.fail, **options)
    assert not list(tmp_path.iterdir())


def test_corrections_of_other_tracks_are_refused(listed, uncorrected):
    """Nobody can tell which faces they are about."""
    session, _ = uncorrected
    one, two = listed.tracks
    moved = replace(one, boxes=tuple((frame, tuple(side + 40 for side in box)) for frame, box in one.boxes))
    shorter = replace(one, boxes=one.boxes[:-1] or one.boxes)
    for tracks in [
        (one,),
        (one, two, replace(two, id=3)),
        (replace(one, id=2), replace(two, id=1)),
        (moved, two),
        (shorter, two),
    ]:
        people = People(session.engine, session.options, 0, RATE)
        with pytest.raises(ValueError, match="differ from those of the list"):
            Corrections(replace(listed, tracks=tracks), session.tracker, people).apply()
        assert not people.everybody
    longer = replace(listed, source=replace(listed.source, frames=LENGTH + 1))
    with pytest.raises(ValueError, match="differ from those of the list"):
        Corrections(longer, session.tracker, People(session.engine, session.options, 0, RATE)).apply()


def packets(path):
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(video=0) if packet.dts is not None]


def test_only_parts_that_a_correction_changes_are_rendered_again(video_pipeline, pipeline, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_video, "PART_FRAMES", 3)
    with VideoWriter(tmp_path / "a.mp4", Fraction(RATE), crf=8) as writer:
        for number, picture in enumerate(pictures):
            writer.write(Frame(picture[:, SIDE:], Fraction(number, RATE)))
    listed = list_video(pipeline, tmp_path / "a.mp4")
    options = {"resume": True, "preset": "ultrafast", "overwrite": True}  # without mbtree, where x264 reads what it never wrote
    rendered, render = [], Session.render

    def watched(self, groups):
        return render(self, ([rendered.append(number) or (number, picture) for number, picture in group] for group in groups))

    monkeypatch.setattr(Session, "render", watched)
    before = run(video_pipeline, tmp_path / "a.mp4", tmp_path / "b.mp4", listed, **options)
    content, packets_before = before.path.read_bytes(), packets(before.path)
    assert rendered == list(range(LENGTH))
    rendered.clear()
    assert run(video_pipeline, tmp_path / "a.mp4", tmp_path / "b.mp4", listed, **options) == before and not rendered
    assert before.path.read_bytes() == content

    (track,) = listed.tracks
    struck = replace(listed, tracks=(replace(track, deleted=((LENGTH - 1, LENGTH - 1),)),))
    after = run(video_pipeline, tmp_path / "a.mp4", tmp_path / "b.mp4", struck, **options)
    assert rendered == [3, 4, 5]
    assert packets(after.path)[:3] == packets_before[:3] and packets(after.path)[3:] != packets_before[3:]
    assert [person.found for person in after.people] == [[(0, LENGTH - 2)]]
    assert len(list((tmp_path / ".b.mp4.parts").glob("*.mp4"))) == 2  # the one that nobody needs is gone


def test_a_stream_refuses_a_list(video_pipeline, listed, pictures):
    """It would be ignored, and a face that somebody has drawn would be left as it is."""
    with pytest.raises(ValueError, match="list of `faces`"):
        next(video_pipeline.stream(pictures, faces=listed))
