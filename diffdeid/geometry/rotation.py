"""Rotation vectors and matrices (right-handed, radians, column vectors: x' = R x)."""

import torch
from torch import Tensor


def rotation_matrix(rotation_vector: Tensor) -> Tensor:
    """Rodrigues' formula: `(..., 3)` rotation vectors (axis × angle, radians) -> `(..., 3, 3)` matrices."""
    angle = (rotation_vector.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    x, y, z = (rotation_vector / angle).unbind(-1)
    zero = 0 * x  # ONNX exporters would turn zeros_like into a constant for one batch size
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    angle = angle.unsqueeze(-1)
    identity = torch.eye(3, dtype=rotation_vector.dtype, device=rotation_vector.device)
    return identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def rotation_vector(matrix: Tensor) -> Tensor:
    """The inverse of `rotation_matrix` for angles below π: `(..., 3, 3)` -> `(..., 3)`."""
    skew = torch.stack(
        [matrix[..., 2, 1] - matrix[..., 1, 2], matrix[..., 0, 2] - matrix[..., 2, 0], matrix[..., 1, 0] - matrix[..., 0, 1]],
        dim=-1,
    )
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    angle = torch.atan2(skew.norm(dim=-1, keepdim=True), trace - 1)
    return skew * torch.where(angle < 1e-4, torch.full_like(angle, 0.5), angle / (2 * angle.sin()).clamp_min(1e-8))


def angle_to_camera(pose: Tensor) -> Tensor:
    """The angle between a face of pose p `(B, 6)` and the camera, `(B,)` in degrees: 0 is frontal, 90 is a profile."""
    return rotation_matrix(pose[:, :3])[:, 2, 2].clamp(-1, 1).arccos().rad2deg()
