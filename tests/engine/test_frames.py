"""Which faces of frames are painted, and which are covered. The face analyser is the real one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diffdeid.engine.faces import Engine, StandIn
from diffdeid.engine.frames import FRAME_STRAYING, Appearance, FrameJob, render
from diffdeid.engine.people import People, view_quality
from diffdeid.engine.session import Session
from diffdeid.geometry.mask import face_region
from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.options import VideoOptions
from diffdeid.stages import components
from diffdeid.stages.verify import EXACT_TURN, TURN, allowed_straying
from diffdeid.structures import Covered, FaceJob, Replaced
from diffdeid.temporal import filter as filtering
from diffdeid.temporal.filter import TemporalFilter
from diffdeid.temporal.steadying import begin
from diffdeid.temporal.tracker import FaceTracker
from tests.conftest import ROOT
from tests.heads import profile_picture
from tests.tiny import tiny_pipeline

OPTIONS = VideoOptions(num_inference_steps=1)


@pytest.fixture(scope="module")
def analyser() -> FaceAnalyserModel:
    return FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine that accepts whatever it paints, because it does not check whether that is a face."""
    return tiny_pipeline().engine


@pytest.fixture(scope="module")
def job(analyser, astronaut) -> FaceJob:
    picture = np.asarray(Image.open(astronaut).convert("RGB"))
    return FaceJob(picture, analyser(picture)[0])


@pytest.fixture(scope="module")
def stand_in(engine, job) -> StandIn:
    with torch.no_grad():
        view = engine.reconstruct([job], OPTIONS)
        return engine.cast(view, view.embedding, None, OPTIONS, 0)


@torch.no_grad()
def rendered(engine, job, stand_in, count=1, size=1):
    """Outcomes of the same face in consecutive frames, in groups of a given size."""
    known = stand_in, -stand_in.identity.embedding, False, job.face.doubt
    temporal_filter = TemporalFilter(rate=10)
    jobs = [FrameJob(job.picture, [(job.face, Appearance(*known, frame, temporal_filter))]) for frame in range(count)]
    groups = [jobs[start : start + size] for start in range(0, count, size)]
    return [outcome for group in render(engine, groups, OPTIONS) for _, (outcome,) in group]


@pytest.mark.parametrize(("degrees", "painted"), [(0, True), (EXACT_TURN + 5, True), (90, True), (TURN + 5, False)])
def test_heads_are_painted_as_far_as_they_can_be_seen(engine, job, stand_in, monkeypatch, degrees, painted):
    follow = Engine.follow

    def turned(self, *given):
        batch = follow(self, *given)
        batch.coefficients.pose[:, :3] = torch.tensor([0, math.radians(degrees), 0])
        return batch

    monkeypatch.setattr(Engine, "follow", turned)
    (outcome,) = rendered(engine, job, stand_in)
    assert isinstance(outcome, Replaced) if painted else isinstance(outcome, Covered) and "turned away" in outcome.reason


@torch.no_grad()
def test_what_is_erased_of_frames_reaches_farther_where_landmarks_are_doubtful(engine, job, stand_in):
    faces = [job.face, replace(job.face, doubt=0.05)]
    reference = stand_in.coefficients.pick([0, 0])
    sure, doubtful = engine.follow([job.picture] * 2, faces, reference, OPTIONS).masks
    assert (doubtful >= sure).all() and 1.05 < doubtful.sum() / sure.sum() < 1.3


@pytest.mark.parametrize("size", [1, 4])
def test_a_face_that_fails_again_and_again_stays_covered_for_a_moment(engine, job, stand_in, monkeypatch, size):
    verify, judged = Engine.verify, []

    def fail(self, painted, *given):
        attempts = []
        for attempt in verify(self, painted, *given):
            judged.append(attempt)
            attempts.append(replace(attempt, identity_distance=1.0, problem="failed" if len(judged) in (3, 5) else None))
        return attempts

    monkeypatch.setattr(Engine, "verify", fail)
    outcomes = rendered(engine, job, stand_in, 8, size)
    assert [isinstance(outcome, Replaced) for outcome in outcomes] == [True, True, False, True, False, False, False, True]
    reasons = [outcomes[frame].reason for frame in (2, 4, 5, 6)]
    assert reasons == ["failed"] * 2 + ["it had to be covered in frames shortly before"] * 2


