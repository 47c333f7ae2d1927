"""A z-buffer rasteriser in plain torch.

Every front-facing triangle tests the pixel centres of its bounding box; triangles are grouped by box size (powers of two), so
that each group is one dense tensor operation. Visibility is discrete; barycentrics are recomputed from the winning triangle, so
interpolated attributes are differentiable in the attributes and in the vertices. On a GPU PyTorch3D takes over where it is
installed (`pytorch3d_rasterizer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from diffdeid.geometry import pytorch3d_rasterizer

HAS_PYTORCH3D = find_spec("pytorch3d") is not None


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees.

    Attributes:
        triangle: `(B, H, W)` int64 triangle index, -1 where nothing is seen.
        barycentric: `(B, H, W, 3)` perspective-correct weights of its corners (zeros for background).
    """

    triangle: Tensor
    barycentric: Tensor

    @property
    def mask(self) -> Tensor:
        """`(B, H, W)` bool, True where a triangle is seen."""
        return self.triangle >= 0


def _planes(corners: Tensor) -> Tensor:
    """Four affine functions of a pixel (x, y) for triangles `(N, 3, 3)` of x, y, depth: `(N, 4, 3)` factors of x, y and 1.

    The first three are the barycentric weights times 1/depth of their corner, which are linear in the picture; the fourth,
    their sum, is 1/depth of the surface. Degenerate triangles give infinite or undefined values.
    """
    x, y, depth = corners.unbind(-1)  # (N, 3)
    x1, y1, x2, y2 = x.roll(-1, 1), y.roll(-1, 1), x.roll(-2, 1), y.roll(-2, 1)  # the edge opposite each corner
    edges = torch.stack([y1 - y2, x2 - x1, x1 * y2 - x2 * y1], dim=-1)  # (N, 3, 3), twice the areas
    weights = edges / (edges[..., 2].sum(1, keepdim=True) * depth)[..., None]
    return torch.cat([weights, weights.sum(1, keepdim=True)], dim=1)


def _front_facing(corners: Tensor) -> Tensor:
    """Which triangles `(N, 3, 3)` face the camera, `(N,)` bool: counter-clockwise with y up is clockwise in the picture."""
    first, second = corners[:, 1, :2] - corners[:, 0, :2], corners[:, 2, :2] - corners[:, 0, :2]
    return first[:, 0] * second[:, 1] < first[:, 1] * second[:, 0]


@torch.no_grad()
def _nearest_triangle(corners: Tensor, size: int) -> Tensor:
    """Index of the nearest front-facing triangle at every pixel, `(B, H, W)`; corners `(B, T, 3, 3)` hold x, y, depth."""
    batch_size, num_triangles = corners.shape[:2]
    device = corners.device
    corners = corners.float().flatten(0, 1)
    low = (corners[..., :2].amin(1) - 0.5).ceil().clamp(min=0)  # first and last pixel whose centre may be inside
    high = (corners[..., :2].amax(1) - 0.5).floor().clamp(max=size - 1)
    visible = ((high >= low).amin(1) & _front_facing(corners)).nonzero().squeeze(1)
    corners, low, extent = corners[visible], low[visible], (high - low + 1).amax(1)[visible]
    local = corners - torch.nn.functional.pad(low, (0, 1))[:, None]  # small numbers keep the edges exact
    planes = _planes(local)

    pixels, nearness, owners = [], [], []
    span = 2
    remaining = torch.arange(len(visible), device=device)
    while len(remaining):
        group = remaining[extent[remaining] <= span]
        remaining = remaining[extent[remaining] > span]
        step = torch.arange(span, device=device)
        y, x = torch.meshgrid(step, step, indexing="ij")
        points = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)]).flatten(1).float()  # (3, span²)
        values = planes[group] @ points  # (N, 4, span²)
        column, row = low[group].long().unsqueeze(2).unbind(1)  # (N, 1) each
        column, row = column + x.flatten(), row + y.flatten()
        covered = (values[:, :3].amin(1) >= 0) & (column < size) & (row < size)
        where = covered.nonzero(as_tuple=True)
        owner = visible[group[where[0]]]
        pixels.append((row * size + column)[where] + owner // num_triangles * size**2)
        nearness.append(values[:, 3][where])
        owners.append(owner % num_triangles)
        span *= 2

    count = batch_size * size * size
    background = torch.full((count,), num_triangles, device=device)
    if pixels:
        pixels, nearness, owners = torch.cat(pixels), torch.cat(nearness), torch.cat(owners)
        nearest = nearness.new_zeros(count).scatter_reduce(0, pixels, nearness, "amax")
        winner = nearness == nearest[pixels]  # ties go to the lowest index
        background = background.scatter_reduce(0, pixels[winner], owners[winner], "amin")
    return torch.where(background == num_triangles, -1, background).view(batch_size, size, size)


def rasterize(vertices: Tensor, triangles: Tensor, size: int) -> Fragments:
    """Find the visible triangle and its barycentrics at every pixel centre.

    Args:
        vertices: `(B, V, 3)`, x and y in pixels, depth (positive, any unit).
        triangles: `(T, 3)` int64, counter-clockwise seen from outside; back faces are not drawn.
        size: height and width in pixels.
    """
    if HAS_PYTORCH3D and vertices.is_cuda:
        return Fragments(*pytorch3d_rasterizer.rasterize(vertices, triangles, size))
    corners = vertices[:, triangles]  # (B, T, 3, 3)
    triangle = _nearest_triangle(corners, size)
    batch, row, column = (triangle >= 0).nonzero(as_tuple=True)
    centre = torch.stack([column, row, torch.zeros_like(row)], dim=1).to(vertices.dtype) + 0.5
    origin = centre * centre.new_tensor([1, 1, 0])
    values = _planes(corners[batch, triangle[batch, row, column]] - origin[:, None])[..., 2]  # at the pixel: x = y = 0
    barycentric = vertices.new_zeros(*triangle.shape, 3)
    barycentric[batch, row, column] = values[:, :3] / values[:, 3:]
    return Fragments(triangle, barycentric)


def interpolate(attributes: Tensor, triangles: Tensor, fragments: Fragments) -> Tensor:
    """Vertex attributes `(B, V, C)` at every pixel, `(B, H, W, C)`; zeros for background."""
    batch, row, column = fragments.mask.nonzero(as_tuple=True)
    corners = attributes[batch[:, None], triangles[fragments.triangle[batch, row, column]]]  # (N, 3, C)
    picture = attributes.new_zeros(*fragments.mask.shape, attributes.shape[-1])
    picture[batch, row, column] = (fragments.barycentric[batch, row, column, :, None] * corners).sum(1)
    return picture
