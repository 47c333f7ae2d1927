"""Mesh -> the pictures the network is conditioned on (paper §3.2: I_3d; normals as in DiffusionRig)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffdeid.geometry.camera import project
from diffdeid.geometry.eyes import paint_eyes
from diffdeid.geometry.lighting import shade
from diffdeid.geometry.rasterizer import interpolate, rasterize


@dataclass(frozen=True)
class Rendering:
    """Pictures of a mesh, channels last.

    Attributes:
        image: `(B, H, W, 3)` SH-lit colour, 0…1 unless overexposed; zeros outside the mesh.
        albedo: `(B, H, W, 3)` colour without light.
        normals: `(B, H, W, 3)` unit camera-space normals; zeros outside the mesh.
        mask: `(B, H, W)` bool, True on the mesh.
    """

    image: Tensor
    albedo: Tensor
    normals: Tensor
    mask: Tensor


def vertex_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Area-weighted unit normals `(B, V, 3)`, pointing out of counter-clockwise triangles."""
    a, b, c = vertices[:, triangles].unbind(2)
    face = torch.linalg.cross(b - a, c - a)  # (B, T, 3)
    total = torch.zeros_like(vertices)
    for corner in triangles.unbind(1):
        total = total.index_add(1, corner, face)
    return normalize(total, dim=-1, eps=1e-12)


def render(
    vertices: Tensor,
    albedo: Tensor,
    illumination: Tensor,
    triangles: Tensor,
    size: int,
    margin: int = 0,
    eyes: Tensor | None = None,
) -> Rendering:
    """Render camera-space vertices `(B, V, 3)` with vertex albedo `(B, V, 3)` under γ `(B, 27)`.

    With `eyes` (`eye_coordinates`, `(B, V, 3)`) the eyeballs have irises. The pictures have `size + 2 * margin` pixels a side
    (see `camera.project`).
    """
    fragments = rasterize(project(vertices, size, margin), triangles, size + 2 * margin)
    attributes = [albedo, vertex_normals(vertices, triangles)] + ([] if eyes is None else [eyes])
    albedo_map, normal_map, *eye_map = interpolate(torch.cat(attributes, dim=-1), triangles, fragments).split(3, dim=-1)
    normal_map = normalize(normal_map, dim=-1, eps=1e-12)
    if eye_map:
        albedo_map = paint_eyes(albedo_map, *eye_map)
    image = shade(albedo_map, normal_map, illumination)
    return Rendering(image, albedo_map, normal_map, fragments.mask)
