"""ρ from pixels by a network: a ResNet-50, as in Deep3DFaceRecon (Deng et al. 2019), the paper's D3DFR.

Written from the papers, on the ResNet of `transformers`. What differs: the coefficients are those of our open head (or of a
converted one), pose is a rotation vector in the crop's camera, and ω has four slots of its own. The outputs are standardised by
the statistics of the training faces, which travel with the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  (diffusers looks for `ModelMixin` in this module)
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate
from transformers import ResNetConfig, ResNetModel

from diffdeid.geometry.camera import DISTANCE, FOCAL
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.modeling_utils import StrictModelMixin
from diffdeid.structures import MorphableCoefficients

DEEP3D_FOCAL = 1015 / 224  # focal length in picture sizes, from 10 decimetres as ours
DEEP3D_TILT = 17 / 1015  # radians; its pictures have the eyes 30 of 224 pixels above the middle, our crops 13


@dataclass
class FaceReconstructorOutput(BaseOutput):
    """Output of `FaceReconstructorModel`.

    Attributes:
        coefficients: ρ of the faces, each group `(B, …)`.
    """

    coefficients: MorphableCoefficients


class FaceReconstructorModel(StrictModelMixin, ConfigMixin):
    """Regresses the 261 coefficients from an aligned crop.

    Args:
        sample_size: side in pixels at which the backbone looks; crops of other sizes are resized (area).
        embedding_size: channels of the stem (64).
        hidden_sizes: channels of the four stages, `(256, 512, 1024, 2048)` for ResNet-50.
        depths: residual blocks of the stages, `(3, 4, 6, 3)` for ResNet-50.
        deep3d_pivot: for a network of Deep3DFaceRecon (`diffdeid.conversion.d3dfr`), which takes other pictures and gives another
            pose: the point of the head, decimetres, about which its rotations turn.
        expression_bounded: β lies in 0…1 (ARKit units) and is clamped to it, though not in training, which needs the gradient.

    Buffers:
        mean, std: `(261,)`; the last layer gives standardised coefficients.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        embedding_size: int = 64,
        hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        deep3d_pivot: tuple[float, float, float] | None = None,
        expression_bounded: bool = True,
    ):
        super().__init__()
        config = ResNetConfig(embedding_size=embedding_size, hidden_sizes=list(hidden_sizes), depths=list(depths))
        self.backbone = ResNetModel(config)
        num_coefficients = sum(MorphableCoefficients.SIZES)
        self.head = nn.Linear(hidden_sizes[-1], num_coefficients)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(num_coefficients))
        self.register_buffer("std", torch.ones(num_coefficients))

    def forward(self, images: Tensor, return_dict: bool = True) -> FaceReconstructorOutput | tuple[MorphableCoefficients]:
        """Reconstruct crops `(B, 3, H, W)` in [-1, 1]."""
        size = self.config.sample_size
        if self.config.deep3d_pivot is not None:
            images = _deep3d_picture(images, size)
        elif images.shape[-2:] != (size, size):
            images = interpolate(images, size=(size, size), mode="area")
        features = self.backbone(images).pooler_output.flatten(1)
        packed = self.mean.float() + self.std.float() * self.head(features).float()
        coefficients = MorphableCoefficients.unpack(packed)
        if self.config.deep3d_pivot is not None:
            coefficients = replace(coefficients, pose=_deep3d_pose(coefficients.pose, self.config.deep3d_pivot))
        if self.config.expression_bounded and not self.training:
            coefficients = replace(coefficients, expression=coefficients.expression.clamp(0, 1))
        return FaceReconstructorOutput(coefficients) if return_dict else (coefficients,)


def _deep3d_picture(images: Tensor, size: int) -> Tensor:
    """Crops `(B, 3, H, W)` in [-1, 1] -> what Deep3DFaceRecon sees, `(B, 3, size, size)` in [0, 1].

    Its focal length is shorter and its centre is lower in the face. Beyond the crop, the border is repeated.
    """
    view = FOCAL / DEEP3D_FOCAL  # in crop sizes
    affine = torch.tensor([[view, 0, 0], [0, view, 2 * FOCAL * math.tan(DEEP3D_TILT)]], device=images.device)
    grid = affine_grid(affine.expand(len(images), 2, 3), (len(images), 3, size, size), align_corners=False)
    pictures = grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return ((pictures + 1) / 2).to(images.dtype)


def _deep3d_pose(pose: Tensor, pivot: tuple[float, float, float]) -> Tensor:
    """Euler angles and translation `(B, 6)` of X = R_z R_y R_x (S - pivot) + t, in a camera that looks lower -> p `(B, 6)`."""
    turn = rotation_matrix(pose[:, :3].diag_embed())  # about x, y and z
    tilt = rotation_matrix(pose.new_tensor([-DEEP3D_TILT, 0, 0]))
    camera = pose.new_tensor([0, 0, DISTANCE])
    matrix = tilt @ turn[:, 2] @ turn[:, 1] @ turn[:, 0]
    translation = camera + (pose[:, 3:] - camera) @ tilt.T - matrix @ pose.new_tensor(pivot)
    return torch.cat([rotation_vector(matrix), translation], dim=1)
