"""Clips of the demo photo under a moving camera, unchanged and covered; and tracks from made-up detectors."""

from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from diffdeid.errors import DiffDeIDError, NoFaceFoundError, VideoError
from diffdeid.evaluation.clips import evaluate_clip, follow
from diffdeid.evaluation.examiner import FILTER, ExaminedFace
from diffdeid.evaluation.structures import Evaluation
from diffdeid.geometry.cover import cover
from diffdeid.io.images import read_image
from diffdeid.io.video_reader import VideoReader
from diffdeid.structures import Face

SIZE, LENGTH = 320, 6


def write_clip(path: Path, frames: list[np.ndarray], crf: int = 18, rotation: int = 0) -> Path:
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        clip.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def frames(astronaut) -> list[np.ndarray]:
    """A slow pan and zoom over the face."""
    photo = np.asarray(read_image(astronaut).image)
    views = [np.float64([[1 + 0.01 * k, 0, -50 - 4 * k], [0, 1 + 0.01 * k, -2 * k]]) for k in range(LENGTH)]
    return [cv2.warpAffine(photo, view, (SIZE, SIZE)) for view in views]


@pytest.fixture(scope="module")
def folder(frames, panel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "real.mp4", frames)
    write_clip(folder / "again.mp4", frames, crf=30)
    face = panel.examiner.analyser(frames[0])[0]
    write_clip(folder / "covered.mp4", [cover(frame, [face], "solid") for frame in frames])
    return folder


def by_name(evaluation: Evaluation) -> dict:
    metrics = {metric.name: metric for metric in evaluation.metrics}
    assert len(metrics) == len(evaluation.metrics)
    return metrics


def test_a_clip_against_itself(folder, panel):
    evaluation = evaluate_clip(folder / "real.mp4", folder / "real.mp4", panel.examiner, every=2)
    found = by_name(evaluation)
    assert evaluation.method == "real.mp4"
    for recogniser in panel.examiner.recognisers:
        likeness = found[f"source similarity, max [{recogniser}]"]
        assert likeness.value == pytest.approx(1, abs=1e-5) and likeness.alarm
        consistency = found[f"identity consistency, mean [{recogniser}]"].value
        assert 0.85 < consistency == found[f"identity consistency of the source, mean [{recogniser}]"].value
        assert found[f"identity switches [{recogniser}]"].value == 0
    untouched = found["faces left as they were"]
    assert untouched.value == 1 and untouched.alarm
    assert found["no face found in its place"].value == 0
    assert (found["frames"].value, found["faces in frames"].value, found["tracks"].value) == (3, 3, 1)
    for name in ("EXP cosine", "POSE cosine", "GAZE cosine", "landmark correlation", "warping error in parts of the source's"):
        assert found[name].value == pytest.approx(1, abs=1e-5)
    assert found["EXP"].value == found["GAZE"].value == 0 < found["warping error"].value < 0.02

    first, second, _ = evaluation.frames
    assert (first["frame"], first["time"], first["track"]) == (0, 0, 0) and second["time"] == pytest.approx(2 / 25)
    assert np.isnan(first["warping error"]) and np.isnan(first["consecutive cosine [filter]"])
    assert second["unprocessed"] == second["found"] == 1 and second["consecutive cosine [filter]"] > 0.85
    assert first.keys() == second.keys() >= {"EXP", "POSE", "GAZE", "source similarity [faceplugin]"}


def test_compression_alone_is_no_deidentification(folder, panel):
    found = by_name(evaluate_clip(folder / "real.mp4", folder / "again.mp4", panel.examiner, every=5))
    assert found["faces left as they were"].value == 1 and found["faces left as they were"].alarm
    for recogniser in panel.examiner.recognisers:
        likeness = found[f"source similarity, max [{recogniser}]"]
        assert 0.7 < likeness.value < 0.999 and likeness.alarm


def test_a_covered_face_gives_nobody_away(folder, panel):
    evaluation = evaluate_clip(folder / "real.mp4", folder / "covered.mp4", panel.examiner, every=2)
    found = by_name(evaluation)
    assert [row["frame"] for row in evaluation.frames] == [0, 2, 4]
    assert not any(metric.alarm for metric in evaluation.metrics)
    assert found["faces left as they were"].value == 0
    assert found["no face found in its place"].value == 1
    for name in ("EXP", "EXP cosine", "landmark correlation", "identity switches [filter]", "identity consistency, min [filter]"):
        assert np.isnan(found[name].value)
    assert found["warping error"].value < found["warping error of the source"].value  # nothing is as still as black


