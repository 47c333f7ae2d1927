"""Least-squares reconstruction: landmarks, iris and pixels -> ρ.

Shape and pose by Gauss-Newton on the 468 reprojected landmarks with Gaussian priors (identity, expression) and β in [0, 1]
(as in Blanz and Vetter 2003, with a perspective camera); light by robust linear least squares on the skin (Ramamoorthi 2001).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdeid.geometry.camera import DISTANCE, FOCAL, to_camera
from diffdeid.geometry.landmarks import EYE_CORNERS
from diffdeid.geometry.lighting import sh_basis
from diffdeid.geometry.renderer import render
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients

LANDMARK_NOISE = 1.5 / 256  # standard deviation of x and y, in crop sizes
DEPTH_NOISE = 8 / 256  # FaceMesh's z is a guess: it only helps to tell a turned head from a lopsided one
EXPRESSION_SPREAD = 0.35  # prior standard deviation of β


def fit_shape_and_pose(model: MorphableModel, landmarks: Tensor, size: int, iterations: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Fit α, β and p to landmarks.

    Args:
        landmarks: `(B, 468, 3)` in crop pixels, z smaller is nearer.
        size: crop size in pixels.

    Returns:
        α `(B, 80)`, β `(B, 64)`, p `(B, 6)`.
    """
    batch_size, device = len(landmarks), landmarks.device
    target = landmarks.float() / size
    target_depth = target[..., 2] - target[..., 2].mean(1, keepdim=True)
    mean = model.at_landmarks(model.mean.float())  # (468, 3)
    basis = model.at_landmarks(torch.cat([model.identity_basis, model.expression_basis]).float())  # (K, 468, 3)
    num_identity, num_shape = len(model.identity_basis), len(basis)
    spread = torch.ones(num_shape, device=device)
    spread[num_identity:] = EXPRESSION_SPREAD
    spread[num_identity + model.config.expression_names.index("tongueOut")] = 1e-3  # no landmark sees the tongue

    shape = torch.zeros(batch_size, num_shape, device=device)
    rotation = torch.eye(3, device=device).repeat(batch_size, 1, 1)
    translation = torch.zeros(batch_size, 3, device=device)
    for iteration in range(iterations):
        head = mean + torch.einsum("bk,knc->bnc", shape, basis)
        turned = head @ rotation.transpose(1, 2)
        x, y, z = (turned + translation[:, None]).unbind(-1)
        scale = FOCAL / (DISTANCE - z)

        # Derivatives of the camera-space points: shape, rotation increment, translation.
        d_shape = torch.einsum("bij,knj->bnik", rotation, basis)  # (B, 468, 3, K)
        d_rotation = -torch.linalg.cross(
            turned[..., None].expand(-1, -1, -1, 3), torch.eye(3, device=device).expand(batch_size, 468, 3, 3), dim=2
        )
        d_translation = torch.eye(3, device=device).expand(batch_size, 468, 3, 3)
        d_point = torch.cat([d_shape, d_rotation, d_translation], dim=-1)  # (B, 468, 3, K + 6)
        d_scale = (scale.square() / FOCAL)[..., None] * d_point[..., 2, :]
        d_u = scale[..., None] * d_point[..., 0, :] + x[..., None] * d_scale
        d_v = -(scale[..., None] * d_point[..., 1, :] + y[..., None] * d_scale)
        d_depth = -(FOCAL / DISTANCE) * (d_point[..., 2, :] - d_point[..., 2, :].mean(1, keepdim=True))
        residual = torch.cat(
            [
                (target[..., 0] - 0.5 - scale * x) / LANDMARK_NOISE,
                (target[..., 1] - 0.5 + scale * y) / LANDMARK_NOISE,
                (target_depth + FOCAL / DISTANCE * (z - z.mean(1, keepdim=True))) / DEPTH_NOISE,
            ],
            dim=1,
        )
        jacobian = torch.cat([d_u / LANDMARK_NOISE, d_v / LANDMARK_NOISE, d_depth / DEPTH_NOISE], dim=1)
        if iteration < 2:
            jacobian[..., :num_shape] = 0  # pose first, so that the shape does not explain a turned head

        prior = torch.cat([spread.pow(-2), torch.full((6,), 1e-6, device=device)])
        normal = jacobian.transpose(1, 2) @ jacobian + torch.diag(prior)
        gradient = (jacobian.transpose(1, 2) @ residual[..., None]).squeeze(-1)
        gradient[:, :num_shape] -= shape / spread.square()
        step = torch.linalg.solve(normal, gradient)
        shape = shape + step[:, :num_shape]
        shape[:, num_identity:] = shape[:, num_identity:].clamp(0, 1)
        rotation = rotation_matrix(step[:, num_shape : num_shape + 3]) @ rotation
        translation = translation + step[:, num_shape + 3 :]

    expression = torch.zeros(batch_size, MorphableCoefficients.SIZES[1], device=device)
    expression[:, : num_shape - num_identity] = shape[:, num_identity:]
    return shape[:, :num_identity], expression, torch.cat([rotation_vector(rotation), translation], dim=1)


