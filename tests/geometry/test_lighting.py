import pytest
import torch
from torch.nn.functional import normalize

from diffdeid.geometry.lighting import sh_basis, shade


def sphere(count: int = 20_000) -> torch.Tensor:
    """Evenly spread unit normals (a Fibonacci lattice), float64."""
    index = torch.arange(count, dtype=torch.float64)
    z, angle = 1 - (2 * index + 1) / count, index * torch.pi * (3 - 5**0.5)
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=-1)


def light(**harmonics: float) -> torch.Tensor:
    """White γ `(1, 27)` from `h0=…, h1=…`."""
    illumination = torch.zeros(1, 9, 3)
    for name, value in harmonics.items():
        illumination[0, int(name[1:])] = value
    return illumination.flatten(1)


def test_the_harmonics_are_orthogonal_over_the_sphere():
    basis = sh_basis(sphere())
    products = basis.T @ basis / len(basis)
    torch.testing.assert_close(products, products.diagonal().diag(), atol=1e-4, rtol=0)


def test_constant_light_shows_the_albedo():
    albedo, normals = torch.rand(1, 7, 3), normalize(torch.randn(1, 7, 3), dim=-1)
    torch.testing.assert_close(shade(albedo, normals, light(h0=0.5)), albedo / 2)


@pytest.mark.parametrize("harmonic, direction", [("h1", (0, 1, 0)), ("h2", (0, 0, 1)), ("h3", (1, 0, 0))])
def test_a_directional_harmonic_lights_the_side_it_comes_from(harmonic, direction):
    normal = torch.tensor([[direction, [-x for x in direction]]]).float()
    shaded = shade(torch.ones(1, 2, 3), normal, light(**{harmonic: 0.3}))
    torch.testing.assert_close(shaded, torch.tensor([0.3, -0.3])[None, :, None].expand(1, 2, 3))


def test_channels_are_lit_separately():
    red = torch.zeros(1, 9, 3)
    red[..., 0] = torch.rand(9)
    shaded = shade(torch.ones(1, 5, 3), normalize(torch.randn(1, 5, 3), dim=-1), red.flatten(1))
    assert shaded[..., 0].all() and not shaded[..., 1:].any()


def test_light_adds_up():
    albedo, normals = torch.rand(2, 4, 5, 3), normalize(torch.randn(2, 4, 5, 3), dim=-1)
    first, second = torch.randn(2, 2, 27)
    both = shade(albedo, normals, 2 * first - second)
    torch.testing.assert_close(both, 2 * shade(albedo, normals, first) - shade(albedo, normals, second), atol=1e-5, rtol=0)


def test_shading_is_differentiable():
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 4, 3), (1, 4, 3), (1, 27))]
    assert torch.autograd.gradcheck(shade, inputs)
