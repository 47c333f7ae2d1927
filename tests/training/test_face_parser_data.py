"""Occluders and made-up crops, tried on the mean head with flat colours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffdeid.geometry.align import ffhq_matrix
from diffdeid.geometry.camera import project, to_camera
from diffdeid.models.face_parser import BACKGROUND, FACE, FRONT, GLASSES
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.training.face_parser_data import (
    CROP_FACTOR,
    KINDS,
    UNKNOWN,
    LabelledFace,
    OccludedFaces,
    jitter,
    photograph,
    place,
    to_classes,
)
from diffdeid.training.hand_pictures import CHANNELS, Hand, render_hand
from diffdeid.training.occluders import Layer, cast_shadow, draw_cap, draw_glasses, mark_skin, paste

WEIGHTS = Path(__file__).parents[2] / "weights" / "diffdeid"
SIZE = 128


@pytest.fixture(scope="module")
def landmarks() -> np.ndarray:
    head = MorphableModel.from_pretrained(WEIGHTS, subfolder="morphable_model").float()
    points = head.at_landmarks(head.mean)[None]
    return project(to_camera(points, torch.zeros(1, 6)), 144)[0, :, :2].numpy()


def labelled_face(landmarks: np.ndarray, seed: int = 0) -> LabelledFace:
    """Skin within an ellipse around the landmarks, hair above, background beside."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(90, 110, (144, 144, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:144, :144]
    centre, spread = landmarks.mean(0), landmarks.std(0)
    skin = ((columns - centre[0]) / spread[0]) ** 2 + ((rows - centre[1]) / spread[1]) ** 2 < 4.5
    classes = np.where(skin, FACE, np.where(rows < centre[1] - spread[1], FRONT, BACKGROUND)).astype(np.uint8)
    picture[skin] = (200, 150, 120)
    return LabelledFace(picture, classes, landmarks)