def eye_frame(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre `(B, 2, 2)`, unit direction along `(B, 2, 2)` and width `(B, 2, 1)` of both eyes, from `(B, 468, 2+)` landmarks."""
    corners = landmarks[:, torch.tensor(EYE_CORNERS), :2]  # (B, eye, corner, 2)
    along = corners[:, :, 1] - corners[:, :, 0]
    width = along.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return corners.mean(2), along / width, width


def gaze_from_iris(landmarks: Tensor, iris: Tensor) -> Tensor:
    """ω `(B, 4)`: iris centres `(B, 2, 5, 2)` relative to the eye corners of `(B, 468, 3)` landmarks, in eye widths."""
    centre, along, width = eye_frame(landmarks)
    offset = (iris[:, :, 0] - centre) / width
    across = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    gaze = torch.stack([(offset * along).sum(-1), (offset * across).sum(-1)], dim=-1)
    return gaze.clamp(-0.5, 0.5).flatten(1)


def fit_illumination(normals: Tensor, albedo: Tensor, picture: Tensor, skin: Tensor, rounds: int = 3) -> Tensor:
    """γ `(B, 27)` from rendered normals and albedo and the picture, all `(B, H, W, 3)` (picture 0…1), on `skin` `(B, H, W)` bool.

    Pixels that the light does not explain (hair, glasses, cast shadows) lose their weight over the rounds.
    """
    basis = sh_basis(normals).flatten(1, 2)  # (B, N, 9)
    albedo, picture, weight = albedo.flatten(1, 2), picture.flatten(1, 2), skin.flatten(1).float()
    ridge = torch.diag(torch.tensor([1.0, 5, 5, 5, 20, 20, 20, 20, 20], device=normals.device))
    light = basis.new_zeros(len(basis), 9, 3)
    for _ in range(rounds):
        for channel in range(3):
            design = basis * albedo[..., channel, None]
            weighted = design * weight[..., None]
            light[:, :, channel] = torch.linalg.solve(
                weighted.mT @ design + ridge, (weighted.mT @ picture[..., channel, None]).squeeze(-1)
            )
        error = (picture - albedo * (basis @ light)).abs().amax(-1)
        typical = (error * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1e-6)
        weight = skin.flatten(1) / (1 + (error / (1.5 * typical + 1e-3)) ** 4)
    return light.flatten(1)


@torch.no_grad()
def fit(model: MorphableModel, landmarks: Tensor, iris: Tensor, picture: Tensor) -> MorphableCoefficients:
    """Reconstruct a batch of crops.

    Args:
        landmarks: `(B, 468, 3)` in crop pixels.
        iris: `(B, 2, 5, 2)` in crop pixels.
        picture: `(B, H, W, 3)` in 0…1, H = W.
    """
    size = picture.shape[1]
    identity, expression, pose = fit_shape_and_pose(model, landmarks, size)
    head = model(identity, expression)
    vertices = to_camera(head.vertices, pose)
    quarter = size // 4  # the light is smooth: a 64-pixel render is enough
    neutral = render(vertices, head.albedo, pose.new_zeros(len(pose), 27), model.triangles, quarter)
    small = torch.nn.functional.interpolate(picture.permute(0, 3, 1, 2), size=(quarter, quarter), mode="area").permute(0, 2, 3, 1)
    low, high = landmarks[..., :2].amin(1) / 4, landmarks[..., :2].amax(1) / 4
    grid = torch.arange(quarter, device=pose.device) + 0.5
    inside_x = (grid > low[:, :1]) & (grid < high[:, :1])
    inside_y = (grid > low[:, 1:]) & (grid < high[:, 1:])
    skin = neutral.mask & (neutral.normals[..., 2] > 0.25) & inside_x[:, None, :] & inside_y[:, :, None]
    illumination = fit_illumination(neutral.normals, neutral.albedo, small, skin)
    albedo = pose.new_zeros(len(pose), MorphableCoefficients.SIZES[2])
    return MorphableCoefficients(identity, expression, albedo, illumination, pose, gaze_from_iris(landmarks, iris))