@torch.no_grad()
def test_features_may_stray_farther_where_landmarks_are_doubtful(engine, job, stand_in, monkeypatch):
    """Faces with different doubts are checked together."""
    verify, given, limits = Engine.verify, [], []
    monkeypatch.setattr(Engine, "verify", lambda self, *some: given.append(some[-2:]) or verify(self, *some))
    monkeypatch.setattr(components, "allowed_straying", lambda *some: limits.append(some[1:]) or allowed_straying(*some))
    doubts, known = [0.0, 0.02, 0.01], (stand_in, -stand_in.identity.embedding, False)
    faces = [(replace(job.face, doubt=doubt), Appearance(*known, doubt, 0, TemporalFilter(10))) for doubt in doubts]
    list(render(engine, [[FrameJob(job.picture, faces)]], OPTIONS))
    assert given == [(FRAME_STRAYING, doubts)]
    strayings, added = zip(*limits, strict=True)
    assert set(strayings) == {FRAME_STRAYING}
    assert added[0] == 0 and added[1] == pytest.approx(2 * added[2]) and 0 < added[1] < 0.025  # in sizes, not in heights


@pytest.mark.parametrize(("failed", "begun"), [(1, [0]), (3, [0, 4])])
def test_a_filter_begins_anew_only_where_the_last_face_that_it_has_seen_failed(engine, job, stand_in, monkeypatch, failed, begun):
    verify, shown, first = Engine.verify, [], []

    def fail(self, *given):
        attempts = verify(self, *given)
        shown.extend(attempts)
        return [replace(attempt, problem="failed" if len(shown) == 4 and row == failed else None, identity_distance=1.0)
                for row, attempt in enumerate(attempts)]  # fmt: skip

    monkeypatch.setattr(Engine, "verify", fail)
    monkeypatch.setattr(filtering, "begin", lambda *seen: first.append(len(shown)) or begin(*seen))
    rendered(engine, job, stand_in, 8, 4)
    assert first == begun


@pytest.fixture(scope="module")
def profile() -> tuple[np.ndarray, np.ndarray]:
    """A rendered head in profile, and where its landmarks are."""
    return profile_picture(400, 60)


def test_somebody_who_only_looks_aside_gets_a_new_face(analyser, engine, profile):
    picture, marks = profile
    session = Session(engine, OPTIONS, FaceTracker(analyser, engine.embed_in, 10), People(engine, OPTIONS, 0, 10))
    for _ in range(4):
        session.analyse(picture)
    (track,) = session.tracker.tracks
    assert all(track[frame].face.doubt > 0 for frame in range(1, 4)) and not track.embeddings
    results = [result for group in session.render([list(enumerate([picture] * 4))]) for result in group]
    (person,) = session.people.everybody
    assert isinstance(person.stand_in, StandIn)
    face = (face_region(marks, picture.shape[:2]) > 0) & (picture != 90).any(-1)
    for result in results:
        assert (result[face] != picture[face]).any(-1).mean() > 0.9


def test_views_are_better_the_less_a_head_looks_aside():
    head = MorphableModel.from_pretrained(ROOT / "weights/diffdeid/morphable_model").float()
    front = head(torch.zeros(1, 80), torch.zeros(1, 64)).landmarks
    angles = torch.zeros(7, 3)
    angles[:, 1] = torch.deg2rad(torch.tensor([0.0, 15, 30, 40, 60, 75, 90]))
    seen = 100 * (front @ rotation_matrix(angles).mT).numpy() * [1, -1, 1]
    qualities = [view_quality(landmarks) for landmarks in seen]
    assert all(np.diff(qualities) < 0)