@pytest.fixture(scope="module")
def faces(landmarks) -> list[LabelledFace]:
    return [labelled_face(landmarks, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def hands() -> np.ndarray:
    """A disc that stands for a hand."""
    y, x = (np.mgrid[:96, :96] - 47.5) / 30
    inside = x**2 + y**2 < 1
    picture = np.zeros((96, 96, len(CHANNELS)))
    picture[..., 0], picture[..., 1], picture[..., 2] = 0.5 + 0.5 * x * inside, 0.5 - 0.5 * y * inside, inside
    return (picture * 255).astype(np.uint8)[None]


@pytest.fixture
def drawn(faces, hands) -> OccludedFaces:
    return OccludedFaces(faces, hands, SIZE, seed=3)


def plain_scene(face: LabelledFace):
    return place(face, ffhq_matrix(face.landmarks, SIZE, CROP_FACTOR), SIZE)


def test_labels_become_classes_and_the_unlabelled_within_the_face_is_unknown(landmarks):
    labels = np.zeros((144, 144), np.uint8)
    labels[:, 60:80] = 1
    labels[:10], labels[-10:], labels[70, 70], labels[71, 71] = 13, 17, 3, 12
    classes = to_classes(labels, landmarks)
    assert [classes[point] for point in ((0, 0), (140, 0), (70, 70), (71, 71))] == [FRONT, BACKGROUND, GLASSES, FACE]
    beside = tuple(landmarks[50].astype(int)[::-1])  # a cheek
    assert labels[beside] == 0 and classes[beside] == UNKNOWN
    assert classes[72, 0] == BACKGROUND


def test_a_sample_depends_on_its_number_alone(drawn):
    first, again, other = drawn[4], drawn[4], drawn[5]
    assert first["image"].shape == (SIZE, SIZE, 3) and first["classes"].shape == first["erased"].shape == (SIZE, SIZE)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_before_a_face_is_labelled_and_little_else_changes(drawn, kind):
    covered = 0
    for seed in range(12):
        rng, scene = np.random.default_rng(seed), plain_scene(drawn.faces[0])
        classes = scene.classes.copy()
        region = drawn.occlude(scene, kind, rng)
        assert (scene.classes[region] == FRONT).all()
        assert (scene.classes[~region] == classes[~region]).all()
        assert np.isfinite(scene.image).all() and scene.image.min() >= 0 and scene.image.max() <= 1 + 1e-6  # rounded
        covered += (region & (classes == FACE)).sum()
    assert covered > 0


def test_a_cap_hides_what_is_above_the_forehead_and_its_shadow_falls_below_it(faces):
    darkened = 0
    for seed in range(12):
        scene = plain_scene(faces[0])
        before = scene.image.copy()
        cap = draw_cap(scene, [faces[0].picture], np.random.default_rng(seed))
        columns, rows = scene.landmarks[[10, 1]].astype(int).T  # forehead, tip of the nose
        assert cap.region[: rows[0] - SIZE // 16, columns[0]].all() and not cap.region[rows[1] :, columns[1]].any()
        assert cap.colour.min() >= 0 and cap.colour.max() <= 1
        darker = (scene.image < before - 1e-3).any(axis=2)
        assert (scene.image <= before).all() and not darker[0].any(where=cap.alpha[0] == 0)
        darkened += (darker & (cap.alpha == 0)).any()
    assert 3 <= darkened < 12


def test_glasses_are_a_class_of_their_own(faces):
    scene, rng = plain_scene(faces[0]), np.random.default_rng(0)
    paste(scene, draw_glasses(scene, rng), rng)
    rows, columns = (scene.classes == GLASSES).nonzero()
    eyes = scene.landmarks[[33, 263]]
    assert columns.min() < eyes[0, 0] and columns.max() > eyes[1, 0] and abs(rows.mean() - eyes[:, 1].mean()) < SIZE / 10


@pytest.mark.parametrize("seed", range(4))
def test_marks_and_shadows_leave_skin_skin(faces, hands, seed):
    scene, rng = plain_scene(faces[0]), np.random.default_rng(seed)
    classes, image = scene.classes.copy(), scene.image.copy()
    mark_skin(scene, rng)
    cast_shadow(scene, hands, rng)
    assert (scene.classes == classes).all()
    assert not np.allclose(scene.image, image) and scene.image.min() >= 0 and scene.image.max() <= 1.2


def test_pasting_blends_by_opacity(faces):
    scene = plain_scene(faces[0])
    before, alpha = scene.image.copy(), np.zeros((SIZE, SIZE), np.float32)
    alpha[10:20, 10:20] = 0.25
    paste(scene, Layer(np.array([1.0, 0, 0]), alpha, alpha > 0, shadow=False), np.random.default_rng(0))
    np.testing.assert_allclose(scene.image[15, 15], 0.75 * before[15, 15] + [0.25, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(scene.image[40:], before[40:])


def test_jitter_moves_landmarks_with_the_picture(faces):
    face = faces[0]
    marked = face.picture.copy()
    x, y = face.landmarks[1].astype(int)
    marked[y - 1 : y + 2, x - 1 : x + 2] = (0, 0, 255)
    for seed in range(5):
        matrix = jitter(face.landmarks, SIZE, np.random.default_rng(seed))
        scene = place(LabelledFace(marked, face.classes, face.landmarks), matrix, SIZE)
        spot = scene.image[..., 2] - scene.image[..., 0]
        row, column = np.unravel_index(spot.argmax(), spot.shape)
        assert np.hypot(column + 0.5 - scene.landmarks[1, 0], row + 0.5 - scene.landmarks[1, 1]) < 2.5


def test_photographs_are_bytes_of_the_same_size():
    image = np.random.default_rng(0).random((SIZE, SIZE, 3), np.float32)
    for seed in range(20):
        picture = photograph(image, np.random.default_rng(seed))
        assert picture.shape == image.shape and picture.dtype == np.uint8


def test_a_posed_hand_is_drawn_with_its_arm_downwards():
    """A tube for a hand: all fingers are its upper third."""
    angles, heights = np.linspace(0, 2 * np.pi, 12, endpoint=False), np.linspace(-1.3, 1, 24)
    vertices = np.array([(0.2 * np.sin(angle), height, 0.2 * np.cos(angle)) for height in heights for angle in angles])
    corners = [(ring * 12 + k, ring * 12 + (k + 1) % 12) for ring in range(23) for k in range(12)]
    triangles = np.array([part for a, b in corners for part in ((a, b, b + 12), (a, b + 12, a + 12))])
    fingers = [f"finger{finger}-{part}" for finger in range(1, 6) for part in range(1, 4)]
    joints = {name: np.array([[0, 0.5, 0], [0, 0.8, 0]], float) for name in fingers}
    arm, tip = (vertices[:, 1] < 0).astype(float), (vertices[:, 1] > 0.6).astype(float)
    weights = {name: tip / 15 for name in fingers} | {"arm": arm, "palm": 1 - arm - tip}
    hand = Hand(vertices, triangles, weights, joints, np.stack([arm, tip, tip], axis=1))
    picture = render_hand(hand, np.random.default_rng(1))
    alpha = picture[..., CHANNELS.index("alpha")] > 127
    arm_rows = ((picture[..., CHANNELS.index("arm")] > 127) & alpha).nonzero()[0]
    assert 0.02 < alpha.mean() < 0.6 and arm_rows.mean() > alpha.nonzero()[0].mean()
