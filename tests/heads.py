"""Pictures of rendered heads."""

import math

import numpy as np
import torch

from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.eyes import eye_coordinates
from diffdeid.geometry.renderer import render
from diffdeid.models.morphable_model import MorphableModel
from tests.conftest import ROOT

SIZE = 288  # of the rendered head, pixels


def profile_picture(size: int, corner: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of `size` pixels with a head in profile whose square begins at `(corner, corner)`, and its landmarks."""
    head = MorphableModel.from_pretrained(ROOT / "weights/diffdeid/morphable_model").float()
    built = head(0.5 * torch.randn(1, 80, generator=torch.Generator().manual_seed(3)), torch.zeros(1, 64))
    pose = torch.tensor([[0.0, math.radians(75), 0, 0, 0, 0]])
    placed, marks = (to_camera(points, pose) for points in (built.vertices, built.landmarks))
    light = torch.zeros(1, 9, 3)
    light[:, 0] = 3
    eyes = eye_coordinates(placed, marks, head.eyeballs, torch.zeros(1, 4))
    shown = render(placed, built.albedo, light.flatten(1), head.triangles, SIZE, 0, eyes).image[0]
    picture = np.full((size, size, 3), 90, np.uint8)
    inside = shown.sum(-1, keepdim=True) > 0
    where = slice(corner, corner + SIZE)
    picture[where, where] = torch.where(inside, 255 * shown.clamp(0, 1), torch.tensor(90.0)).byte().numpy()
    return picture, project(marks, SIZE)[0, :, :2].numpy() + corner
