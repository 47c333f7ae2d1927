import math

import pytest
import torch
from torch.nn.functional import normalize

from diffdeid.geometry.rotation import rotation_matrix, rotation_vector

ANGLES = [0.0, 1e-9, 1e-6, 1e-4, 1e-2, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-5]


def vectors(angle: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Twenty rotation vectors of one length."""
    generator = torch.Generator().manual_seed(0)
    return angle * normalize(torch.randn(20, 3, generator=generator, dtype=dtype), dim=-1)


@pytest.mark.parametrize("angle", ANGLES)
def test_matrices_are_rotations(angle):
    matrix = rotation_matrix(vectors(angle))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype, accuracy", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_vectors_survive_the_round_trip(angle, dtype, accuracy):
    expected = vectors(angle, dtype)
    tolerance = accuracy / min(1, math.pi - angle)  # the axis is lost at a half turn
    torch.testing.assert_close(rotation_vector(rotation_matrix(expected)), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("angle", [1e-3, 1.0, 3.1])
def test_the_matrix_is_the_exponential_of_the_cross_product(angle):
    vector = vectors(angle)
    cross = torch.linalg.cross(vector[:, None], torch.eye(3, dtype=vector.dtype).expand(20, 3, 3)).mT
    torch.testing.assert_close(rotation_matrix(vector), torch.linalg.matrix_exp(cross), atol=1e-9, rtol=0)


def test_a_quarter_turn_about_z_takes_x_to_y():
    turned = rotation_matrix(torch.tensor([0, 0, math.pi / 2])) @ torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1, 0]))


@pytest.mark.parametrize("angle", [1e-3, 1.0, 3.0])
def test_both_directions_are_differentiable(angle):
    vector = vectors(angle)[:3].requires_grad_()
    assert torch.autograd.gradcheck(rotation_matrix, vector)
    assert torch.autograd.gradcheck(lambda vector: rotation_vector(rotation_matrix(vector)), vector)


def test_gradients_at_no_rotation_are_finite():
    vector = torch.zeros(3, requires_grad=True)
    rotation_vector(rotation_matrix(vector)).sum().backward()
    assert vector.grad.isfinite().all()
