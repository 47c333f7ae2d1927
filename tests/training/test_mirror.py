import pytest
import torch

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.lighting import shade
from diffdeid.structures import MorphableCoefficients
from diffdeid.training.mirror import EXPRESSION_UNITS, mirror_coefficients


def unpack(coefficients: torch.Tensor) -> MorphableCoefficients:
    return MorphableCoefficients.unpack(coefficients[None])


def test_mirroring_twice_changes_nothing():
    coefficients = torch.randn(3, 261, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mirror_coefficients(mirror_coefficients(coefficients)), coefficients)


def test_expression_units_are_52_in_alphabetical_order():
    assert len(EXPRESSION_UNITS) == 52 and EXPRESSION_UNITS == sorted(EXPRESSION_UNITS)


@pytest.mark.parametrize("name", ["eyeBlinkLeft", "mouthSmileLeft", "jawLeft"])
def test_a_left_expression_becomes_a_right_one(name):
    coefficients = torch.zeros(261)
    coefficients[80 + EXPRESSION_UNITS.index(name)] = 0.7
    mirrored = unpack(mirror_coefficients(coefficients)).expression[0]
    assert mirrored[EXPRESSION_UNITS.index(name.replace("Left", "Right"))] == pytest.approx(0.7)
    assert mirrored.count_nonzero() == 1


def test_a_mirrored_pose_projects_to_the_mirrored_picture():
    pose = torch.tensor([[0.1, -0.3, 0.2, 0.05, -0.1, 0.4]])
    coefficients = torch.cat([torch.zeros(1, 251), pose, torch.zeros(1, 4)], dim=1)
    mirrored = mirror_coefficients(coefficients)[:, 251:257]
    points = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = project(to_camera(points, pose), 256) * torch.tensor([-1, 1, 1]) + torch.tensor([256, 0, 0])
    actual = project(to_camera(points * torch.tensor([-1, 1, 1]), mirrored), 256)
    torch.testing.assert_close(actual, expected)


def test_mirrored_light_shades_mirrored_normals_alike():
    coefficients = torch.randn(261, generator=torch.Generator().manual_seed(1))
    before, after = unpack(coefficients), unpack(mirror_coefficients(coefficients))
    normals = torch.nn.functional.normalize(torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    flipped = normals * torch.tensor([-1, 1, 1])
    expected, actual = (
        shade(torch.ones(1, 10, 3), directions[None], light.illumination)
        for directions, light in ((normals, before), (flipped, after))
    )
    torch.testing.assert_close(actual, expected)


def test_a_mirrored_gaze_swaps_the_eyes_and_looks_the_other_way():
    coefficients = torch.zeros(261)
    coefficients[257:] = torch.tensor([0.1, 0.2, 0.3, 0.4])  # right x, y, left x, y
    torch.testing.assert_close(mirror_coefficients(coefficients)[257:], torch.tensor([-0.3, 0.4, -0.1, 0.2]))
