"""ρ -> the spatial conditions of the denoiser: SH-lit render I_3d, normals, feature lines, openings (docs/conventions.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_coordinates, iris_centres
from diffdeid.geometry.guides import feature_lines, openings
from diffdeid.geometry.pixels import on_host
from diffdeid.geometry.renderer import render
from diffdeid.models.expression import keep_expression
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients


@dataclass(frozen=True)
class Conditioning:
    """Rendered conditions of a batch.

    Attributes:
        maps: `(B, 8, H, W)` in [-1, 1]: render (3), normals (3), feature lines, openings of eyes and mouth.
        landmarks: `(B, 468, 2)` in pixels of the maps.
    """

    maps: Tensor
    landmarks: Tensor


def render_conditions(model: MorphableModel, coefficients: MorphableCoefficients, size: int, margin: int = 0) -> Conditioning:
    """Render all spatial conditions of ρ, at `size + 2 * margin` pixels a side."""
    head = model(coefficients.shape, coefficients.expression, coefficients.albedo)
    vertices, posed = (to_camera(points, coefficients.pose.float()) for points in (head.vertices, head.landmarks))
    eyes = eye_coordinates(vertices, posed, model.eyeballs, coefficients.gaze.float())
    picture = render(vertices, head.albedo, coefficients.illumination.float(), model.triangles, size, margin, eyes)
    landmarks = project(posed, size, margin)[..., :2]
    full = size + 2 * margin
    guides = np.stack(
        [
            [feature_lines(points, full), openings(points, gaze, full)]
            for points, gaze in zip(on_host(landmarks), on_host(coefficients.gaze.float()), strict=True)
        ]
    )
    channels_last = torch.cat([picture.image.clamp(0, 1) * 2 - 1, picture.normals], dim=-1)
    maps = torch.cat([channels_last.permute(0, 3, 1, 2), torch.from_numpy(guides).to(channels_last.device) * 2 - 1], dim=1)
    return Conditioning(maps, landmarks)


def place_marks(model: MorphableModel, coefficients: MorphableCoefficients, size: int) -> Tensor:
    """The landmarks and the centres of both irises by ρ, `(B, 470, 2)`, in pixels of crops of `size`."""
    posed = to_camera(model(coefficients.shape, coefficients.expression).landmarks, coefficients.pose.float())
    landmarks = project(posed, size)[..., :2]
    return torch.cat([landmarks, iris_centres(landmarks, coefficients.gaze.float())], dim=1)


def hide_skin_details(model: MorphableModel, coefficients: MorphableCoefficients) -> MorphableCoefficients:
    """ρ whose δ keeps only the tone of the skin, because brows, beard, lips and wrinkles are part of a person's identity."""
    albedo = coefficients.albedo.clone()
    albedo[:, model.config.num_tone :] = 0
    return replace(coefficients, albedo=albedo)


def exchange_shape(
    model: MorphableModel, coefficients: MorphableCoefficients, shape: Tensor, anchor: Sequence[int]
) -> MorphableCoefficients:
    """ρ with α' `(B, 80)` in place of α, and with the β' that shows the same expression on it (see `keep_expression`).

    The head is moved sideways so that the `anchor` landmarks stay where they were on average. Otherwise a longer face would pull
    the render's mouth away from a mouth that stays in the picture.
    """
    expression = keep_expression(model, coefficients.shape, coefficients.expression, shape)
    before = model(coefficients.shape, coefficients.expression).landmarks[:, anchor].mean(1, keepdim=True)
    after = model(shape, expression).landmarks[:, anchor].mean(1, keepdim=True)
    pose = coefficients.pose.float()
    shift = (to_camera(before, pose) - to_camera(after, pose))[:, 0] * pose.new_tensor([1, 1, 0])
    moved = torch.cat([pose[:, :3], pose[:, 3:] + shift], dim=1)
    return replace(coefficients, shape=shape, expression=expression, pose=moved)
