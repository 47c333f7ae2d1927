"""Eyeballs that look where ω says: iris, pupil and sclera painted on the rendered eyeballs, pixel by pixel.

An eyeball of the mesh has 72 vertices, too few for an iris. But their directions from the eye's centre interpolate well.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffdeid.geometry.camera import DISTANCE, FOCAL, project
from diffdeid.geometry.landmarks import EYE_CORNERS

IRIS_ANGLE = 0.5  # radians from the gaze: an iris 11.7 mm across on an eyeball of 24 mm
PUPIL_ANGLE = 0.18
SOFT_EDGE = 0.08
IRIS_COLOUR = (0.23, 0.15, 0.10)
PUPIL_COLOUR = (0.03, 0.03, 0.03)


def eye_frame(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre `(B, 2, 2)`, unit direction along `(B, 2, 2)` and width `(B, 2, 1)` of both eyes, from `(B, 468, 2+)` landmarks."""
    corners = landmarks[:, torch.tensor(EYE_CORNERS), :2]  # (B, eye, corner, 2)
    along = corners[:, :, 1] - corners[:, :, 0]
    width = along.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return corners.mean(2), along / width, width


def iris_centres(landmarks: Tensor, gaze: Tensor) -> Tensor:
    """Where ω `(B, 4)` puts the irises, `(B, 2, 2)`, in the pixels of the landmarks `(B, 468, 2+)`."""
    centre, along, width = eye_frame(landmarks)
    across = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    offset = gaze.unflatten(-1, (2, 2))
    return centre + width * (offset[..., :1] * along + offset[..., 1:] * across)


def gaze_from_iris(landmarks: Tensor, iris: Tensor) -> Tensor:
    """ω `(B, 4)`: iris centres `(B, 2, 5, 2)` relative to the eye corners of `(B, 468, 3)` landmarks, in eye widths."""
    centre, along, width = eye_frame(landmarks)
    offset = (iris[:, :, 0] - centre) / width
    across = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    gaze = torch.stack([(offset * along).sum(-1), (offset * across).sum(-1)], dim=-1)
    return gaze.clamp(-0.5, 0.5).flatten(1)


def gaze_directions(centres: Tensor, radii: Tensor, irises: Tensor, size: int) -> Tensor:
    """The gaze, `(B, 2, 3)` unit vectors in camera space, with which each iris is seen at its pixel.

    Args:
        centres: `(B, 2, 3)` eyeballs in camera space, decimetres.
        radii: `(B, 2)`.
        irises: `(B, 2, 2)` iris centres in pixels of a crop of `size`.
    """
    ray = (irises / size - 0.5) / FOCAL
    ray = normalize(torch.stack([ray[..., 0], -ray[..., 1], -torch.ones_like(ray[..., 0])], dim=-1), dim=-1)
    to_eye = centres - centres.new_tensor([0, 0, DISTANCE])
    along = (ray * to_eye).sum(-1, keepdim=True)
    nearest = along * ray - to_eye  # from the eye's centre to the nearest point of the line of sight
    depth = (radii[..., None].square() - nearest.square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
    return normalize(nearest - depth * ray, dim=-1)


def eye_coordinates(vertices: Tensor, landmarks: Tensor, eyeballs: Tensor, gaze: Tensor) -> Tensor:
    """Directions from the centres of the eyes to their vertices, `(B, V, 3)`, the first axis along the gaze; zeros on skin.

    Args:
        vertices: `(B, V, 3)` in camera space.
        landmarks: `(B, 468, 3)` in camera space.
        eyeballs: `(V,)`, 1 the right eyeball, 2 the left, 0 skin. A head without eyeballs is all skin.
        gaze: ω `(B, 4)`.
    """
    coordinates = torch.zeros_like(vertices)
    balls = [vertices[:, eyeballs == eye] for eye in (1, 2)]
    centres = torch.stack([ball.mean(1) for ball in balls], dim=1)
    offsets = [ball - centre[:, None] for ball, centre in zip(balls, centres.unbind(1), strict=True)]
    radii = torch.stack([offset.norm(dim=-1).mean(1) for offset in offsets], dim=1)
    forward = gaze_directions(centres, radii, iris_centres(project(landmarks, 1)[..., :2], gaze), size=1)
    sideways = normalize(torch.linalg.cross(forward.new_tensor([0, 1, 0]).expand_as(forward), forward), dim=-1)
    frame = torch.stack([forward, sideways, torch.linalg.cross(forward, sideways)], dim=-1)  # (B, 2, 3, 3)
    for eye, offset in enumerate(offsets):
        coordinates[:, eyeballs == eye + 1] = normalize(offset, dim=-1) @ frame[:, eye]
    return coordinates


def paint_eyes(albedo: Tensor, coordinates: Tensor) -> Tensor:
    """Paint irises and pupils on albedo `(B, H, W, 3)` by interpolated `eye_coordinates` `(B, H, W, 3)`."""
    length = coordinates.norm(dim=-1, keepdim=True)
    angle = torch.acos((coordinates[..., :1] / length.clamp_min(1e-6)).clamp(-1, 1))
    for edge, colour in ((IRIS_ANGLE, IRIS_COLOUR), (PUPIL_ANGLE, PUPIL_COLOUR)):
        opacity = ((edge - angle) / SOFT_EDGE + 0.5).clamp(0, 1) * (length > 0.5)
        albedo = albedo + opacity * (albedo.new_tensor(colour) - albedo)
    return albedo
