import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from diffdeid.errors import AssetNotFoundError
from diffdeid.geometry.faces import merge
from diffdeid.models.face_analyser import FaceAnalyserModel, _mapped, _turned_back
from diffdeid.structures import Face
from tests.heads import profile_picture

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights/diffdeid/face_analyser"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="weights/diffdeid is not here")

EYES = np.array([[203.7, 101.1], [246.6, 103.4]])  # irises of the astronaut, read off the picture
BOX = np.array([178, 57, 270, 175])


class AnalyserPipeline(DiffusionPipeline):
    def __init__(self, face_analyser: FaceAnalyserModel):
        super().__init__()
        self.register_modules(face_analyser=face_analyser)


@pytest.fixture(scope="module")
def analyser() -> FaceAnalyserModel:
    return FaceAnalyserModel.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(ROOT / "tests/assets/astronaut.png")), cv2.COLOR_BGR2RGB)


def assert_is_the_astronaut(face: Face, to_picture=lambda points: points, tolerance: float = 2.5) -> None:
    """Check that each iris lies in its own eye, and that the landmarks fill the box."""
    np.testing.assert_allclose(face.iris[:, 0], to_picture(EYES), atol=tolerance)
    np.testing.assert_allclose(face.keypoints[:2], to_picture(EYES), atol=4 * tolerance)
    corners = np.sort(to_picture(BOX.reshape(2, 2).astype(float)), axis=0).reshape(4)
    overlap = np.prod((np.minimum(face.box[2:], corners[2:]) - np.maximum(face.box[:2], corners[:2])).clip(0))
    assert overlap > 0.7 * np.prod(corners[2:] - corners[:2])
    assert face.landmarks.shape == (468, 3) and face.presence > 0.9


def test_upright_face(analyser, astronaut):
    (face,) = analyser(astronaut)
    assert_is_the_astronaut(face)
    assert face.landmarks[1, 2] < face.landmarks[234, 2]  # the nose is nearer than the ear


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_face_on_its_side_or_upside_down(analyser, astronaut, quarter):
    def turned(points):
        for _ in range(quarter):
            points = np.stack([points[:, 1], 512 - points[:, 0]], axis=1)
        return points

    (face,) = analyser(np.rot90(astronaut, quarter).copy())
    assert_is_the_astronaut(face, turned)


@pytest.mark.parametrize("angle", [-40, 25, 70])
def test_tilted_face(analyser, astronaut, angle):
    matrix = cv2.getRotationMatrix2D((225, 115), angle, 1)
    (face,) = analyser(cv2.warpAffine(astronaut, matrix, (512, 512)))
    np.testing.assert_allclose(face.iris[:, 0], EYES @ matrix[:, :2].T + matrix[:, 2], atol=3)


@pytest.mark.parametrize("scale", [0.3, 2.5])
def test_scaled_face(analyser, astronaut, scale):
    (face,) = analyser(cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    assert_is_the_astronaut(face, lambda points: points * scale, tolerance=max(1.5, 2.5 * scale))


@pytest.mark.parametrize(("left", "top", "right", "bottom"), [(200, 0, 512, 512), (0, 0, 250, 512), (0, 85, 512, 512)])
def test_face_cut_off_by_the_border_is_found(analyser, astronaut, left, top, right, bottom):
    (face,) = analyser(astronaut[top:bottom, left:right].copy())
    middle = (face.box[:2] + face.box[2:]) / 2 + (left, top)
    assert np.abs(middle - (BOX[:2] + BOX[2:]) / 2).max() < 30


def test_overlapping_faces_are_both_found(analyser, astronaut):
    pair = np.concatenate([astronaut[20:220, 100:262], astronaut[20:220, 190:350]], axis=1)  # cheek to cheek, both cut
    left, right = sorted(analyser(pair), key=lambda face: face.box[0])
    assert left.box[2] > right.box[0]
    # The outer eyes; the inner ones are cut.
    assert np.abs(left.iris[0, 0] - (EYES[0] - (100, 20))).max() < 4
    assert np.abs(right.iris[1, 0] - (EYES[1] - (28, 20))).max() < 4


def test_every_face_of_a_crowd_is_found(analyser, astronaut):
    tiles = np.tile(cv2.resize(astronaut[:256, 96:352], (128, 128), interpolation=cv2.INTER_AREA), (2, 3, 1))
    faces = analyser(tiles)
    assert len(faces) == 6 and all(face.landmarks is not None for face in faces)


def test_small_face_in_a_large_photo(analyser, astronaut):
    photo = np.random.default_rng(0).integers(60, 200, (30, 40, 3), dtype=np.uint8)
    photo = cv2.resize(photo, (4000, 3000), interpolation=cv2.INTER_CUBIC)
    scale = 30 / (BOX[3] - BOX[1])
    small = cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    photo[2000 : 2000 + len(small), 3000 : 3000 + len(small)] = small
    (face,) = analyser(photo)
    assert_is_the_astronaut(face, lambda points: points * scale + (3000, 2000))


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (1, 3000), (300, 400)])
def test_no_face_in_an_empty_picture(analyser, size):
    assert analyser(np.full((*size, 3), 128, np.uint8)) == []


