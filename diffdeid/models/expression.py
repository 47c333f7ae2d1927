"""The expression that shows on another head what it showed on the old one.

A fit shares out what landmarks show between α and β. Both can open eyes and widen mouths, so about half of a closed lid or of a
smile ends up in α, and would be lost with it when α is exchanged. This is a deviation from the paper, whose ρ' keeps β.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from diffdeid.geometry.landmarks import (
    EYE_CORNERS,
    LEFT_BROW,
    LEFT_EYE,
    LIPS_INNER,
    LIPS_OUTER,
    LOWER_LIP_INNER,
    RIGHT_BROW,
    RIGHT_EYE,
    UPPER_LIP_INNER,
)
from diffdeid.models.morphable_model import MorphableModel

TOLERANCE = 0.004  # decimetres; with more, closed eyes stay half open; with less, new faces look more like the old ones
X, Y, Z = range(3)


@cache
def expression_features(device: torch.device) -> Tensor:
    """What tells expressions, as differences between landmarks: `(F, 468, 3)` factors of their coordinates.

    These are the heights of the openings of eyes and lips, where the corners of the mouth are, seen from its middle, how high
    brows are above the corners of their eye, and how far the inner ends of brows are from the middle of that eye.
    """
    features = []

    def add(axis: int, plus: tuple[int, ...], minus: tuple[int, ...]):
        feature = torch.zeros(468, 3)
        feature[list(plus), axis] += 1 / len(plus)
        feature[list(minus), axis] -= 1 / len(minus)
        features.append(feature)

    for eye in (RIGHT_EYE, LEFT_EYE):
        for lower, upper in zip(eye[1:8], eye[:8:-1], strict=True):
            add(Y, (lower,), (upper,))
    for lower, upper in zip(LOWER_LIP_INNER, UPPER_LIP_INNER, strict=True):
        add(Y, (lower,), (upper,))
    middle = (LIPS_OUTER[15], LIPS_OUTER[5], LIPS_INNER[15], LIPS_INNER[5])
    for corner in (LIPS_OUTER[0], LIPS_OUTER[10]):
        for axis in (X, Y, Z):
            add(axis, (corner,), middle)
    for brow, corners in zip((RIGHT_BROW, LEFT_BROW), EYE_CORNERS, strict=True):
        for point in brow:
            add(Y, (point,), corners)
        for inner in brow[4:6]:
            add(X, (inner,), corners)
    return torch.stack(features).to(device)


def keep_expression(model: MorphableModel, shape: Tensor, expression: Tensor, new_shape: Tensor) -> Tensor:
    """β' `(B, 64)` with which a head of α' = `new_shape` `(B, 80)` shows the expression of α `(B, 80)` and β `(B, 64)`.

    It minimises |Φ(α', β') - Φ(α, β)|² / `TOLERANCE`² + |W (β' - β)|², where Φ are the `expression_features` and W is the model's
    prior, within the bounds of β.
    """
    features = expression_features(expression.device).flatten(1) / TOLERANCE
    by_shape, by_expression = (
        features @ model.at_landmarks(basis.float()).flatten(1).mT for basis in (model.identity_basis, model.expression_basis)
    )
    whitening, known = model.expression_whitening.float(), expression[:, : len(model.expression_basis)].float()
    lost = (shape - new_shape)[:, : len(model.identity_basis)].float() @ by_shape.mT
    system = by_expression.mT @ by_expression + whitening.mT @ whitening
    target = lost @ by_expression + known @ system
    if model.config.expression_bounded:
        found = minimise_between_0_and_1(system, target)
    else:
        found = torch.linalg.solve(system, target.mT).mT
    return torch.cat([found, expression[:, known.shape[1] :]], dim=1)


def minimise_between_0_and_1(system: Tensor, target: Tensor, rounds: int = 100, penalty: float = 0.2) -> Tensor:
    """The x `(B, K)` of 0…1 with the least x·Ax/2 - x·b, for a positive definite A `(K, K)` and each b of `target` `(B, K)`.

    Alternating directions (ADMM, Boyd et al. 2011): in turn the minimum without bounds near z, and the nearest z within them.
    """
    scale = system.diagonal().sqrt()
    system, target = system / scale / scale[:, None], target / scale
    inverse = torch.linalg.inv(system + penalty * torch.eye(len(scale), device=scale.device))
    bounded = dual = torch.zeros_like(target)
    for _ in range(rounds):
        free = (target + penalty * (bounded - dual)) @ inverse
        bounded = torch.minimum((free + dual).clamp(min=0), scale)
        dual = dual + free - bounded
    return bounded / scale
