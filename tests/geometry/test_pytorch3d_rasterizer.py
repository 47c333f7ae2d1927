"""Our rasteriser against PyTorch3D where that is installed, and against a naive version of its documented rules everywhere."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffdeid.geometry import pytorch3d_rasterizer, rasterizer
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.pytorch3d_rasterizer import to_ndc
from diffdeid.models.morphable_model import MorphableModel
from tests.tiny import icosphere

WEIGHTS = Path(__file__).parents[2] / "weights/diffdeid/morphable_model"


def ball(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of two balls in pixels, turned so that no edge runs through pixel centres."""
    vertices, triangles = icosphere(2)
    pose = torch.tensor([[0.3, 0.2, 0.1, 0.05, 0.02, 0.0], [1.0, -0.7, 0.3, -0.3, 0.2, -0.8]])
    return project(to_camera(0.7 * vertices.expand(2, -1, -1), pose), size), triangles


def heads(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not WEIGHTS.exists():
        pytest.skip("weights/diffdeid is not here")
    model = MorphableModel.from_pretrained(WEIGHTS)
    vertices = model(torch.zeros(2, 80), torch.zeros(2, 64)).vertices
    return project(to_camera(vertices, torch.tensor([[0.0] * 6, [0.2, math.radians(40), 0.1, 0, 0, -1]])), size), model.triangles


def pixel_to_ndc(index: int, size: int) -> float:
    """PyTorch3D's formula for the pixel `index` from the right, or from below."""
    return -1 + (2 * index + 1) / size


def naive_pytorch3d(vertices: np.ndarray, triangles: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch3D's rules in loops: edge functions in device coordinates, negative area for back faces, smallest z in front."""

    def edge(p, a, b):
        return (p[0] - a[0]) * (b[1] - a[1]) - (p[1] - a[1]) * (b[0] - a[0])

    triangle, barycentric = np.full((size, size), -1), np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            pixel, nearest = (pixel_to_ndc(size - 1 - column, size), pixel_to_ndc(size - 1 - row, size)), np.inf
            for index, (a, b, c) in enumerate(vertices[triangles]):
                area = edge(c, a, b)
                if area <= 1e-8:
                    continue
                flat = np.array([edge(pixel, b, c), edge(pixel, c, a), edge(pixel, a, b)]) / area
                share = flat * [b[2] * c[2], a[2] * c[2], a[2] * b[2]]
                share /= share.sum()
                depth = share @ (a[2], b[2], c[2])
                if flat.min() > 0 and depth < nearest:
                    nearest, triangle[row, column], barycentric[row, column] = depth, index, share
    return triangle, barycentric


@pytest.mark.parametrize("size", [1, 2, 5, 256])
def test_pixel_centres_become_those_of_the_documentation(size):
    for column, row in {(0, 0), (size - 1, 0), (size // 2, size - 1)}:
        x, y, depth = to_ndc(torch.tensor([column + 0.5, row + 0.5, 7.0]), size).tolist()
        assert (x, y) == pytest.approx((pixel_to_ndc(size - 1 - column, size), pixel_to_ndc(size - 1 - row, size)), abs=1e-6)
        assert depth == 7


def test_the_top_left_corner_is_plus_one_plus_one():
    assert to_ndc(torch.tensor([0.0, 0, 3]), 64).tolist() == [1, 1, 3]
    assert to_ndc(torch.tensor([64.0, 64, 3]), 64).tolist() == [-1, -1, 3]


def test_its_rules_give_what_ours_give():
    vertices, triangles = ball(20)
    ours = rasterizer.rasterize(vertices, triangles, 20)
    for index, mesh in enumerate(to_ndc(vertices, 20).double().numpy()):
        triangle, barycentric = naive_pytorch3d(mesh, triangles.numpy(), 20)
        np.testing.assert_array_equal(ours.triangle[index], triangle)
        np.testing.assert_allclose(ours.barycentric[index], barycentric, atol=1e-4)
        assert 0 < (triangle >= 0).sum() < 20**2


def test_tensors_on_the_cpu_are_rasterised_by_ours(monkeypatch):
    monkeypatch.setattr(rasterizer, "HAS_PYTORCH3D", True)
    monkeypatch.setattr(pytorch3d_rasterizer, "rasterize", None)
    vertices, triangles = ball(8)
    assert rasterizer.rasterize(vertices, triangles, 8).mask.any()


@pytest.mark.parametrize("mesh", [ball, heads])
@pytest.mark.parametrize("size", [64, 256])
def test_pytorch3d_gives_what_ours_gives(mesh, size):
    pytest.importorskip("pytorch3d")
    vertices, triangles = mesh(size)
    ours = rasterizer.rasterize(vertices, triangles, size)
    theirs = rasterizer.Fragments(*pytorch3d_rasterizer.rasterize(vertices, triangles, size))
    covered = ours.mask | theirs.mask
    same = ours.mask & (ours.triangle == theirs.triangle)
    assert same.sum() / covered.sum() > 0.995
    torch.testing.assert_close(theirs.barycentric[same], ours.barycentric[same], atol=1e-3, rtol=0)
    assert not theirs.barycentric[~theirs.mask].any()


def test_pytorch3d_passes_gradients_on_as_ours_does():
    pytest.importorskip("pytorch3d")
    vertices, triangles = ball(32)
    attributes, gradients = torch.rand(2, vertices.shape[1], 2), []
    for rasterize in (rasterizer.rasterize, lambda *given: rasterizer.Fragments(*pytorch3d_rasterizer.rasterize(*given))):
        leaf = vertices.clone().requires_grad_()
        rasterizer.interpolate(attributes, triangles, rasterize(leaf, triangles, 32)).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-2)
