"""`rasterizer.rasterize` by PyTorch3D (Ravi et al. 2020, BSD-3-Clause) with its CUDA kernels.

Conventions read in its `docs/notes/cameras.md` and in its naive `rasterize_meshes_python`: normalised device coordinates reach
from -1 to 1 across the picture, x to the *left* and y up; triangles counter-clockwise on the screen face the viewer; z is depth.
Differences from our rasteriser: pixel centres exactly on an edge belong to no triangle, and everything is float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_ndc(points: Tensor, size: int) -> Tensor:
    """`(..., 3)` x, y in pixels and depth -> PyTorch3D's device coordinates; the depth stays.

    >>> to_ndc(torch.tensor([0.5, 0.5, 10]), 4)  # the centre of the top-left pixel
    tensor([ 0.7500,  0.7500, 10.0000])
    """
    return torch.cat([1 - points[..., :2] * (2 / size), points[..., 2:]], dim=-1)


def rasterize(vertices: Tensor, triangles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The parts of `rasterizer.Fragments`, on any device that PyTorch3D was built for."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    batch_size = len(vertices)
    meshes = Meshes(to_ndc(vertices.float(), size), triangles.expand(batch_size, -1, -1))
    triangle, _, barycentric, _ = rasterize_meshes(
        meshes, size, blur_radius=0.0, faces_per_pixel=1, perspective_correct=True, cull_backfaces=True
    )
    seen = triangle[..., 0] >= 0
    offset = torch.arange(batch_size, device=triangle.device) * len(triangles)  # it numbers triangles through the whole batch
    triangle = torch.where(seen, triangle[..., 0] - offset[:, None, None], -1)
    barycentric = torch.where(seen[..., None], barycentric[..., 0, :], 0)  # -1 for background there
    return triangle, barycentric.to(vertices.dtype)
