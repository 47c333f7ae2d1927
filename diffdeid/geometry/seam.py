"""The seam of a generated face: its colour is brought into line with the skin around it before it is laid over the picture.

The network paints the surroundings of the face too, with the same cast as the face; there the picture tells what the cast is.
So the border values are quotients of one and the same spot in both, from which the shading of jaw and neck cancels. They are
carried inwards smoothly, as differences are in P. Pérez et al., *Poisson image editing*, 2003, by a mean over inverse distances
as in Z. Farbman et al., *Coordinates for instant image cloning*, 2009, and *Convolution pyramids*, 2011.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import cv2
import numpy as np

from diffdeid.geometry.composite import FEATHER
from diffdeid.geometry.mask import depth_in

CELLS = 32  # a cast is smooth and calculated on a grid
# In crop sizes:
RING = 10 / 256  # width of the zones on both sides of the border that are compared; the inner one begins behind the feather
FRAME = 4 / 256  # networks paint the edge of their picture badly
BLUR = 12 / 256  # over which the two zones find each other
SOFTNESS = 18 / 256  # over which border values are averaged rather than met
# In natural logarithms of colour:
HUE, LIGHT = 0.15, 0.4  # skin is about this near to the median of the face, in log R/G and log B/G, and in log G
DISAGREEMENT = 0.5  # a spot that differs by more shows something else in both
FARTHEST = 0.35  # the most that is corrected
BLACK = np.float32(0.06)  # is added to all colours, so that noise in the dark does not count

NOTHING = 0.01  # weight of no cast all along the border, which decides where there is no evidence
SHARE = 0.3  # of the step across the border that is a fault; the rest is how heads are shaded (by regression on real ones)
PERSISTENCE = 0.9  # share of the frames before in the evidence


@dataclass(frozen=True)
class Cast:
    """What is seen around a face of how its colour is off, in cells of the crop; 0 away from the border.

    Attributes:
        weight: float32 `(CELLS, CELLS, 1)`, how much of a cell is evidence, 0…1.
        weighted: float32 `(CELLS, CELLS, 3)`, logarithms of the gains that the channels need there, times `weight`.
        border: float32 `(CELLS, CELLS, 1)`, how much of a cell lies along the border, 0…1.
    """

    weight: np.ndarray
    weighted: np.ndarray
    border: np.ndarray


def match(face: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A generated face without the cast that shows at its border.

    Args:
        face: `(S, S, 3)` float32 in [0, 1], the generated crop with its surroundings.
        source: `(S, S, 3)` uint8 crop of the picture. What is under the mask has no influence.
        mask: `(S, S)`, 1 where the face is erased.

    Returns:
        `(S, S, 3)` float32 in [0, 1]; differs under the mask only.
    """
    return correct(face, mask, measure(face, source, mask))


def match_steadily(face: np.ndarray, source: np.ndarray, mask: np.ndarray, before: Cast | None) -> tuple[np.ndarray, Cast]:
    """`match` for a frame of a video, by the evidence of all frames so far: `before` is what came with the last one, if any."""
    cast = measure(face, source, mask)
    if before is not None:  # crops move with faces; and where a frame shows little, it counts little
        cast = Cast(*(new + PERSISTENCE * (old - new) for old, new in zip(astuple(before), astuple(cast), strict=True)))
    return correct(face, mask, cast), cast


def measure(face: np.ndarray, source: np.ndarray, mask: np.ndarray) -> Cast:
    """Compare a generated crop with its source around the mask; arguments as for `match`."""
    size = len(mask)
    depth, away = depth_in(mask), cv2.distanceTransform(np.uint8(mask <= 0), cv2.DIST_L2, 5)
    seen = np.pad(np.ones((size - 2 * round(FRAME * size),) * 2, bool), round(FRAME * size))
    outside = seen & (away > 0) & (away <= RING * size)
    inside = seen & (depth > FEATHER * size) & (depth <= (FEATHER + RING) * size)
    old, new = np.zeros_like(face), face + BLACK
    old[outside] = source[outside] / np.float32(255) + BLACK

    # 1. the same spots in both pictures, where both show skin
    usual = np.median(new[depth >= depth.max() / 4], axis=0)
    outer, inner = np.zeros_like(depth), np.zeros_like(depth)
    outer[outside] = _skin(old[outside], usual) * _skin(new[outside], usual)
    inner[inside] = _skin(new[inside], usual)
    evidence = _in_cells(outer, old, new)
    gain = _log_quotient(evidence[..., 1:4], evidence[..., 4:])

    # 2. across the border of the generated picture, for somebody painted lighter or darker than the skin around
    outer, inner = (cv2.GaussianBlur(_in_cells(zone, new), (0, 0), BLUR * CELLS) for zone in (outer, inner))
    step = _log_quotient(outer[..., 1:] * inner[..., :1], inner[..., 1:] * outer[..., :1])
    gain += SHARE * _agreement(step) * step * inner[..., :1] / (inner[..., :1] + NOTHING)

    weight = evidence[..., :1] * _agreement(gain)
    return Cast(weight, weight * gain, _in_cells(outside))


def correct(face: np.ndarray, mask: np.ndarray, cast: Cast) -> np.ndarray:
    """A generated crop `(S, S, 3)` in [0, 1] without a cast under the mask `(S, S)`. By gains: black hair and pupils stay."""
    border = cast.border[..., 0] > 0
    cells, known = np.indices(border.shape, np.float32).reshape(2, -1, 1), np.argwhere(border).T[:, None]
    near = (np.square(cells - np.float32(known)).sum(0) + np.float32(SOFTNESS * CELLS) ** 2) ** -1.5  # as Farbman et al. 2011
    means = near @ np.dstack([cast.weighted, cast.weight + NOTHING * cast.border])[border]
    gain = np.exp((means[:, :3] / np.maximum(means[:, 3:], 1e-12)).clip(-FARTHEST, FARTHEST)).reshape(CELLS, CELLS, 3)
    gain = cv2.resize(gain, mask.shape, interpolation=cv2.INTER_CUBIC)
    return np.where(mask[..., None] > 0, ((face + BLACK) * gain - BLACK).clip(0, 1), face)


def _skin(colours: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """How much colours `(n, 3)` look like the usual one of a face, 0…1; hue counts for more than light."""
    red, green, blue = np.log(colours / usual).T
    return np.exp(-(np.square(red - green) + np.square(blue - green)) / (2 * HUE**2) - np.square(green) / (2 * LIGHT**2))


def _in_cells(weight: np.ndarray, *pictures: np.ndarray) -> np.ndarray:
    """Means over cells of a weight `(S, S)`, and of pictures `(S, S, 3)` times it: `(CELLS, CELLS, 1 + 3 …)`."""
    weight = np.float32(weight)[..., None]
    parts = [weight, *(weight * picture for picture in pictures)]
    return np.dstack([cv2.resize(part, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for part in parts])


def _log_quotient(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(dividend, 1e-6) / np.maximum(divisor, 1e-6))


def _agreement(gain: np.ndarray) -> np.ndarray:
    """Weights `(…, 1)` of border values `(…, 3)`, 0 for large ones: Tukey's biweight."""
    return np.square(1 - np.square((np.abs(gain).max(-1, keepdims=True) / DISAGREEMENT).clip(0, 1)))
