import torch
from torch.nn.functional import normalize

from diffdeid.geometry.camera import DISTANCE, FOCAL
from diffdeid.geometry.renderer import render, vertex_normals
from tests.tiny import icosphere

SIZE = 48
CONSTANT = torch.tensor([[1.0] * 3 + [0.0] * 24])


def white(vertices: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(vertices)


def test_normals_of_a_sphere_point_away_from_its_centre():
    vertices, triangles = icosphere(2)
    torch.testing.assert_close(vertex_normals(3 * vertices[None] + 1, triangles)[0], vertices, atol=0.03, rtol=0)


def test_a_rendered_sphere_equals_the_traced_one():
    radius, (vertices, triangles) = 0.8, icosphere(3)
    rendering = render(radius * vertices[None], white(vertices[None]), CONSTANT, triangles, SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    ray = normalize(torch.stack([x - SIZE / 2, SIZE / 2 - y, torch.full_like(x, -FOCAL * SIZE)], dim=-1), dim=-1)
    along = -DISTANCE * ray[..., 2]  # to the point nearest to the centre
    inside = radius**2 - (DISTANCE**2 - along**2)
    expected = (torch.tensor([0, 0, DISTANCE]) + (along - inside.clamp_min(0).sqrt())[..., None] * ray) / radius
    assert rendering.mask[0][inside > 0.03].all() and not rendering.mask[0][inside < 0].any()
    torch.testing.assert_close(rendering.normals[0][inside > 0.1], expected[inside > 0.1], atol=0.05, rtol=0)


def test_normals_have_unit_length_on_the_mesh_and_none_outside():
    vertices, triangles = icosphere(1)
    rendering = render(vertices[None], white(vertices[None]), CONSTANT, triangles, SIZE)
    torch.testing.assert_close(rendering.normals.norm(dim=-1), rendering.mask.float())


def test_the_nearer_of_two_balls_is_seen():
    ball, triangles = icosphere(1)
    near, far = ball * 0.3 + torch.tensor([0, 0, 2]), ball * 0.6 - torch.tensor([0, 0, 2])
    red, blue = torch.eye(3)[[0, 2]][:, None].expand(2, len(ball), 3)
    for first, second in (((near, red), (far, blue)), ((far, blue), (near, red))):
        vertices, albedo = (torch.cat(pair)[None] for pair in zip(first, second, strict=True))
        both = torch.cat([triangles, triangles + len(ball)])
        image = render(vertices, albedo, CONSTANT, both, SIZE).image[0]
        torch.testing.assert_close(image[SIZE // 2, SIZE // 2], red[0])
        torch.testing.assert_close(image[SIZE // 2, SIZE // 2 + 10], blue[0])


def test_light_from_above_lights_the_top():
    vertices, triangles = icosphere(2)
    above = torch.zeros(1, 27)
    above[0, 3:6] = 1
    image = render(vertices[None] * 0.8, white(vertices[None]), above, triangles, SIZE).image[0]
    assert image[SIZE // 4, SIZE // 2].min() > 0.3 and image[-SIZE // 4, SIZE // 2].max() < -0.3


def test_a_margin_extends_the_picture():
    vertices, triangles = icosphere(1)
    narrow = render(vertices[None], white(vertices[None]), CONSTANT, triangles, SIZE)
    wide = render(vertices[None], white(vertices[None]), CONSTANT, triangles, SIZE, margin=5)
    torch.testing.assert_close(wide.normals[:, 5:-5, 5:-5], narrow.normals, atol=1e-3, rtol=0)
    assert wide.mask.shape == (1, SIZE + 10, SIZE + 10)


def test_gradients_reach_the_vertices():
    vertices, triangles = icosphere(1)
    vertices = vertices[None].clone().requires_grad_()
    render(vertices, white(vertices.detach()), torch.randn(1, 27), triangles, 16).image.sum().backward()
    assert vertices.grad.isfinite().all() and vertices.grad.any()
