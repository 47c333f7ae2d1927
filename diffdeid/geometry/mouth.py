"""What shows between the lips: an open mouth that is dark in the picture gets no teeth, and teeth get the picture's colour.

The conditions say how far a mouth is open, but not what shows in it, so a network may paint a block of teeth into a dark mouth.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffdeid.geometry.landmarks import LIPS_INNER, LOWER_LIP_INNER, UPPER_LIP_INNER
from diffdeid.geometry.mask import SHIFT, fixed_point
from diffdeid.geometry.pixels import on_host

BANDS = 3  # of an opening, one above the other: all that is read of the erased mouth is the mean colour of each
LINES = 4  # of a band, along which colours are read, and along which gains change
LEAST, WHOLE = 2 / 256, 5 / 256  # crop sizes; mean gaps between the lips from which on colours begin to count, and count fully
DARKEST, LIGHTEST = 0.15, 1.3  # gains; dark mouths have no teeth that gains could bring out
BLACK = 0.03  # is added to colours of 0…1 before they are compared, so that noise in dark places does not count
SOFTNESS = 1.5 / 256  # crop sizes; standard deviation of the blur of the gains, which begin so far inside the lips
MOST_HIDDEN = 0.5  # of a band, by something in front; one that is hidden more is not read, and gets no gain


def match_mouths(
    faces: Tensor, sources: Tensor, front: Tensor, marks: np.ndarray, landmarks: np.ndarray, trust: np.ndarray
) -> Tensor:
    """Multiply what is between the lips of generated faces by gains that bring it nearer to the colours in the pictures.

    The gains are those of `BANDS` bands from the upper lip to the lower one. Closed mouths, and all beyond the soft edge of an
    opening, stay bit-identical.

    Args:
        faces: `(B, 3, S, S)` in [-1, 1], generated crops, in the colours of their surroundings.
        sources: `(B, 3, S, S)` in [-1, 1], crops of the pictures.
        front: `(B, 1, S, S)`, 0…1, how much of a pixel is something in front of the face, whose colours do not count.
        marks: `(B, 468+, 2)`, where landmarks were meant to be, in crop pixels.
        landmarks: `(B, 468, 2+)`, those of the sources.
        trust: `(B,)`, 0…1, by how much of the gains to multiply; 0 where the places of the landmarks are not exact.
    """
    size = faces.shape[-1]
    new, old = (points[..., :2] for points in (marks, landmarks))
    gap = np.minimum(_heights(new).mean(-1), _heights(old).mean(-1)) / size
    weights = trust * ((gap - LEAST) / (WHOLE - LEAST)).clip(0, 1)
    rows = np.flatnonzero(weights > 0).tolist()
    if not rows:
        return faces
    wanted, visible = _band_colours(sources[rows], 1 - front[rows], old[rows])
    painted, _ = _band_colours(faces[rows], torch.ones_like(front[rows]), new[rows])
    gains = ((wanted + BLACK) / (painted + BLACK)).clamp(DARKEST, LIGHTEST).log()
    gains = on_host(gains * (visible >= 1 - MOST_HIDDEN)) * weights[rows, None, None]
    maps = np.stack([_gain_map(points, gain, size) for points, gain in zip(new[rows], gains, strict=True)])
    factors = torch.from_numpy(maps).to(faces.device).permute(0, 3, 1, 2).exp()
    matched = faces.clone()
    matched[rows] = torch.where(factors == 1, faces[rows], ((faces[rows] + 1) * factors - 1).clamp(-1, 1))
    return matched


def _heights(points: np.ndarray) -> np.ndarray:
    """How far the lips are open along the inner lips, `(B, 9)` pixels; 0 where they cross, as landmarks of closed lips may."""
    along = points[:, LIPS_INNER[10]] - points[:, LIPS_INNER[0]]
    down = np.stack([-along[:, 1], along[:, 0]], axis=-1) / np.linalg.norm(along, axis=-1, keepdims=True).clip(1e-6)
    between = points[:, list(LOWER_LIP_INNER)] - points[:, list(UPPER_LIP_INNER)]
    return (between * down[:, None]).sum(-1).clip(0)


def _lines(points: np.ndarray, size: int) -> np.ndarray:
    """Points between the lips, `(B, BANDS × LINES + 1, 9, 2)`: lines from the upper lip to the lower one, but not on them."""
    upper, lower = (points[:, None, list(lip)] for lip in (UPPER_LIP_INNER, LOWER_LIP_INNER))
    inset = (SOFTNESS * size / _heights(points).clip(1e-6)).clip(0, 0.25)[:, None]
    share = inset + (1 - 2 * inset) * np.linspace(0, 1, BANDS * LINES + 1)[:, None]
    return upper + share[..., None] * (lower - upper)


def _band_colours(pictures: Tensor, visible: Tensor, points: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean colours, 0…1, of the visible parts of the bands of openings, `(B, 3, BANDS)`, and these parts, `(B, 1, BANDS)`.

    Each column of an opening counts by its height.
    """
    lines, heights = _lines(points, pictures.shape[-1]), _heights(points)
    counts = torch.from_numpy(np.float32(heights / heights.sum(-1, keepdims=True))).to(pictures.device)[:, None, None]
    middles = torch.from_numpy(np.float32((lines[:, 1:] + lines[:, :-1]) / pictures.shape[-1] - 1)).to(pictures.device)
    seen = F.grid_sample(torch.cat([pictures, visible], dim=1).float(), middles, padding_mode="border", align_corners=False)
    colours, visible = seen.split([3, 1], dim=1)
    parts = (visible * counts).unflatten(2, (BANDS, LINES)).sum(dim=(3, 4))
    sums = (colours * visible * counts).unflatten(2, (BANDS, LINES)).sum(dim=(3, 4))
    return (sums / parts.clamp(min=1e-6) + 1) / 2, parts / LINES


def _gain_map(points: np.ndarray, gains: np.ndarray, size: int) -> np.ndarray:
    """The logarithms of the gains `(3, BANDS)` of the bands at each pixel, `(size, size, 3)`; 0 away from the opening."""
    lines, corners = _lines(points[None], size)[0], points[[LIPS_INNER[0], LIPS_INNER[10]]][:, None]
    lines = np.concatenate([corners[:1].repeat(len(lines), 0), lines, corners[1:].repeat(len(lines), 0)], axis=1)
    places = (np.arange(BANDS * LINES) + 0.5) / LINES - 0.5  # in bands, from the middle of the first
    colours = np.stack([np.interp(places, range(BANDS), channel) for channel in gains], axis=-1)
    canvas, points = np.zeros((size, size, 3), np.float32), fixed_point(lines)
    for line, following, colour in zip(points[:-1], points[1:], colours.tolist(), strict=True):
        for quad in zip(line[:-1], line[1:], following[1:], following[:-1], strict=True):
            cv2.fillConvexPoly(canvas, np.stack(quad), colour, cv2.LINE_8, SHIFT)
    return cv2.GaussianBlur(canvas, (0, 0), SOFTNESS * size)
