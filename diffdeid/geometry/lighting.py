"""Spherical-harmonics illumination (Ramamoorthi and Hanrahan 2001), order and signs in docs/conventions.md."""

import torch
from torch import Tensor


def sh_basis(normals: Tensor) -> Tensor:
    """The nine harmonics of `(..., 3)` unit normals, `(..., 9)`, without normalising constants."""
    x, y, z = normals.unbind(-1)
    return torch.stack([torch.ones_like(x), y, z, x, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], dim=-1)


def shade(albedo: Tensor, normals: Tensor, illumination: Tensor) -> Tensor:
    """Lambertian colour of `(B, ..., 3)` albedo and normals under γ `(B, 27)`: albedo × Σ γ_k H_k(n)."""
    light = illumination.unflatten(-1, (9, 3))
    return albedo * torch.einsum("b...k,bkc->b...c", sh_basis(normals), light)
