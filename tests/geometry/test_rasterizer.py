import numpy as np
import pytest
import torch

from diffdeid.geometry.rasterizer import interpolate, rasterize

SIZE = 12


def soup(seed: int, count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Random triangles: small and large, both ways round, in and out of the picture, with a few degenerate ones."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-3, SIZE + 3, (count, 1, 2))
    corners = centre + rng.normal(size=(count, 3, 2)) * rng.choice([0.5, 3, 12], (count, 1, 1))
    corners[0, 1] = corners[0, 0]
    corners[1, 2] = (corners[1, 0] + corners[1, 1]) / 2
    vertices = np.concatenate([corners, rng.uniform(1, 10, (count, 3, 1))], axis=-1).reshape(-1, 3)
    triangles = torch.arange(3 * count).view(count, 3)
    triangles[2, 2] = triangles[2, 1]
    return torch.from_numpy(vertices), triangles


def naive(vertices: np.ndarray, triangles: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first hit of the ray through every pixel centre, by solving Σ b_i X_i = depth · ray for each triangle."""
    triangle, barycentric = np.full((size, size), -1), np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            nearest = np.inf
            for index, (x, y, depth) in enumerate(vertices[triangles].transpose(0, 2, 1)):
                points = np.stack([x * depth, y * depth, depth])
                if np.linalg.det(points) > -1e-9:  # seen from behind, or from the side
                    continue
                share = np.linalg.solve(points, [column + 0.5, row + 0.5, 1])  # b / depth
                if share.min() >= 0 and 1 / share.sum() < nearest:
                    nearest = 1 / share.sum()
                    triangle[row, column], barycentric[row, column] = index, share * nearest
    return triangle, barycentric


@pytest.mark.parametrize("seed", range(6))
def test_every_pixel_sees_what_the_naive_search_finds(seed):
    vertices, triangles = soup(seed)
    fragments = rasterize(vertices[None], triangles, SIZE)
    triangle, barycentric = naive(vertices.numpy(), triangles.numpy(), SIZE)
    np.testing.assert_array_equal(fragments.triangle[0], triangle)
    np.testing.assert_allclose(fragments.barycentric[0], barycentric, atol=1e-4)
    assert 0 < fragments.mask.sum() < SIZE**2 and len(fragments.triangle.unique()) > 3


def test_barycentrics_are_shares_of_the_whole():
    vertices, triangles = soup(0)
    fragments = rasterize(vertices[None].float(), triangles, SIZE)
    assert fragments.barycentric.min() >= -1e-5
    torch.testing.assert_close(fragments.barycentric.sum(-1), fragments.mask.float(), atol=1e-5, rtol=0)


def test_a_batch_gives_what_singles_give():
    singles = [soup(seed)[0] for seed in range(3)]
    triangles = soup(0)[1]
    batch = rasterize(torch.stack(singles), triangles, SIZE)
    for index, vertices in enumerate(singles):
        single = rasterize(vertices[None], triangles, SIZE)
        assert torch.equal(batch.triangle[index], single.triangle[0])
        assert torch.equal(batch.barycentric[index], single.barycentric[0])


def test_back_faces_are_not_drawn():
    vertices = torch.tensor([[[0.0, 0, 5], [0, 30, 5], [30, 0, 5]]])  # counter-clockwise with y up
    assert rasterize(vertices, torch.tensor([[0, 1, 2]]), 4).mask.all()
    assert not rasterize(vertices, torch.tensor([[0, 2, 1]]), 4).mask.any()


def test_the_order_of_triangles_does_not_matter():
    vertices, triangles = soup(1)
    order = torch.randperm(len(triangles), generator=torch.Generator().manual_seed(0))
    forward = rasterize(vertices[None], triangles, SIZE).triangle
    shuffled = rasterize(vertices[None], triangles[order], SIZE).triangle
    assert torch.equal(torch.where(shuffled < 0, -1, order[shuffled]), forward)


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.123])
def test_triangles_that_share_an_edge_leave_no_gap(offset):
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="xy"), -1).flatten(0, 1) * 2 + offset - 1
    vertices = torch.cat([grid, torch.full((36, 1), 7.0)], dim=1)[None]
    corner = (torch.arange(5)[:, None] * 6 + torch.arange(5)).flatten()
    upper, lower = torch.stack([corner, corner + 6, corner + 1], 1), torch.stack([corner + 1, corner + 6, corner + 7], 1)
    assert rasterize(vertices, torch.cat([upper, lower]), 8).mask.all()


def test_nothing_is_seen_of_an_empty_or_distant_mesh():
    vertices, triangles = soup(0)
    assert not rasterize(vertices[None], triangles[:0], SIZE).mask.any()
    assert not rasterize(vertices[None] + torch.tensor([1000, 0, 0]), triangles, SIZE).mask.any()


@pytest.mark.parametrize("seed", range(3))
def test_interpolated_positions_are_the_pixel_centres(seed):
    vertices, triangles = soup(seed)
    x, y, depth = vertices.unbind(-1)
    fragments = rasterize(vertices[None], triangles, SIZE)
    points = interpolate(torch.stack([x * depth, y * depth, depth], -1)[None], triangles, fragments)
    batch, row, column = fragments.mask.nonzero(as_tuple=True)
    seen = points[batch, row, column]
    torch.testing.assert_close(seen[:, :2] / seen[:, 2:], torch.stack([column, row], 1) + 0.5, check_dtype=False)
    assert not points[~fragments.mask].any()


def test_interpolation_is_differentiable_in_attributes_and_vertices():
    vertices = torch.tensor([[[-9.0, -9, 2], [-9, 40, 5], [40, -9, 9], [1, 1, 1], [1.2, 3.3, 1.5], [3.4, 1.3, 1.2]]]).double()
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert len(rasterize(vertices, triangles, 4).triangle.unique()) == 2
    attributes = torch.randn(1, 6, 2, dtype=torch.float64)

    def picture(attributes, vertices):
        return interpolate(attributes, triangles, rasterize(vertices, triangles, 4))

    assert torch.autograd.gradcheck(picture, (attributes.requires_grad_(), vertices.requires_grad_()))
