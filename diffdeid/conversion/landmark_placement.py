"""Find where the 468 FaceMesh landmarks lie on a mesh. Needs scipy.

The head is rendered from nine sides, FaceMesh finds its landmarks in the pictures, and each is looked up on the surface there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.camera import project, to_camera
from diffdeid.geometry.landmarks import LOWER_LIP_INNER, UPPER_LIP_INNER
from diffdeid.geometry.rasterizer import interpolate, rasterize
from diffdeid.geometry.renderer import render

SIZE = 768  # pixels of the renders
DISTANCE = 2.5  # decimetres farther away than usual: the face fills two thirds of the picture, as FaceMesh wants it
SIDES = [torch.tensor([[pitch, yaw, 0, 0, 0, -DISTANCE]]) for yaw in (-0.3, 0.0, 0.3) for pitch in (-0.2, 0.0, 0.2)]

FaceMesh = Callable[[np.ndarray], np.ndarray | None]
"""A float picture `(H, W, 3)` in 0…1 -> its landmarks `(468, 3)` in pixels, or `None` when it shows no face."""


def place_landmarks(
    vertices: Tensor, albedo: Tensor, triangles: Tensor, skin: Tensor, opening: Tensor, facemesh: FaceMesh, symmetric: bool = True
) -> tuple[Tensor, Tensor]:
    """Place the landmarks on a head with closed lips.

    Args:
        vertices, albedo: `(V, 3)`, the face around the origin, decimetres.
        triangles: `(T, 3)`.
        skin: `(T,)` bool, where landmarks may lie.
        opening: `(V,)`, how far each vertex moves when the mouth opens: tells the lower lip from the upper one.
        facemesh: gives the landmarks of a render.
        symmetric: whether the right half of the mesh is the mirror image of the left.

    Returns:
        Corners `(468, 3)` int64, indices of vertices, and their barycentric weights `(468, 3)`.

    Raises:
        ConfigurationError: `facemesh` finds no face in a render.
    """
    shown = shown_triangles(vertices, triangles)
    points, twin = _locate(vertices, albedo, triangles, triangles[shown & skin], facemesh)
    lower, upper = list(LOWER_LIP_INNER), list(UPPER_LIP_INNER)
    points[lower] = points[upper]  # closed lips touch; FaceMesh's lower points fall into the crack
    if symmetric:
        points = (points + points[twin] * [-1, 1, 1]) / 2

    candidates = triangles[skin]
    moved = (opening[candidates].mean(1) > 0.3 * opening.max()).numpy()
    allowed = np.tile(shown[skin].numpy(), (468, 1))
    allowed[lower], allowed[upper] = moved, ~moved
    return snap_to_surface(points, vertices, candidates, allowed)


def shown_triangles(vertices: Tensor, triangles: Tensor, sides: list[Tensor] = SIDES) -> Tensor:
    """Which triangles, `(T,)` bool, are seen in some pose `(1, 6)` of `sides`: not the inside of the mouth, nor the sockets."""
    shown = torch.zeros(len(triangles), dtype=torch.bool)
    for pose in sides:
        triangle = rasterize(project(to_camera(vertices[None], pose), SIZE), triangles, SIZE).triangle
        shown[triangle[triangle >= 0].unique()] = True
    return shown


def _locate(
    vertices: Tensor, albedo: Tensor, triangles: Tensor, surface: Tensor, facemesh: FaceMesh
) -> tuple[np.ndarray, np.ndarray]:
    """The points on the triangles `surface` that FaceMesh finds, `(468, 3)`, and the indices of their mirror images, `(468,)`."""
    from scipy.ndimage import distance_transform_edt
    from scipy.optimize import linear_sum_assignment

    light = torch.zeros(1, 27)
    light[0, :3], light[0, 3:6], light[0, 6:9] = 0.75, 0.15, 0.2
    points, unlikeness = np.zeros((468, 3)), np.zeros((468, 468))
    for pose in SIDES:
        turned = to_camera(vertices[None], pose)
        picture = render(turned, albedo[None], light, triangles, SIZE).image[0].clamp(0, 1).numpy()
        landmarks, mirrored = facemesh(picture), facemesh(picture[:, ::-1].copy())
        if landmarks is None or mirrored is None:
            raise ConfigurationError(
                f"FaceMesh sees no face in the render of the mesh at pose {pose.tolist()[0]}. Expected a face of natural size in "
                "decimetres, x to the right of the picture, y up, z towards the viewer."
            )
        fragments = rasterize(project(turned, SIZE), surface, SIZE)
        seen = interpolate(vertices[None], surface, fragments)[0].numpy()
        row, column = distance_transform_edt(~fragments.mask[0].numpy(), return_distances=False, return_indices=True)
        x, y = np.clip(landmarks[:, :2].astype(int), 0, SIZE - 1).T
        points += seen[row[y, x], column[y, x]] / len(SIDES)
        # A mirrored picture shows which landmark is the mirror image of which.
        unlikeness += np.linalg.norm(landmarks[:, None] - (mirrored * [-1, 1, 1] + [SIZE, 0, 0]), axis=-1)
    _, twin = linear_sum_assignment(unlikeness)
    return points, twin


def snap_to_surface(points: np.ndarray, vertices: Tensor, triangles: Tensor, allowed: np.ndarray) -> tuple[Tensor, Tensor]:
    """The nearest places on the mesh: corners `(N, 3)` and weights `(N, 3)`; `allowed` `(N, T)` says on which triangles."""
    corners = vertices[triangles].numpy()  # (T, 3, 3)
    edge = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], -1)  # (T, 3, 2)
    inverse = np.linalg.pinv(edge)  # (T, 2, 3)
    nearest, weights = [], []
    for point, candidates in zip(points, allowed, strict=True):
        candidates = np.flatnonzero(candidates)
        local = np.einsum("tij,tj->ti", inverse[candidates], point - corners[candidates, 0])
        weight = np.clip(np.concatenate([1 - local.sum(-1, keepdims=True), local], -1), 0, None)
        weight /= weight.sum(-1, keepdims=True)
        distance = np.linalg.norm(np.einsum("tk,tki->ti", weight, corners[candidates]) - point, axis=-1)
        best = distance.argmin()
        nearest.append(candidates[best])
        weights.append(weight[best])
    return triangles[torch.from_numpy(np.stack(nearest))], torch.from_numpy(np.stack(weights)).float()
