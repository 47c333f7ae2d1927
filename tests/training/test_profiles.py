"""Photos turned to the side."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.rotation import angle_to_camera
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.data import TURNED_NAME, FaceStore, ValidationFaces, network_inputs
from diffdeid.training.profiles import draw_angles, laid_over, turn_photos
from tests.training.conftest import invented_face

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid"
SIZE = 288


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FaceStore:
    """Two photos that show a side, one of them held out, and a frontal one."""
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    folder = tmp_path_factory.mktemp("store")
    for number, (name, degrees) in enumerate((("frontal", 3), ("held out", 25), ("side", 25))):
        face = invented_face(number, SIZE)
        face["fit"] = 0.1 * face["coefficients"]
        face["fit"][251:257] = [0, np.deg2rad(degrees), 0, 0, 0, 0]
        save_file(face, folder / f"{name}.safetensors", metadata={"set": "photos"})
    (folder / "held_out.txt").write_text("held out\n")
    turn_photos(folder, folder / "held_out.txt", WEIGHTS)
    return FaceStore(folder)


def test_photos_for_training_that_show_a_side_are_turned_and_nothing_else(store):
    assert store.names == ["frontal", "held out", "side"]
    assert store.made(store.names, TURNED_NAME) == [f"side{TURNED_NAME}"]


def test_turned_faces_are_the_same_people_in_another_pose(store):
    before, after = (store.open(name) for name in ("side", f"side{TURNED_NAME}"))
    own, turned = (MorphableCoefficients.unpack(torch.from_numpy(file.get_tensor("fit"))[None]) for file in (before, after))
    torch.testing.assert_close(turned.shape, own.shape)
    torch.testing.assert_close(turned.expression, own.expression)
    np.testing.assert_array_equal(after.get_tensor("identity"), before.get_tensor("identity"))
    assert abs(angle_to_camera(turned.pose).item() - 25) > 5


def test_landmarks_are_those_of_the_fit_and_within_the_crop(store):
    file = store.open(f"side{TURNED_NAME}")
    rho = MorphableCoefficients.unpack(torch.from_numpy(file.get_tensor("fit"))[None])
    head = MorphableModel.from_pretrained(WEIGHTS, subfolder="morphable_model").float()
    placed = project(to_camera(head(rho.shape, rho.expression).landmarks, rho.pose), 256)[0, :, :2].numpy()
    landmarks = file.get_tensor("landmarks")[:, :2]
    np.testing.assert_allclose(landmarks, placed, atol=0.5)
    assert landmarks.min() > 0 and landmarks.max() < 256


def test_networks_can_be_shown_turned_faces(store):
    face = ValidationFaces(store, [f"side{TURNED_NAME}"])[0]
    inputs = network_inputs(torch.utils.data.default_collate([face]), 64)
    assert not inputs["video"].any() and not inputs["exchanged"].any() and inputs["mask"].mean() > 0.05
    assert all(value.isfinite().all() for value in inputs.values())


def test_a_store_without_such_photos_is_an_error(tmp_path):
    face = invented_face(0, SIZE)
    face["fit"] = 0 * face["coefficients"]
    save_file(face, tmp_path / "a.safetensors", metadata={"set": "photos"})
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(ValueError, match="8 to 60° to the side"):
        turn_photos(tmp_path, tmp_path / "none.txt", WEIGHTS)


@pytest.mark.parametrize("side", [-1, 1])
def test_heads_look_farther_to_the_side_that_a_photo_shows(side):
    pose = torch.zeros(200, 6)
    pose[:, 1] = side * 0.4
    pitch, yaw, roll = draw_angles(pose, np.random.default_rng(0)).T
    assert (side * yaw >= 0).all() and (side * yaw > 42).mean() > 0.6
    assert 0.1 < (np.abs(pitch) > 15).mean() < 0.5 and np.abs(roll).max() < 40


def test_what_is_behind_a_head_shows_where_it_is_not():
    render = np.zeros((576, 576, 4), np.uint8)
    render[200:400, 200:400] = 200, 100, 50, 255
    picture = laid_over(render, np.full((288, 288, 3), 30, np.uint8), np.random.default_rng(0)).astype(int)
    assert picture.shape == (288, 288, 3)
    np.testing.assert_allclose(picture[120:180, 120:180].mean((0, 1)), [200, 100, 50], atol=2)
    np.testing.assert_allclose(picture[:60].mean((0, 1)), 30, atol=2)