def test_a_clip_without_faces(tmp_path, panel):
    path = write_clip(tmp_path / "grey.mp4", [np.full((64, 64, 3), 128, np.uint8)] * 2)
    with pytest.raises(NoFaceFoundError, match="grey.mp4"):
        evaluate_clip(path, path, panel.examiner)


def test_clips_that_do_not_fit_are_refused_before_faces_are_looked_for(folder, frames, tmp_path):
    short = write_clip(tmp_path / "short.mp4", frames[:-2])
    with pytest.raises(DiffDeIDError, match=r"short.mp4` has 4 frames and .*real.mp4` 6.*same frames"):
        evaluate_clip(folder / "real.mp4", short, None)
    small = write_clip(tmp_path / "small.mp4", [frame[:100] for frame in frames])
    with pytest.raises(DiffDeIDError, match=r"small.mp4` has frames of \[\(320, 100\)\] .*one size"):
        evaluate_clip(folder / "real.mp4", small, None)
    with pytest.raises(ValueError, match="every"):
        evaluate_clip(folder / "real.mp4", small, None, every=0)


def test_one_frame_too_few_is_no_other_clip(frames, tmp_path):
    """Some encoders drop the last one."""
    clips = write_clip(tmp_path / "a.mp4", frames), write_clip(tmp_path / "b.mp4", frames[:-1])
    nobody = SimpleNamespace(analyser=lambda picture: [], recognisers=())
    with pytest.raises(NoFaceFoundError):
        evaluate_clip(*clips, nobody)


@pytest.mark.parametrize("content", [b"", b"no clip at all" * 50, None])
def test_files_that_are_no_clips(folder, tmp_path, content):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match="broken.mp4"):
        evaluate_clip(folder / "real.mp4", path, None)


def test_a_file_with_sound_alone(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader(path)


def test_frames_are_rgb_and_in_order(folder, frames):
    read = [frame.picture for frame in VideoReader(folder / "real.mp4")]
    assert [frame.dtype for frame in read] == [np.uint8] * LENGTH
    assert all(np.abs(frame - other.astype(float)).mean() < 5 for frame, other in zip(read, frames, strict=True))


class Detector:
    """An examiner of made-up faces: each is an x coordinate and a person; `hidden` ones are missed unless looked at."""

    def __init__(self):
        self.faces, self.hidden = [], []

    def analyser(self, picture, faces=None):
        if faces is None:
            return [self._face(x, person) for x, person in self.faces]
        near = [(x, person) for x, person in self.faces + self.hidden if abs(x - faces[0].box[0]) < 10]
        return [self._face(*near[0])] if near else faces

    def describe(self, picture, face):
        return ExaminedFace(face, True, {FILTER: np.eye(8)[round(face.score)]}, *[None] * 4)

    @staticmethod
    def _face(x, person):
        box = np.array([x, 0, x + 40, 40], np.float32)
        return Face(box, person, None, np.array([[x, 0, 0], [x + 40, 40, 0]], np.float32), np.zeros((2, 5, 2)))


def tracks_of(*moments: list[tuple[int, int]], hidden: dict[int, list[tuple[int, int]]] | None = None) -> list[list[int]]:
    """The tracks of the faces of each frame, in the order of x."""
    examiner, tracks, numbers = Detector(), [], []
    for number, faces in enumerate(moments):
        examiner.faces, examiner.hidden = faces, (hidden or {}).get(number, [])
        present = follow(tracks, None, examiner.analyser(None), number, examiner)
        numbers.append([track.number for track in sorted(present, key=lambda track: track.sources[-1].face.box[0])])
    return numbers


def test_moving_faces_keep_their_tracks():
    assert tracks_of([(0, 1), (100, 2)], [(5, 1), (95, 2)], [(95, 2), (8, 1)]) == [[0, 1]] * 3


def test_people_who_change_places_are_told_apart():
    assert tracks_of([(0, 1), (100, 2)], [(0, 2), (100, 1)]) == [[0, 1], [1, 0]]


def test_a_person_who_comes_back_elsewhere_is_recognised():
    assert tracks_of([(0, 1)], [], [], [(200, 1), (0, 2)]) == [[0], [], [], [1, 0]]


def test_another_person_at_the_same_place_after_a_cut_is_another_track():
    assert tracks_of([(0, 1)], [(0, 2)], [(0, 1)]) == [[0], [1], [0]]


def test_a_face_that_the_detector_misses_in_one_frame_is_looked_for():
    assert tracks_of([(0, 1)], [], [(8, 1)], hidden={1: [(4, 1)]}) == [[0], [0], [0]]
    assert tracks_of([(0, 1)], [], hidden={1: [(4, 2)]}) == [[0], []]