def test_no_face_in_a_space_suit(analyser, astronaut):
    assert analyser(astronaut[200:].copy()) == []


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), None])
def test_anything_but_rgb_bytes_is_refused(analyser, image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        analyser(image)


@pytest.mark.parametrize("quarter", range(4))
def test_a_given_box_is_completed(analyser, astronaut, quarter):
    (found,) = analyser(np.rot90(astronaut, quarter).copy())
    (face,) = analyser(np.rot90(astronaut, quarter).copy(), faces=[Face(found.box)])
    np.testing.assert_allclose(face.landmarks, found.landmarks, atol=2)
    np.testing.assert_allclose(face.keypoints, found.keypoints, atol=8)
    np.testing.assert_array_equal(face.box, found.box)


def test_what_a_given_face_has_is_kept(analyser, astronaut):
    (found,) = analyser(astronaut)
    landmarks = found.landmarks + 0.5
    (face,) = analyser(astronaut, faces=[replace(found, landmarks=landmarks, iris=None, keypoints=None)])
    assert face.landmarks is landmarks
    assert face.iris.shape == (2, 5, 2) and face.keypoints.shape == (5, 2)
    assert analyser(astronaut, faces=[]) == []


def test_a_box_without_a_face_stays_without_landmarks(analyser, astronaut):
    (face,) = analyser(astronaut, faces=[Face(np.array([330, 380, 420, 480], np.float32))])
    assert face.landmarks is None and face.iris is None


@pytest.mark.parametrize("angle", [-40, 40])
def test_keypoints_that_are_askew_do_no_harm(analyser, astronaut, angle):
    (found,) = analyser(astronaut)
    middle = (found.box[:2] + found.box[2:]) / 2
    matrix = cv2.getRotationMatrix2D(middle.tolist(), angle, 1)
    askew = (found.keypoints @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    (face,) = analyser(astronaut, faces=[Face(found.box, keypoints=askew)])
    np.testing.assert_allclose(face.landmarks, found.landmarks, atol=3)


def test_two_looks_are_steadier_than_one(analyser, astronaut, monkeypatch):
    def spread() -> tuple[float, float]:
        """How far landmarks and irises spread when the picture moves by parts of a pixel."""
        marks = []
        for x, y in np.random.default_rng(0).uniform(0, 2, (12, 2)):
            moved = cv2.warpAffine(astronaut, np.float32([[1, 0, x], [0, 1, y]]), (512, 512), borderMode=cv2.BORDER_REPLICATE)
            (face,) = analyser(moved)
            marks.append(np.concatenate([face.landmarks[:, :2], face.iris[:, 0]]) - [x, y])
        deviation = np.std(marks, axis=0)
        return deviation[:468].mean(), deviation[468:].mean()

    two = spread()
    monkeypatch.setattr("diffdeid.models.face_analyser.LOOKS", (0.0,))
    assert np.less(two, spread()).all()


def test_a_face_that_one_look_does_not_see_has_no_landmarks(analyser, astronaut, monkeypatch):
    run = analyser.run

    def doubtful(graph: str, crops: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        seen = run(graph, crops, outputs)
        if graph == "attention_mesh":
            seen[1][0] = 0.3
        return seen

    monkeypatch.setattr(analyser, "run", doubtful)
    (face,) = analyser(astronaut)
    assert face.landmarks is None and face.presence == pytest.approx(0.3)


def test_a_face_of_which_nothing_shows_has_no_landmarks(analyser, astronaut):
    """The network is sure that a plain oval is a face, but finds its features in other places in each crop."""
    (found,) = analyser(astronaut)
    centre, size = (found.box[:2] + found.box[2:]) / 2, found.box[2:] - found.box[:2]
    hidden = astronaut.copy()
    cv2.ellipse(hidden, centre.round().astype(int).tolist(), (0.6 * size).astype(int).tolist(), 0, 0, 360, (200, 160, 140), -1)
    (face,) = analyser.find_again([hidden], [found.landmarks])
    assert face.presence > 0.9 and face.landmarks is None and face.iris is None


@pytest.fixture(scope="module")
def profile() -> tuple[np.ndarray, np.ndarray]:
    """A rendered head that looks to the side, 300 pixels large in a picture of 512, and its landmarks."""
    return profile_picture(512, 100)


def test_profiles_are_placed_by_the_head_mesh(analyser, profile):
    picture, marks = profile
    box = np.concatenate([marks.min(0), marks.max(0)]).astype(np.float32)
    (blind,), (face,) = (analyser(picture, [Face(box)], any_pose=any_pose) for any_pose in (False, True))
    assert blind.landmarks is None and blind.doubt == 0 < face.doubt < 0.08
    assert np.linalg.norm(face.landmarks[:, :2] - marks, axis=1).mean() < 0.06 * np.ptp(marks, axis=0).max()
    np.testing.assert_allclose(face.box, box)
    assert face.iris.shape == (2, 5, 2) and face.keypoints.shape == (5, 2)


def test_a_frontal_face_is_left_to_the_attention_mesh(analyser, astronaut, monkeypatch):
    expected = analyser(astronaut)[0].landmarks
    monkeypatch.setattr(FaceAnalyserModel, "_look_at_heads", lambda _, images, matrices: [1 / 0 for _ in images])
    np.testing.assert_array_equal(analyser(astronaut, any_pose=True)[0].landmarks, expected)


def test_the_head_mesh_sees_frontal_faces_about_where_the_attention_mesh_does(analyser, astronaut):
    (found,) = analyser(astronaut)
    (roughly,) = analyser.find_in_any_pose([astronaut], [found.landmarks])
    distance = np.linalg.norm((roughly.landmarks - found.landmarks)[:, :2], axis=1).mean()
    assert 0 < distance < 0.05 * np.ptp(found.landmarks, axis=0).max()


@pytest.mark.parametrize("shift", [-0.7, -0.6, 0.6, 0.7])
def test_a_face_beside_another_one_does_not_get_its_landmarks(analyser, astronaut, shift):
    """It would be taken for the same face, and be neither replaced nor covered."""
    (found,) = analyser(astronaut)
    by = np.float32([shift * 92, 0])
    beside = replace(found, box=found.box + np.tile(by, 2), keypoints=found.keypoints + by, landmarks=None, iris=None)
    faces = analyser(astronaut, [replace(found, landmarks=None), beside], any_pose=True)
    assert faces[0].landmarks is not None and len(merge(faces)) == 2


def test_what_is_no_head_is_no_head_to_the_head_mesh(analyser, astronaut, profile):
    upside_down = np.ascontiguousarray(profile[0][::-1])
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    for picture in (upside_down, noise, np.zeros_like(noise)):
        assert analyser.find_in_any_pose([picture], [profile[1]])[0].landmarks is None


def test_same_picture_gives_the_same_bytes(analyser, astronaut):
    (first,), (second,) = analyser(astronaut), analyser(astronaut)
    for name in ("box", "keypoints", "landmarks", "iris"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_component_survives_a_pipeline(analyser, astronaut, tmp_path):
    AnalyserPipeline(analyser).save_pretrained(tmp_path)
    pipeline = AnalyserPipeline.from_pretrained(tmp_path, dtype=torch.float16).to("cpu", torch.bfloat16)
    assert pipeline.face_analyser.config.coarse_pixels == analyser.config.coarse_pixels
    np.testing.assert_array_equal(pipeline.face_analyser(astronaut)[0].landmarks, analyser(astronaut)[0].landmarks)


@pytest.mark.parametrize("name", ["config.json", "attention_mesh.onnx"])
def test_missing_files_are_named(tmp_path, name):
    shutil.copytree(WEIGHTS, tmp_path / "analyser")
    (tmp_path / "analyser" / name).unlink()
    with pytest.raises(AssetNotFoundError, match=name):
        FaceAnalyserModel.from_pretrained(tmp_path / "analyser")


@pytest.mark.parametrize("name", ["centerface", "attention_mesh"])
def test_a_broken_graph_is_an_error_and_no_picture_without_faces(tmp_path, astronaut, name):
    """Graphs are prepared on their first run, so the error comes there."""
    shutil.copytree(WEIGHTS, tmp_path / "analyser")
    (tmp_path / "analyser" / f"{name}.onnx").write_bytes(b"no graph")
    with pytest.raises(Exception, match="INVALID_PROTOBUF"):
        FaceAnalyserModel.from_pretrained(tmp_path / "analyser")(astronaut)


def test_analyser_without_graphs_says_so(astronaut):
    with pytest.raises(AssetNotFoundError, match="from_pretrained"):
        FaceAnalyserModel()(astronaut)


@pytest.mark.slow
def test_twelve_megapixels_take_about_a_second(analyser, astronaut):
    photo = cv2.resize(astronaut, (4000, 3000))
    start = time.perf_counter()
    analyser(photo)
    assert time.perf_counter() - start < 3  # 0.8 s on two idle cores


def test_graphs_run_on_a_gpu_where_onnxruntime_can(analyser, astronaut, monkeypatch):
    """The GPU may be named in any way that `Module.to` takes; otherwise they run on the CPU."""
    opened = []

    class Session:
        def __init__(self, graph, options, providers):
            opened.append(providers)

        def get_inputs(self):
            return [SimpleNamespace(name="x")]

        def run(self, outputs, feeds):
            return outputs

    monkeypatch.setattr("diffdeid.models.onnx_model.onnxruntime.InferenceSession", Session)
    cpu, cuda = "CPUExecutionProvider", ("CUDAExecutionProvider", {"device_id": 1, "cudnn_conv_algo_search": "HEURISTIC"})
    for available, expected in (([cpu], [cpu]), (["CUDAExecutionProvider", cpu], [cuda, cpu])):
        monkeypatch.setattr("diffdeid.models.onnx_model.onnxruntime.get_available_providers", lambda given=available: given)
        moved = FaceAnalyserModel.from_pretrained(ROOT / "weights/diffdeid", subfolder="face_analyser")
        opened.clear()
        assert moved.to(torch.float16) is moved and moved.to("cpu") is moved and not opened  # before the first run
        for _ in range(2):
            moved.run("head_mesh", None, [])
        assert moved.to(dtype=torch.bfloat16, device="cuda:1") is moved and moved.device == torch.device("cuda:1")
        moved.run("head_mesh", None, [])
        moved.to(torch.device("cpu"), torch.float32).run("head_mesh", None, [])
        assert opened == ([[cpu]] if expected == [cpu] else [[cpu], expected, [cpu]]) and moved.device.type == "cpu"


@pytest.mark.parametrize("quarters", range(4))
def test_what_the_detector_doubts_is_looked_at_more_closely(analyser, astronaut, quarters):
    face, thing = Face(np.float32([178, 57, 270, 175]), 0.4), Face(np.float32([300, 300, 380, 420]), 0.4)
    turned = np.ascontiguousarray(np.rot90(astronaut, quarters))
    back = np.linalg.inv(_turned_back(quarters, *astronaut.shape[:2]))
    boxes = [_mapped(replace(one, keypoints=np.zeros((5, 2))), back).box for one in (face, thing)]
    kept = analyser.confirmed(turned, [Face(box, 0.4) for box in boxes])
    assert [one.box.tolist() for one in kept] == [boxes[0].tolist()]


def test_faces_that_are_sure_or_cut_stay(analyser, astronaut):
    thing = Face(np.float32([300, 300, 380, 420]), 0.4)
    faces = [replace(thing, score=0.8), thing, Face(np.float32([-20, 300, 60, 420]), 0.4)]
    kept = analyser.confirmed(astronaut, faces)
    assert [id(one) for one in kept] == [id(faces[0]), id(faces[2])]
    assert analyser.confirmed(astronaut, []) == []


def test_a_lower_threshold_is_also_enough_for_the_close_looks(analyser, astronaut, monkeypatch):
    monkeypatch.setattr(FaceAnalyserModel, "close_score", lambda *_: 0.2)
    doubtful = Face(np.float32([300, 300, 380, 420]), 0.25)
    assert analyser.confirmed(astronaut, [doubtful]) == [] and analyser.confirmed(astronaut, [doubtful], 0.5) == []
    assert len(analyser.confirmed(astronaut, [doubtful], 0.1)) == 1


def test_a_face_in_something_that_is_none_is_kept(analyser, astronaut, monkeypatch):
    """Wrong detections are refused before they can absorb a face inside of them."""
    thing, face = Face(np.float32([100, 100, 300, 300]), 0.55), Face(np.float32([150, 150, 200, 200]), 0.45)
    monkeypatch.setattr(FaceAnalyserModel, "detect", lambda *_: [thing, face])
    monkeypatch.setattr(FaceAnalyserModel, "_complete", lambda _, image, faces, any_pose: faces)
    monkeypatch.setattr(FaceAnalyserModel, "close_score", lambda _, image, one: 0.1 if one is thing else 0.9)
    assert [id(one) for one in analyser(astronaut)] == [id(face)]


def test_small_faces_in_a_crowd_are_found(analyser, astronaut):
    """If the detector finds some, it searches an enlarged picture as well."""
    rng = np.random.default_rng(0)
    crowd = rng.normal(120, 6, (600, 900, 3)).clip(0, 255).astype(np.uint8)
    for number in range(60):
        height = rng.integers(24, 34)  # of heads: faces of 13 to 19 pixels wide
        head = cv2.resize(astronaut[32:190, 153:295], (height * 142 // 158, height), interpolation=cv2.INTER_AREA)
        top, left = 15 + 95 * (number // 10), 20 + 88 * (number % 10)
        crowd[top : top + height, left : left + head.shape[1]] = head
    assert len(analyser.detect(crowd)) >= 55


def test_given_faces_are_taken_as_faces(analyser, astronaut):
    (kept,) = analyser(astronaut, [Face(np.float32([300, 300, 380, 420]), 0.1)])
    assert kept.landmarks is None
