"""Following faces in a made-up world of people, in which the detector or the mesh misses them at known times."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffdeid.geometry.boxes import bounding_box
from diffdeid.structures import Face
from diffdeid.temporal.spool import Spool
from diffdeid.temporal.track import Track
from diffdeid.temporal.tracker import FaceTracker

RATE = 10  # a second is 10 frames: gaps of up to 10 are bridged, ends are held for 2, new faces followed back 4
SIDE = 40
FACE = np.random.default_rng(0).uniform(-SIDE / 2, SIDE / 2, (468, 3)).astype(np.float32)
FACE[:4, :2] = SIDE / 2 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
FACE[[234, 454, 10, 152]] = SIDE / 2 * np.array([(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0)])  # cheeks, forehead and chin
ROUGH = 2  # pixels by which the head mesh sees everything farther to the right


class World:
    """Stands in for the face analyser and the recogniser.

    `people[name](frame)` is where somebody's face is, or `None`. `unseen` and `unmeshed` hold (name, frame) that the detector and
    the mesh miss; `faint` ones have a score that counts only where a face is expected. `turned(frame)` is by how many degrees all
    heads are turned away. The head mesh sees those in `headed`, and the attention mesh makes up a face that hangs head down for
    those in `made_up`; both hold (name, frame). `doubt` is that of the head mesh. `asked` counts how often the head mesh looks.
    """

    config = SimpleNamespace(detection_threshold=0.35, presence_threshold=0.5)

    def __init__(self, people, unseen=(), unmeshed=(), faint=(), headed=(), made_up=(), turned=lambda frame: 0, doubt=0.04):
        self.people, self.unseen, self.unmeshed, self.faint = people, set(unseen), set(unmeshed), set(faint)
        self.headed, self.made_up, self.turned, self.doubt, self.asked = set(headed), set(made_up), turned, doubt, 0

    def picture(self, frame, scene=0):
        picture = np.full((120, 400, 3), 100 * scene, np.uint8)
        picture[0, 0] = frame
        return picture

    def places(self, picture):
        frame = int(picture[0, 0, 0])
        for name, path in self.people.items():
            if (place := path(frame)) is not None:
                yield name, frame, np.array([place, 60.0])

    def detect(self, picture, threshold):
        return self.glance(picture, threshold)

    def confirmed(self, picture, faces, threshold):
        """Close looks see everybody who is no thing."""
        return [] if any(name.startswith("thing") for name, _, _ in self.places(picture)) else faces

    def glance(self, picture, threshold):
        faces = []
        for name, frame, centre in self.places(picture):
            score = 0.25 if (name, frame) in self.faint else 0.9
            if (name, frame) not in self.unseen and score >= threshold:
                faces.append(Face(np.concatenate([centre - SIDE / 2, centre + SIDE / 2]).astype(np.float32), score))
        return faces

    def at(self, picture, centre):
        """Who the mesh finds near a point; of two, the one named first is in front."""
        near = [(name, place) for name, frame, place in self.places(picture) if (name, frame) not in self.unmeshed]
        near = [(name, place) for name, place in near if np.abs(place - centre).max() < SIDE / 2]
        return near[0] if near else None

    def find_again(self, pictures, landmarks):
        faces = []
        for picture, points in zip(pictures, landmarks, strict=True):
            found = self.at(picture, points[:4, :2].mean(0))
            marks = {} if found is None else {**self.exact_marks(picture, *found), "presence": 1.0}
            faces.append(Face(bounding_box(marks.get("landmarks", points)), **marks))
        return faces

    def find_in_any_pose(self, pictures, landmarks, doubt_limit=0.035):
        faces = []
        for picture, points in zip(pictures, landmarks, strict=True):
            self.asked += 1
            centre, frame = points[:4, :2].mean(0), int(picture[0, 0, 0])
            near = [(name, place) for name, _, place in self.places(picture) if np.abs(place - centre).max() < SIDE / 2]
            seen = [place for name, place in near if (name, frame) in self.headed]
            seen += [] if near else [centre - [ROUGH, 0] for name, at in self.headed if name == "nobody" and at == frame]
            marks = {**self.marks(seen[0] + [ROUGH, 0], picture), "doubt": self.doubt} if seen else {}
            faces.append(Face(bounding_box(marks.get("landmarks", points)), **marks))
        return faces

    def exact_marks(self, picture, name, centre):
        if (name, int(picture[0, 0, 0])) not in self.made_up:
            return self.marks(centre, picture)
        return {"landmarks": np.float32(FACE * [1, -1, 1] + [*centre, 0]), "iris": np.zeros((2, 5, 2), np.float32)}

    def marks(self, centre, picture):
        turn = np.deg2rad(self.turned(int(picture[0, 0, 0])))
        about = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
        places = FACE.copy()
        places[4:] = places[4:] @ about.T
        return {"landmarks": np.float32(places + [*centre, 0]), "iris": np.zeros((2, 5, 2), np.float32)}

    def __call__(self, picture, faces, any_pose):
        assert any_pose
        completed = []
        for face in faces:
            centre = (face.box[:2] + face.box[2:]) / 2
            found = self.at(picture, centre)
            if found is None:
                (head,) = self.find_in_any_pose([picture], [FACE + np.float32([*centre, 0])])
                marks = {name: getattr(head, name) for name in ("landmarks", "iris", "doubt")}
            else:
                marks = {**self.exact_marks(picture, *found), "presence": 1.0}
            completed.append(Face(face.box, face.score, **marks))
        return completed

    def embed(self, picture, landmarks):
        name, _ = self.at(picture, landmarks[:4, :2].mean(0))
        return np.eye(len(self.people))[list(self.people).index(name)]

    def follow(self, count, cut=None):
        tracker = FaceTracker(self, self.embed, RATE)
        for frame in range(count):
            tracker.update(self.picture(frame, scene=cut is not None and frame >= cut))
        return tracker


def states(tracker, track, count):
    """A letter a frame: found, interpolated, lost, or . for none."""
    return "".join(track[frame].state[0] if frame in track else "." for frame in range(count))


def test_one_face_one_track():
    tracker = World({"a": lambda frame: 100 + 5 * frame}).follow(20)
    (track,) = tracker.tracks
    assert states(tracker, track, 20) == "f" * 20
    assert track[7].face.box == pytest.approx([115, 40, 155, 80])


def test_the_mesh_follows_what_the_detector_misses():
    tracker = World({"a": lambda frame: 100}, unseen=[("a", frame) for frame in range(5, 15)]).follow(20)
    assert [states(tracker, track, 20) for track in tracker.tracks] == ["f" * 20]


def test_a_face_lost_for_less_than_a_second_was_in_between():
    gone = [("a", frame) for frame in range(5, 12)]
    tracker = World({"a": lambda frame: 100 + 2 * frame}, unseen=gone, unmeshed=gone).follow(20)
    (track,) = tracker.tracks
    assert states(tracker, track, 20) == "fffff" + "i" * 7 + "f" * 8
    for frame in range(20):
        assert track in tracker.at(frame)
        assert track[frame].face.landmarks[:4, 0].mean() == pytest.approx(100 + 2 * frame, abs=0.01)


def test_a_face_that_does_not_come_back_is_held_for_a_moment():
    tracker = World({"a": lambda frame: 100 if frame < 10 else None}).follow(25)
    (track,) = tracker.tracks
    assert states(tracker, track, 25) == "f" * 10 + "ll" + "." * 13
    assert track[11].face.landmarks is None and track[11].face.box == pytest.approx([80, 40, 120, 80], abs=2)


def test_a_face_lost_for_longer_is_a_new_track():
    tracker = World({"a": lambda frame: None if 8 <= frame < 22 else 100}).follow(30)
    assert [states(tracker, track, 30) for track in tracker.tracks] == ["f" * 8 + "ll" + "." * 20, "." * 20 + "ll" + "f" * 8]


def test_a_face_that_the_detector_sees_late_is_followed_backwards():
    tracker = World({"a": lambda frame: 100 + 3 * frame}, unseen=[("a", frame) for frame in range(3)]).follow(8)
    assert [states(tracker, track, 8) for track in tracker.tracks] == ["f" * 8]
    late = World({"a": lambda frame: 100 + 3 * frame}, unseen=[("a", frame) for frame in range(8)]).follow(12)
    assert [states(late, track, 12) for track in late.tracks] == ["..ll" + "f" * 8]


def test_crossing_people_keep_their_tracks():
    people = {"front": lambda frame: 60 + 8 * frame, "behind": lambda frame: 340 - 8 * frame}
    tracker = World(people).follow(36)
    assert len(tracker.tracks) == 2
    for track, name in zip(sorted(tracker.tracks, key=lambda track: track[0].face.box[0]), people, strict=True):
        assert all(frame in track for frame in range(36))
        assert track[35].face.box[:2].mean() == pytest.approx((people[name](35) - 20 + 40) / 2)
        assert len({int(embedding.argmax()) for embedding in track.embeddings}) == 1


def test_a_cut_ends_tracks_and_nothing_is_bridged():
    people = {"a": lambda frame: 100 if frame < 10 else None, "b": lambda frame: None if frame < 10 else 110}
    tracker = World(people).follow(20, cut=10)
    assert tracker.cuts == [0, 10]
    assert [states(tracker, track, 20) for track in tracker.tracks] == ["f" * 10 + "." * 10, "." * 10 + "f" * 10]


def test_a_flash_is_no_other_person():
    """The picture jumps, the face does not."""
    tracker = World({"a": lambda frame: 100}).follow(20, cut=10)
    assert [states(tracker, track, 20) for track in tracker.tracks] == ["f" * 20]


def test_a_face_blinded_by_a_flash_is_bridged_and_one_cut_away_is_not():
    gone = [("a", frame) for frame in range(10, 13)]
    world = World({"a": lambda frame: 100}, unseen=gone, unmeshed=gone)
    tracker = FaceTracker(world, world.embed, RATE)
    for frame in range(20):
        tracker.update(world.picture(frame, scene=frame in (10, 11)))
    assert [states(tracker, track, 20) for track in tracker.tracks] == ["f" * 10 + "iii" + "f" * 7]
    away = World({"a": lambda frame: None if 10 <= frame < 16 else 100})
    tracker = FaceTracker(away, away.embed, RATE)
    for frame in range(20):
        tracker.update(away.picture(frame, scene=10 <= frame < 16))
    assert [states(tracker, track, 20) for track in tracker.tracks] == ["f" * 10 + "." * 10, "." * 16 + "f" * 4]


def test_a_faint_face_counts_where_one_is_expected():
    gone = [("a", frame) for frame in range(8, 14)]
    tracker = World({"a": lambda frame: 100}, unmeshed=gone, faint=gone).follow(20)
    (track,) = tracker.tracks
    assert states(tracker, track, 20) == "f" * 20
    assert track[10].face.landmarks is None
    always = [("a", frame) for frame in range(20)]
    assert World({"a": lambda frame: 100}, unmeshed=always, faint=always).follow(20).tracks == []


def test_a_face_without_landmarks_is_tracked_too():
    always = [("a", frame) for frame in range(20)]
    tracker = World({"a": lambda frame: 100 + 4 * frame}, unmeshed=always).follow(20)
    assert [states(tracker, track, 20) for track in tracker.tracks] == ["f" * 20]


def test_a_thing_that_close_looks_refuse_is_no_face():
    always = [("thing", frame) for frame in range(20)]
    assert World({"thing": lambda frame: 100}, unmeshed=always).follow(20).tracks == []


def test_a_face_without_landmarks_is_held_before_it_was_found():
    """A detector sees it later than people do."""
    always = [("a", frame) for frame in range(20)]
    late = World({"a": lambda frame: 100}, unseen=[("a", frame) for frame in range(8)], unmeshed=always).follow(14)
    assert [states(late, track, 14) for track in late.tracks] == ["......ll" + "f" * 6]


@pytest.mark.parametrize("rate", [10, 25, 60])
def test_spans_are_seconds_whatever_the_rate(rate):
    world = World({"a": lambda frame: 100})
    tracker = FaceTracker(world, world.embed, rate)
    spans = {"gap": 1.0, "hold": 0.2, "lookback": 0.4, "thorough": 0.4}
    assert all(abs(getattr(tracker, name) / rate - seconds) <= 0.5 / rate for name, seconds in spans.items())


def frames(name, *spans):
    return [(name, frame) for first, last in spans for frame in range(first, last)]


def test_the_head_mesh_follows_whom_the_attention_mesh_loses():
    """The face is painted instead of covered. For other heads the head mesh is not run, because it takes time."""
    world = World({"a": lambda frame: 100 + frame}, unmeshed=frames("a", (6, 14)), headed=frames("a", (0, 20)))
    tracker = world.follow(20)
    (track,) = tracker.tracks
    # once it is asked whether the face is none that was made up
    assert states(tracker, track, 20) == "f" * 20 and world.asked == 1 + 8
    faces = [track[frame].face for frame in range(20)]
    assert all(face.landmarks is not None for face in faces)
    assert [face.doubt > 0 for face in faces] == [6 <= frame < 14 for frame in range(20)]
    assert [track.smoothed(frame).face.doubt for frame in (0, 10, 19)] == pytest.approx([0, 0.04, 0], abs=1e-6)


def test_nothing_jumps_where_one_mesh_gives_way_to_the_other():
    """This also holds where the attention mesh fails in some frames."""
    blind = frames("a", (12, 14), (15, 22), (23, 24))
    world = World({"a": lambda frame: 100}, unmeshed=blind, headed=frames("a", (0, 37)), turned=lambda f: 4.5 * min(f, 36 - f))
    (track,) = world.follow(37).tracks
    seen = np.array([track[frame].face.landmarks[:4, 0].mean() for frame in range(37)])
    assert seen[0] == seen[36] == 100 and seen[14] == seen[18] == seen[22] == 102
    assert np.abs(np.diff(seen)).max() < 0.75
    assert world.asked < 1 + 21  # only of heads that are turned


def test_the_head_mesh_alone_is_believed_for_a_moment():
    """It also sees heads in things. Here somebody leaves, and it still sees somebody there, but the detector does not.

    As it may be right, the place is covered for a second.
    """
    world = World({"a": lambda frame: 100 if frame < 10 else None}, headed=frames("nobody", (10, 40)))
    (track,) = world.follow(40).tracks
    found = states(world, track, 40).rstrip(".")
    assert found == "f" * 14 + "l" * 10
    blurred = World({"a": lambda frame: 100}, unmeshed=frames("a", (10, 40)), headed=frames("a", (10, 40)))
    (track,) = blurred.follow(40).tracks
    assert states(blurred, track, 40) == "f" * 40 and track[39].face.landmarks is not None


def test_a_new_head_that_only_the_head_mesh_sees_has_landmarks_and_says_nothing_of_who_it_is():
    everywhere = frames("a", (0, 20))
    (track,) = World({"a": lambda frame: 100}, unmeshed=everywhere, headed=everywhere).follow(20).tracks
    assert all(track[frame].face.doubt > 0 for frame in range(20)) and not track.embeddings


@pytest.mark.parametrize("first", [0, 8])
def test_a_face_that_the_attention_mesh_makes_up_of_a_head_in_profile_is_not_believed(first):
    """It does not come into a track, and none begins with it."""
    everywhere, made_up = frames("a", (0, 20)), frames("a", (first, 12))
    seen = set(everywhere) - set(made_up)
    world = World({"a": lambda f: 100}, unmeshed=seen, headed=everywhere, made_up=made_up, turned=lambda frame: 80)
    tracker = world.follow(20)
    (track,) = tracker.tracks
    assert states(tracker, track, 20) == "f" * 20
    for frame in range(20):
        landmarks = track[frame].face.landmarks
        assert landmarks is None if frame < 12 and first == 0 else landmarks[10, 1] < landmarks[152, 1]


def test_a_faint_face_that_the_head_mesh_contradicts_is_covered():
    """It may be real, because the attention mesh is sure of it."""
    everywhere = frames("a", (0, 20))
    world = World({"a": lambda f: 100}, faint=everywhere, headed=everywhere, made_up=everywhere, turned=lambda frame: 80)
    tracker = world.follow(20)
    (track,) = tracker.tracks
    assert states(tracker, track, 20) == "f" * 20 and all(track[frame].face.landmarks is None for frame in range(20))


@pytest.mark.parametrize(("right", "believed"), [(0, False), (15, False), (25, True)])
def test_a_contradicted_face_in_a_known_head_is_made_up_of_it(right, believed):
    world = World({"a": lambda frame: 100})
    tracker, known = FaceTracker(world, world.embed, RATE), Face(np.float32([80, 40, 120, 80]), doubt=0.04)
    assert tracker._is_sure(Face(known.box + np.float32([right, 0, right, 0]), 0.25, presence=1.0), [known]) == believed
    assert not tracker._is_sure(Face(known.box, 0.25), [])


def test_a_head_mesh_that_knows_nothing_contradicts_nobody():
    everywhere = frames("a", (0, 10))
    world = World({"a": lambda f: 100}, headed=everywhere, made_up=everywhere, turned=lambda frame: 80, doubt=0.08)
    (track,) = world.follow(10).tracks
    assert all(track[frame].face.landmarks is not None for frame in range(10))


def test_a_turned_face_that_moves_fast_keeps_its_landmarks():
    """If the head mesh sees nothing, the face is compared with itself in the frame before."""
    world = World({"a": lambda frame: 100 + 12 * frame}, unseen=frames("a", (3, 9)), turned=lambda frame: 60)
    tracker = world.follow(12)
    (track,) = tracker.tracks
    assert states(tracker, track, 12) == "f" * 12 and all(track[frame].face.landmarks is not None for frame in range(12))


def test_a_made_up_face_does_not_take_the_place_of_a_head_that_the_detector_sees_no_longer():
    headed, made_up = frames("a", (0, 20)), frames("a", (9, 20))
    world = World({"a": lambda f: 100}, unseen=frames("a", (5, 20)), unmeshed=frames("a", (0, 9)), headed=headed, made_up=made_up,
                  turned=lambda frame: 80)  # fmt: skip
    (track,) = world.follow(20).tracks
    assert states(world, track, 20) == "f" * 9 + "l" * 10 + "."


@pytest.mark.parametrize(("doubt", "placed"), [(0, True), (0.04, False)])
def test_a_face_beside_a_head_in_profile_is_placed_only_if_both_meshes_see_it(doubt, placed):
    """The attention mesh makes up faces of parts of such heads, where the head mesh sees none."""
    world = World({"a": lambda frame: 100})
    tracker, known = FaceTracker(world, world.embed, RATE), Face(np.float32([110, 40, 150, 80]), doubt=doubt)
    face = tracker._looked_at(world.picture(0), Face(np.float32([80, 40, 120, 80])), [known])
    assert (face.landmarks is not None) == placed


def test_a_thing_in_which_only_the_head_mesh_sees_a_head_is_none():
    everywhere = frames("thing", (0, 20))
    assert World({"thing": lambda frame: 100}, unmeshed=everywhere, headed=everywhere).follow(20).tracks == []


@pytest.mark.parametrize("degrees", [0, 62])
def test_of_heads_turned_far_away_no_embedding_is_kept(degrees):
    """The recogniser gives about the same embedding for everybody there."""
    (track,) = World({"a": lambda frame: 100}, turned=lambda frame: degrees).follow(10).tracks
    assert bool(track.embeddings) == (degrees == 0)


def test_somebody_who_turns_away_unseen_is_found_again_by_place():
    gone, away = frames("a", (8, 11)), frames("a", (8, 20))
    tracker = World({"a": lambda frame: 100}, unseen=gone, unmeshed=away, headed=frames("a", (11, 20))).follow(20)
    (track,) = tracker.tracks
    assert states(tracker, track, 20) == "f" * 8 + "iii" + "f" * 9
    assert track[9].face.doubt > 0  # between a face seen exactly and one that is not
    assert track.likeness(np.eye(1)[0]) == pytest.approx(1)


def test_of_two_heads_that_look_aside_and_cross_the_one_behind_is_bridged():
    people = {"front": lambda frame: 60 + 8 * frame, "behind": lambda frame: 340 - 8 * frame}
    everywhere = [entry for name in people for entry in frames(name, (0, 36))]
    tracker = World(people, unmeshed=everywhere, headed=everywhere).follow(36)
    assert len(tracker.tracks) == 2
    for track, name in zip(sorted(tracker.tracks, key=lambda track: track[0].face.box[0]), people, strict=True):
        assert all(frame in track for frame in range(36))
        assert track[35].face.box[:2].mean() == pytest.approx((people[name](35) - 20 + 40) / 2)


def test_nobody_is_behind_for_want_of_an_embedding():
    """A person who looked aside all the time has no embedding; then the face that jumped farther is behind."""
    world = World({"a": lambda frame: 100, "b": lambda frame: None})
    tracker, tracks = FaceTracker(world, world.embed, RATE), [Track(number, Spool()) for number in range(2)]
    for track, place in zip(tracks, (112, 100), strict=True):
        track.put(0, Face(np.float32([place - 20, 40, place + 20, 80]), **world.marks([place, 60], world.picture(0))), "found")
    tracks[0].add_embedding(np.eye(2)[1])
    followed = dict.fromkeys(tracks, tracks[1].last)
    assert tracker._hidden(world.picture(0), followed, *tracks) is tracks[0]


def test_many_people():
    tracker = World({str(number): lambda frame, x=30 + 60 * number: x for number in range(6)}).follow(8)
    assert [states(tracker, track, 8) for track in tracker.tracks] == ["f" * 8] * 6


def test_what_is_forgotten_is_gone_and_its_place_used_again():
    tracker = World({"a": lambda frame: 100}).follow(5)
    world, (track,) = tracker.analyser, tracker.tracks
    for frame in range(5, 200):
        tracker.update(world.picture(frame))
        tracker.forget(frame)
    assert len(track) < 20 and len(tracker._spool._places) < 25
    assert track.smoothed(199).state == "found"


def test_smoothing_does_not_lag_and_stills_the_trembling():
    rng = np.random.default_rng(0)
    track, shaken = Track(0, Spool()), []
    for frame in range(60):
        centre = 100 + 0.02 * (frame - 30) ** 2
        landmarks = FACE + np.float32([centre, 60, 0]) + rng.normal(0, 0.5, FACE.shape).astype(np.float32)
        shaken.append(landmarks)
        track.put(frame, Face(np.zeros(4, np.float32), landmarks=landmarks, iris=np.zeros((2, 5, 2), np.float32)), "found")
    errors, raw = [], []
    for frame in range(5, 55):
        true = FACE + np.float32([100 + 0.02 * (frame - 30) ** 2, 60, 0])
        errors.append(track.smoothed(frame).face.landmarks - true)
        raw.append(shaken[frame] - true)
    assert np.std(errors) < 0.75 * np.std(raw)
    assert abs(np.mean(errors)) < 0.01


def test_a_small_face_that_trembles_as_a_whole_is_stilled():
    """It trembles by half a pixel, which is much for a face of 20 pixels, but not a jerk."""
    rng = np.random.default_rng(0)
    small = FACE * np.float32(20 / SIDE) + 60
    track, trembling = Track(0, Spool()), rng.normal(0, 0.4, (60, 1, 2)).astype(np.float32)
    for frame, shift in enumerate(trembling):
        landmarks = small + np.pad(shift, ((0, 0), (0, 1)))
        track.put(frame, Face(np.zeros(4, np.float32), landmarks=landmarks, iris=np.zeros((2, 5, 2), np.float32)), "found")
    errors = [track.smoothed(frame).face.landmarks[:, :2] - small[:, :2] for frame in range(5, 55)]
    assert np.std(errors) < 0.75 * np.std(trembling[5:55])


def test_a_face_that_moves_by_jerks_stays_where_it_is_seen():
    """Every third frame is repeated, as in converted videos; a parabola would put the face beside its place."""
    track = Track(0, Spool())
    for frame in range(30):
        landmarks = FACE + np.float32([100 + 12 * (frame - frame // 3), 60, 0])
        track.put(frame, Face(np.zeros(4, np.float32), landmarks=landmarks, iris=np.zeros((2, 5, 2), np.float32)), "found")
    for frame in range(5, 25):
        smoothed, seen = track.smoothed(frame).face.landmarks, track[frame].face.landmarks
        assert np.abs(smoothed - seen).max() < 0.02 * np.ptp(FACE[:, :2], axis=0).mean()


def test_faces_come_back_from_disk_as_they_went():
    spool = Spool()
    faces = [Face(np.arange(4, dtype=np.float32) + number, landmarks=FACE + number, iris=np.full((2, 5, 2), number, np.float32))
             for number in range(3)]  # fmt: skip
    rows = [spool.store(face) for face in faces] + [spool.store(Face(np.ones(4, np.float32)))]
    for row, face in zip(rows, faces, strict=False):
        loaded = spool.load(row)
        assert (loaded.box == face.box).all() and (loaded.landmarks == face.landmarks).all() and (loaded.iris == face.iris).all()
    assert spool.load(rows[3]).landmarks is None
    spool.release(rows[1])
    assert spool.store(faces[0]) == rows[1]
