"""Least-squares reconstruction: landmarks, iris and pixels -> ρ.

Shape and pose are found by Gauss-Newton on the 468 reprojected landmarks, and on the distances between them that tell
expressions, with Gaussian priors (identity, expression) and β in [0, 1] (as in Blanz and Vetter 2003, with a perspective
camera). Skin and light follow by robust Gauss-Newton on the colours of the vertices (light: Ramamoorthi 2001). Then identity and
pose take a small step towards the pixels, and skin and light follow again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.geometry.eyes import gaze_from_iris
from diffdeid.geometry.lighting import sh_basis, shade
from diffdeid.geometry.rasterizer import rasterize
from diffdeid.geometry.renderer import vertex_normals
from diffdeid.geometry.rotation import rotation_matrix, rotation_vector
from diffdeid.models.expression import expression_features
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.structures import MorphableCoefficients

VISIBILITY_SIZE = 96  # side, in pixels, of the picture in which a vertex must be seen
PHOTOMETRIC_NOISE = 0.25  # standard deviation of a vertex' colour; larger than in truth, because errors of neighbours correlate
EDGE_NOISE = 0.05  # the same for colours that move a vertex; with less, landmarks get worse by more than colours get better
FEATURE_NOISE = 0.004  # decimetres, of distances between neighbouring landmarks, which err together


@dataclass(frozen=True)
class HeadFit:
    """Head shape and pose of a batch.

    Attributes:
        shape: α `(B, 80)`.
        expression: β `(B, 64)`.
        pose: p `(B, 6)`.
        information: `(B, K, K)`, the inverse covariance of [α ; β ; p] at the optimum, K = directions of the model + 6. It counts
            the landmarks of lids, lips and brows twice, by their places and by the distances between them.
    """

    shape: Tensor
    expression: Tensor
    pose: Tensor
    information: Tensor


def fit_shape_and_pose(model: MorphableModel, landmarks: Tensor, size: int, iterations: int = 6) -> HeadFit:
    """The most probable α, β and p given landmarks: Gauss-Newton with the model's priors.

    Args:
        landmarks: `(B, 468, 3)` in crop pixels, z smaller is nearer.
        size: crop size in pixels.
        iterations: Gauss-Newton steps.
    """
    batch_size, device = len(landmarks), landmarks.device
    target = landmarks.float() / size
    depth_mean = target[..., 2].mean(1, keepdim=True)
    mean = model.at_landmarks(model.mean.float())  # (468, 3)
    basis = model.at_landmarks(torch.cat([model.identity_basis, model.expression_basis]).float()).permute(1, 2, 0)  # (468, 3, K)
    centred_basis = basis - basis.mean(0)
    num_identity, num_shape = len(model.identity_basis), basis.shape[2]
    whitening = model.expression_whitening.float()
    centre = torch.cat([mean.new_zeros(num_identity), model.expression_mean.float()])
    prior = torch.block_diag(torch.eye(num_identity, device=device), whitening.mT @ whitening, 1e-6 * torch.eye(6, device=device))
    weight = (DISTANCE / FOCAL) / model.landmark_noise.float()  # (468, 2): per crop size
    weight = torch.stack([weight[:, 0], weight[:, 0], weight[:, 1]]).flatten()  # x of all, y of all, z of all
    relative = expression_features(device)[..., :2].mT.flatten(1) * (DISTANCE / FOCAL) / FEATURE_NOISE  # x of all, y of all

    shape = centre.repeat(batch_size, 1)
    rotation = torch.eye(3, device=device).repeat(batch_size, 1, 1)
    translation = torch.zeros(batch_size, 3, device=device)
    for iteration in range(iterations):
        head = mean + torch.einsum("bk,nck->bnc", shape, basis)
        turned = head @ rotation.transpose(1, 2)
        x, y, z = (turned + translation[:, None]).unbind(-1)
        scale = FOCAL / (DISTANCE - z)

        # Derivatives of u, v and z by shape, rotation increment and translation
        across = _picture_derivatives(turned, translation, rotation, basis)
        depth_by_shape = torch.einsum("bj,njk->bnk", rotation[:, 2], centred_basis)
        sideways = turned - turned.mean(1, keepdim=True)
        zero = torch.zeros_like(scale)
        depth_by_turn = torch.stack([sideways[..., 1], -sideways[..., 0], zero], dim=-1)
        depth = -FOCAL / DISTANCE * torch.cat([depth_by_shape, depth_by_turn, torch.zeros_like(turned)], dim=-1)
        jacobian = torch.cat([across, depth[:, None]], 1).flatten(1, 2)
        residual = torch.cat(
            [
                target[..., 0] - 0.5 - scale * x,
                target[..., 1] - 0.5 + scale * y,
                target[..., 2] - depth_mean + FOCAL / DISTANCE * (z - z.mean(1, keepdim=True)),
            ],
            dim=1,
        )
        in_picture = relative.shape[1]
        jacobian = torch.cat([weight[:, None] * jacobian, relative @ jacobian[:, :in_picture]], dim=1)
        residual = torch.cat([weight * residual, residual[:, :in_picture] @ relative.mT], dim=1)
        gradient = (jacobian.mT @ residual[..., None]).squeeze(-1)
        gradient[:, :num_shape] -= (shape - centre) @ prior[:num_shape, :num_shape]
        information = jacobian.mT @ jacobian + prior

        # Only the pose moves at first, so that the shape does not explain a turned head; later β at its bounds is held there.
        held = torch.zeros(batch_size, num_shape + 6, dtype=torch.bool, device=device)
        held[:, :num_shape] = iteration < 2
        if model.config.expression_bounded:
            expression, slope = shape[:, num_identity:], gradient[:, num_identity:num_shape]
            held[:, num_identity:num_shape] |= ((expression <= 0) & (slope < 0)) | ((expression >= 1) & (slope > 0))
        free = (~held).float()
        system = information * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free)
        step = _solve(system, gradient * free)
        shape = shape + step[:, :num_shape]
        if model.config.expression_bounded:
            shape[:, num_identity:] = shape[:, num_identity:].clamp(0, 1)
        rotation = rotation_matrix(step[:, num_shape : num_shape + 3]) @ rotation
        translation = translation + step[:, num_shape + 3 :]

    expression = torch.zeros(batch_size, MorphableCoefficients.SIZES[1], device=device)
    expression[:, : num_shape - num_identity] = shape[:, num_identity:]
    pose = torch.cat([rotation_vector(rotation), translation], dim=1)
    return HeadFit(shape[:, :num_identity], expression, pose, information)


def _picture_derivatives(turned: Tensor, translation: Tensor, rotation: Tensor, basis: Tensor) -> Tensor:
    """Derivatives of the places of points in the picture, in crop sizes, by shape, rotation increment and translation.

    Args:
        turned: `(B, N, 3)` points of the head after `rotation` `(B, 3, 3)`, before `translation` `(B, 3)`.
        basis: `(N, 3, K)`, how the shape moves the points of the head.

    Returns:
        `(B, 2, N, K + 6)`.
    """
    x, y, z = (turned + translation[:, None]).unbind(-1)
    scale = FOCAL / (DISTANCE - z)
    zero, slope = torch.zeros_like(scale), scale.square() / FOCAL
    rows = torch.stack([torch.stack([scale, zero, x * slope], -1), torch.stack([zero, -scale, -y * slope], -1)], dim=1)
    by_shape = torch.einsum("brnj,njk->brnk", torch.einsum("brni,bij->brnj", rows, rotation), basis)
    by_turn = torch.linalg.cross(turned[:, None].expand_as(rows), rows)
    return torch.cat([by_shape, by_turn, rows], dim=-1)


def _solve(system: Tensor, target: Tensor) -> Tensor:
    """Solve `system` `(B, K, K)` x = `target` for x `(B, K)`; the system is symmetric and positive definite."""
    scale = system.diagonal(dim1=-2, dim2=-1).mean(-1)
    system = system + 1e-7 * torch.diag_embed(scale[:, None].expand_as(target))  # degenerate landmarks: else singular
    return torch.cholesky_solve(target[..., None], torch.linalg.cholesky(system)).squeeze(-1)


def visible_vertices(model: MorphableModel, vertices: Tensor, normals: Tensor) -> Tensor:
    """The vertices of the face, camera space `(B, V, 3)`, that the camera sees, and not too obliquely: `(B, V)` bool."""
    seen = rasterize(project(vertices, VISIBILITY_SIZE), model.triangles, VISIBILITY_SIZE).triangle.flatten(1)  # (B, pixels)
    nothing = len(model.triangles)
    corners = torch.cat([model.triangles, model.triangles.new_full((1, 3), vertices.shape[1])])  # background sees a spare vertex
    shown = torch.zeros(len(vertices), vertices.shape[1] + 1, dtype=torch.bool, device=vertices.device)
    shown.scatter_(1, corners[torch.where(seen < 0, nothing, seen)].flatten(1), True)
    return shown[:, :-1] & (normals[..., 2] > 0.2) & (model.face_region > 0)


def sample_vertices(picture: Tensor, points: Tensor) -> Tensor:
    """Colours `(B, N, C)` of a picture `(B, H, W, C)` at `(B, N, 2)` points in crop sizes (0…1); linear interpolation."""
    planes, grid = picture.permute(0, 3, 1, 2), 2 * points[:, None] - 1
    return grid_sample(planes, grid, padding_mode="border", align_corners=False)[:, :, 0].mT


@dataclass(frozen=True)
class AppearanceFit:
    """Skin and light of a batch.

    Attributes:
        albedo: δ `(B, 80)`.
        illumination: γ `(B, 27)`.
        weight: `(B, F)`, 0…1, how well each vertex of the face region is seen and explained.
    """

    albedo: Tensor
    illumination: Tensor
    weight: Tensor


def fit_appearance(
    model: MorphableModel, vertices: Tensor, picture: Tensor, rounds: int = 4, start: AppearanceFit | None = None
) -> AppearanceFit:
    """The most probable δ `(B, 80)` and γ `(B, 27)`, by Gauss-Newton on both.

    Dark skin in bright light and bright skin in dim light look almost alike, so the priors must choose between them. Pixels that
    skin and light do not explain (hair, glasses, cast shadows) lose their weight.

    Args:
        vertices: `(B, V, 3)` in camera space.
        picture: `(B, H, W, 3)` in 0…1, H = W.
        rounds: Gauss-Newton steps.
        start: a fit with nearly the same geometry to go on from, with its visible vertices.
    """
    batch_size, device = len(vertices), vertices.device
    normals = vertex_normals(vertices, model.triangles)
    region = model.face_region.nonzero().squeeze(1)
    colour = sample_vertices(_halved(picture), project(vertices[:, region], 1)[..., :2])  # (B, F, 3)
    harmonics = sh_basis(normals[:, region])  # (B, F, 9)
    skin_mean, basis = model.albedo_mean[region].float(), model.albedo_basis[:, region].float().permute(1, 2, 0)  # (F, 3, K)
    num_skin = basis.shape[2]
    light_whitening = model.illumination_whitening.float()
    prior = torch.block_diag(torch.eye(num_skin, device=device), light_whitening.mT @ light_whitening)
    likeliest = torch.cat([prior.new_zeros(num_skin), model.illumination_mean.float()])

    if start is None:
        visible = visible_vertices(model, vertices, normals)[:, region].float()
        found, weight = likeliest.repeat(batch_size, 1), visible
    else:
        visible, weight = (start.weight > 0).float(), start.weight
        found = torch.cat([start.albedo[:, :num_skin], start.illumination], dim=1)

    def appearance() -> tuple[Tensor, Tensor]:
        shading = harmonics @ found[:, num_skin:].unflatten(1, (9, 3))
        return skin_mean + torch.einsum("bk,fck->bfc", found[:, :num_skin], basis), shading

    skin, shading = appearance()
    for _ in range(rounds):
        by_skin = basis * shading[..., None]  # (B, F, 3, K)
        by_light = torch.einsum("bfc,bfk,cd->bfckd", skin, harmonics, torch.eye(3, device=device)).flatten(3)
        design = torch.cat([by_skin, by_light], dim=-1).flatten(1, 2)  # (B, 3 F, K + 27)
        weighted = design * (weight / PHOTOMETRIC_NOISE**2)[..., None].expand(-1, -1, 3).flatten(1)[..., None]
        gradient = (weighted.mT @ (colour - skin * shading).flatten(1)[..., None]).squeeze(-1) - (found - likeliest) @ prior
        found = found + _solve(weighted.mT @ design + prior, gradient)
        skin, shading = appearance()
        error = (colour - skin * shading).abs().amax(-1)
        typical = torch.where(visible > 0, error, torch.nan).nanmedian(1, keepdim=True).values.nan_to_num()
        weight = visible / (1 + (error / (3 * typical + 1e-3)) ** 4)
    padded = vertices.new_zeros(batch_size, MorphableCoefficients.SIZES[2])
    padded[:, :num_skin] = found[:, :num_skin]
    return AppearanceFit(padded, found[:, num_skin:], weight)


def _halved(picture: Tensor) -> Tensor:
    """A picture `(B, H, W, 3)` at half its size, which is about one pixel for each vertex."""
    return avg_pool2d(picture.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def refine_shape_and_pose(model: MorphableModel, fitted: HeadFit, appearance: AppearanceFit, picture: Tensor) -> HeadFit:
    """A Gauss-Newton step of α and p towards the pixels. It is small because the landmarks still count (`fitted.information`).

    β stays, because it would make grimaces to explain details that the skin model lacks.

    Args:
        picture: `(B, H, W, 3)` in 0…1, H = W.
    """
    region = model.face_region.nonzero().squeeze(1)
    head = model(fitted.shape, fitted.expression, appearance.albedo)
    vertices = to_camera(head.vertices, fitted.pose)
    normals, vertices = vertex_normals(vertices, model.triangles)[:, region], vertices[:, region]
    half = _halved(picture)
    slopes = torch.gradient(half, spacing=1 / half.shape[1], dim=(2, 1))  # along x and y, per crop size
    sampled = sample_vertices(torch.cat([half, *slopes], dim=-1), project(vertices, 1)[..., :2])
    colour, slope = sampled[..., :3], sampled[..., 3:].unflatten(-1, (2, 3))  # (B, F, 3), (B, F, 2, 3)

    rotation, translation = rotation_matrix(fitted.pose[:, :3]), fitted.pose[:, 3:]
    basis = model.identity_basis[:, region].float().permute(1, 2, 0)
    moves = _picture_derivatives(vertices - translation[:, None], translation, rotation, basis)
    design = torch.einsum("bfrc,brfk->bfck", slope, moves).flatten(1, 2)  # (B, 3 F, 86)
    weight = (appearance.weight / EDGE_NOISE**2)[..., None].expand(-1, -1, 3).flatten(1)
    difference = (shade(head.albedo[:, region], normals, appearance.illumination) - colour).flatten(1)
    num_identity = basis.shape[2]
    free = torch.arange(fitted.information.shape[1], device=region.device)
    free = torch.cat([free[:num_identity], free[-6:]])
    system = (design * weight[..., None]).mT @ design + fitted.information[:, free[:, None], free]
    step = _solve(system, (design.mT @ (weight * difference)[..., None]).squeeze(-1))
    turn = rotation_vector(rotation_matrix(step[:, num_identity:-3]) @ rotation)
    return replace(fitted, shape=fitted.shape + step[:, :num_identity], pose=torch.cat([turn, translation + step[:, -3:]], dim=1))


@torch.no_grad()
def fit(model: MorphableModel, landmarks: Tensor, iris: Tensor, picture: Tensor) -> MorphableCoefficients:
    """Reconstruct a batch of crops.

    Args:
        landmarks: `(B, 468, 3)` in crop pixels.
        iris: `(B, 2, 5, 2)` in crop pixels.
        picture: `(B, H, W, 3)` in 0…1, H = W.
    """
    fitted = fit_shape_and_pose(model, landmarks, picture.shape[1])
    vertices = to_camera(model(fitted.shape, fitted.expression).vertices, fitted.pose)
    appearance = fit_appearance(model, vertices, picture)
    fitted = refine_shape_and_pose(model, fitted, appearance, picture)
    vertices = to_camera(model(fitted.shape, fitted.expression).vertices, fitted.pose)
    appearance = fit_appearance(model, vertices, picture, rounds=1, start=appearance)
    gaze = gaze_from_iris(landmarks, iris)
    return MorphableCoefficients(fitted.shape, fitted.expression, appearance.albedo, appearance.illumination, fitted.pose, gaze)
