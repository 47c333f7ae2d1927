"""Learning from photographs which head shapes, expressions and skins are likely.

Shapes and expressions: expectation-maximisation for a Gaussian prior over linear coefficients, each face known only by its
landmarks. Skins: probabilistic PCA with missing values (Tipping and Bishop 1999; Roweis 1998), because a photograph shows only a
part of a face.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffdeid.errors import ConfigurationError
from diffdeid.geometry.camera import DISTANCE, FOCAL, project, to_camera
from diffdeid.geometry.rotation import rotation_matrix
from diffdeid.models.fitting import HeadFit
from diffdeid.models.morphable_model import MorphableModel

MIRROR = (-1.0, 1.0, 1.0)


def mirror_twins(points: Tensor) -> Tensor:
    """Index `(N,)` of the mirror image about x = 0 of each point `(N, 3)`; raises `ConfigurationError` unless all have one."""
    twins = torch.cdist(points * points.new_tensor(MIRROR), points).argmin(1)
    if not torch.equal(twins[twins], torch.arange(len(twins), device=twins.device)):
        raise ConfigurationError("The head is not symmetric, so left and right cannot be exchanged.")
    return twins


def landmark_residuals(model: MorphableModel, fitted: HeadFit, landmarks: Tensor, size: int) -> Tensor:
    """Seen minus fitted landmarks, `(B, 468, 2)`, camera axes (y up), decimetres at the head."""
    placed = project(to_camera(model(fitted.shape, fitted.expression).landmarks, fitted.pose), size)
    return (landmarks[..., :2] - placed[..., :2]) * landmarks.new_tensor([1, -1]) * (DISTANCE / (FOCAL * size))


def mean_offsets(fitted: HeadFit, residuals: Tensor, ridge: float = 20.0) -> Tensor:
    """The shift of each landmark in head space, `(468, 3)`, that best explains its residuals; left and right are independent.

    `ridge` is the weight of no shift, in faces.
    """
    across = rotation_matrix(fitted.pose[:, :3])[:, :2]  # head space -> across the line of sight
    system = torch.einsum("bij,bik->jk", across, across) + ridge * torch.eye(3)
    target = torch.einsum("bij,bni->jn", across, residuals)
    return torch.cholesky_solve(target, torch.linalg.cholesky(system)).mT


def covariances(fitted: HeadFit) -> Tensor:
    """The covariance of [α ; β ; p] of each face given its landmarks, `(B, K, K)`."""
    return torch.cholesky_inverse(torch.linalg.cholesky(fitted.information))


def learn_identity(model: MorphableModel, identity: Tensor, uncertainty: Tensor) -> None:
    """The M step: change the mean and the directions so that N(0, 1) is the prior of α, from fits and their mean covariance.

    Fits are `(N, K)`, the covariance is `(K, K)`. Directions are sorted by how much more the faces vary along them than the prior
    said.
    """
    centre = identity.mean(0)
    scatter = (identity - centre).mT @ (identity - centre) / len(identity) + uncertainty
    variances, axes = torch.linalg.eigh(scatter)
    model.mean += torch.einsum("k,kvc->vc", centre, model.identity_basis)
    turned = torch.einsum("kj,kvc->jvc", axes * variances.clamp_min(0).sqrt(), model.identity_basis)
    model.identity_basis.copy_(turned.flip(0))


def learn_expression(model: MorphableModel, expression: Tensor, uncertainty: Tensor, twins: Tensor) -> None:
    """Learn the prior of β from fits `(N, K)` and their mean covariance; `twins[k]` is the unit of the other side, or k."""
    names = model.config.expression_names
    both = torch.cat([expression, expression[:, twins]])
    centre = both.mean(0)
    scatter = (both - centre).mT @ (both - centre) / len(both) + (uncertainty + uncertainty[twins][:, twins]) / 2
    scatter += 1e-4 * torch.eye(len(names))
    if "tongueOut" in names:  # no landmark sees the tongue
        tongue = names.index("tongueOut")
        scatter[tongue], scatter[:, tongue] = 0, 0
        scatter[tongue, tongue], centre[tongue] = 1e-6, 0
    precision = torch.cholesky_inverse(torch.linalg.cholesky(scatter))
    model.expression_mean.copy_(centre)
    model.expression_whitening.copy_(torch.linalg.cholesky(precision).mT)


def probabilistic_pca(
    values: Tensor, weights: Tensor, num_directions: int, noise: float, rounds: int = 8
) -> tuple[Tensor, Tensor]:
    """Directions of unit-variance coefficients in data with gaps.

    Args:
        values: `(N, D)`, centred; arbitrary where the weight is 0.
        weights: `(N, D)`, 0…1, how well a value is known.
        num_directions: K.
        noise: standard deviation of a fully known value around the model.

    Returns:
        Directions `(K, D)`, most variance first, and the variance of each.
    """
    known = values * weights
    filled = known / weights.mean(0).clamp_min(0.05)
    _, singular, directions = torch.svd_lowrank(filled, num_directions + 8, niter=4)
    basis = (directions * singular / len(values) ** 0.5)[:, :num_directions]  # (D, K)
    unit = torch.eye(num_directions)
    for _ in range(rounds):
        system, target = torch.zeros(values.shape[1], num_directions, num_directions), torch.zeros_like(basis)
        scatter = torch.zeros_like(unit)
        for rows, row_weights in zip(known.split(64), weights.split(64), strict=True):
            information = torch.einsum("nd,dk,dl->nkl", row_weights, basis, basis) / noise**2 + unit
            covariance = torch.cholesky_inverse(torch.linalg.cholesky(information))
            score = (covariance @ (rows @ basis / noise**2)[..., None]).squeeze(-1)
            second = covariance + score[:, :, None] * score[:, None, :]
            system += torch.einsum("nd,nkl->dkl", row_weights, second)
            target += rows.mT @ score
            scatter += second.sum(0)
        basis = torch.cholesky_solve(target[..., None], torch.linalg.cholesky(system + 1e-3 * unit)).squeeze(-1)
        # scores of unit variance
        basis = basis @ torch.linalg.cholesky(scatter / len(values))
    left, singular, _ = torch.linalg.svd(basis, full_matrices=False)
    return (left * singular).mT, singular.square()
