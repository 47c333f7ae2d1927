"""Left-right mirroring of a face's coefficients. Axes and orders: docs/conventions.md."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffdeid.structures import MorphableCoefficients

_UNITS = """
    browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft cheekSquintRight
    eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight eyeLookOutLeft eyeLookOutRight
    eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward jawLeft jawOpen jawRight
    mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft
    mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower
    mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight
    noseSneerLeft noseSneerRight tongueOut"""
EXPRESSION_UNITS = _UNITS.split()


def _mirrored_name(name: str) -> str:
    if name.endswith("Left"):
        return name.removesuffix("Left") + "Right"
    return name.removesuffix("Right") + "Left" if name.endswith("Right") else name


def expression_twins(names: Sequence[str]) -> list[int]:
    """Index of the same unit on the other side, or of the unit itself if it has no side."""
    return [names.index(_mirrored_name(name)) for name in names]


def _signed_permutation() -> tuple[Tensor, Tensor]:
    """Source index and sign of each of the 261 mirrored coefficients; α and δ stay (their bases are symmetric)."""
    slots = torch.arange(sum(MorphableCoefficients.SIZES))
    _, expression, _, illumination, pose, gaze = slots.split(MorphableCoefficients.SIZES)
    order, sign = slots.clone(), torch.ones(len(slots))
    order[expression[: len(EXPRESSION_UNITS)]] = expression[expression_twins(EXPRESSION_UNITS)]
    order[gaze] = gaze[[2, 3, 0, 1]]
    sign[gaze[[0, 2]]] = -1  # along the corner line; down stays down
    sign[illumination.reshape(9, 3)[[3, 4, 7]]] = -1  # the harmonics odd in x: x, xy, xz
    sign[pose[[1, 2, 3]]] = -1  # rotation about y and z, translation along x
    return order, sign


ORDER, SIGN = _signed_permutation()


def mirror_coefficients(coefficients: Tensor) -> Tensor:
    """The `(..., 261)` coefficients of the mirrored picture."""
    return coefficients[..., ORDER.to(coefficients.device)] * SIGN.to(coefficients)
