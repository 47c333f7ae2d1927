import numpy as np
import pytest
import torch

from diffdeid.geometry.align import sample
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.lighting import shade
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.mirror import EXPRESSION_UNITS, mirror, mirror_coefficients
from tests.training.conftest import loaded_face


def unpack(coefficients: np.ndarray) -> MorphableCoefficients:
    return MorphableCoefficients.unpack(torch.from_numpy(coefficients)[None])


def test_mirroring_twice_changes_nothing(tmp_path):
    face = loaded_face(tmp_path, 0)
    twice = mirror(mirror(face))
    for name in set(face) - {"chip"}:
        np.testing.assert_array_equal(twice[name], face[name])
    np.testing.assert_allclose(twice["chip"], face["chip"], rtol=1e-5)


def test_the_chip_of_a_mirrored_picture_is_the_mirrored_chip(tmp_path):
    face = loaded_face(tmp_path, 0)
    flipped = mirror(face)
    chip, mirrored = (
        sample(torch.from_numpy(f["image"].copy()).permute(2, 0, 1)[None].float(), torch.from_numpy(f["chip"])[None], 150)
        for f in (face, flipped)
    )
    torch.testing.assert_close(mirrored, chip.flip(3), atol=0.1, rtol=0)


def test_expression_units_are_52_in_alphabetical_order():
    assert len(EXPRESSION_UNITS) == 52 and EXPRESSION_UNITS == sorted(EXPRESSION_UNITS)


@pytest.mark.parametrize("name", ["eyeBlinkLeft", "mouthSmileLeft", "jawLeft"])
def test_a_left_expression_becomes_a_right_one(name):
    coefficients = np.zeros(261, np.float32)
    coefficients[80 + EXPRESSION_UNITS.index(name)] = 0.7
    mirrored = unpack(mirror_coefficients(coefficients)).expression[0]
    assert mirrored[EXPRESSION_UNITS.index(name.replace("Left", "Right"))] == pytest.approx(0.7)
    assert mirrored.count_nonzero() == 1


def test_a_mirrored_pose_projects_to_the_mirrored_picture():
    pose = torch.tensor([[0.1, -0.3, 0.2, 0.05, -0.1, 0.4]])
    coefficients = torch.cat([torch.zeros(1, 251), pose, torch.zeros(1, 4)], dim=1)
    mirrored = torch.from_numpy(mirror_coefficients(coefficients.numpy()))[:, 251:257]
    points = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = project(to_camera(points, pose), 256) * torch.tensor([-1, 1, 1]) + torch.tensor([256, 0, 0])
    actual = project(to_camera(points * torch.tensor([-1, 1, 1]), mirrored), 256)
    torch.testing.assert_close(actual, expected)


def test_mirrored_light_shades_mirrored_normals_alike():
    coefficients = np.random.default_rng(0).normal(size=261).astype(np.float32)
    before, after = unpack(coefficients), unpack(mirror_coefficients(coefficients))
    normals = torch.nn.functional.normalize(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    flipped = normals * torch.tensor([-1, 1, 1])
    expected, actual = (
        shade(torch.ones(1, 10, 3), directions[None], light.illumination)
        for directions, light in ((normals, before), (flipped, after))
    )
    torch.testing.assert_close(actual, expected)


def test_a_mirrored_gaze_swaps_the_eyes_and_looks_the_other_way():
    coefficients = np.zeros(261, np.float32)
    coefficients[257:] = 0.1, 0.2, 0.3, 0.4  # right x, y, left x, y
    np.testing.assert_allclose(mirror_coefficients(coefficients)[257:], [-0.3, 0.4, -0.1, 0.2])
