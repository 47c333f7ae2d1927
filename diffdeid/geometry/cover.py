"""Hiding faces that cannot be replaced.

`"fill"` and `"solid"` keep nothing of a face: the first continues the colours around it, the second is black. `"mosaic"` and
`"blur"` do not protect: networks trained on obfuscated faces recognise people in them (McPherson et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import get_args

import cv2
import numpy as np

from diffdeid.geometry.align import right_of
from diffdeid.geometry.boxes import part_of
from diffdeid.geometry.faces import whole_box
from diffdeid.geometry.mask import MASK_MARGIN, face_height, grown_hull
from diffdeid.options import Cover, DeidentifyOptions
from diffdeid.structures import Face

COVER_SCALE = DeidentifyOptions.cover_scale  # size of a cover in face boxes
CELLS = 6  # mosaic cells along a face; the blur is as coarse

AROUND = 0.5  # width of the surroundings that colours are continued from, in sizes of the cover
GRID = 48  # points along a side of the grid for the colours; finer detail would look smeared
SWEEPS = 4  # of the solver on each of its grids
FEATHER = 0.05  # width of the soft edge of a fill, outside the face, in sizes of the cover
GRAIN_BLUR = 1.0  # pixels; the detail that this blur removes is grain
SAMPLES = 192  # points along a side that are read of a large part
GRAIN_SAMPLE = 96  # pixels along a side of each corner in which grain is measured
GRAIN_TILE = 256  # pixels of the noise that is repeated over a picture
MOST_GRAIN = 8.0  # grey levels; more is texture, as of hair


def cover(
    picture: np.ndarray,
    faces: Sequence[Face],
    method: Cover = DeidentifyOptions.fallback,
    scale: float = COVER_SCALE,
    spared: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Hide whole faces.

    Args:
        picture: `(H, W, 3)` uint8 RGB.
        faces: a box is enough. `"fill"` hides their `silhouette`, the other methods a rectangle about it.
        method: what hides them.
        scale: size of a cover in face boxes.
        spared: `(H, W)` bool, pixels that stay as they are, because nothing of a face is left in them.
        out: holds the picture and gets the result; a copy when `None`.

    Returns:
        `(H, W, 3)` uint8. All other pixels are bit-identical, except the soft edge of `"fill"`.

    Raises:
        ValueError: `method` is unknown.
    """
    if method not in get_args(Cover):
        raise ValueError(f"`method` must be one of {get_args(Cover)}, got {method!r}.")
    result = picture.copy() if out is None else out
    if method == "fill":
        _fill(result, faces, scale, spared)
        return result
    for face in faces:
        region, origin = part_of(result, cover_box(face, scale))
        if region.size:
            hidden = np.zeros_like(region) if method == "solid" else _coarse(region, cover_box(face, scale), method)
            stays = None if spared is None else _at(spared, origin, region.shape)[..., None]
            region[:] = hidden if stays is None else np.where(stays, region, hidden)
    return result


def cover_box(face: Face, scale: float = COVER_SCALE) -> np.ndarray:
    """The box `(4,)` that a rectangular cover hides: the box of the face and of its landmarks, enlarged."""
    low, high = whole_box(face).astype(np.float64).reshape(2, 2)
    centre, half = (low + high) / 2, (high - low) / 2 * scale
    return np.concatenate([centre - half, centre + half])


def silhouette(face: Face, origin: Sequence[float], shape: tuple[int, int], scale: float = COVER_SCALE) -> np.ndarray:
    """Where a face is in a part of the picture that begins at `origin` (x, y) and has `shape` (height, width), bool.

    With landmarks it is their hull and the ellipse in the box. Without landmarks it is an ellipse that reaches as far as the
    enlarged box: turned with the face if there are five points, else upright.
    """
    return np.any([grown_hull(points - origin, margin, shape) > 0 for points, margin in _outlines(face, scale)], axis=0)


def _outlines(face: Face, scale: float) -> list[tuple[np.ndarray, float]]:
    """The parts of a silhouette: hulls of points `(n, 2)`, and by how many pixels each is grown."""
    if face.landmarks is None:
        return [(_ellipse(face, scale), 1)]
    points, growth = face.landmarks[:, :2].astype(np.float64), max(1, scale / COVER_SCALE)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    hull = centre + growth * (points - centre)
    return [(hull, max(1, (MASK_MARGIN + face.doubt) * face_height(hull))), (_ellipse(Face(face.box), growth), 1)]


def _at(mask: np.ndarray, origin: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The part of a mask of the whole picture that begins at `origin` (x, y) and has `shape` (height, width)."""
    return mask[origin[1] : origin[1] + shape[0], origin[0] : origin[0] + shape[1]]


def _coarse(region: np.ndarray, box: np.ndarray, method: Cover) -> np.ndarray:
    """A part of a picture in large cells, sharp or blurred."""
    height, width = region.shape[:2]
    cell = max(1, *((box[2:] - box[:2]) / CELLS))
    cells = (math.ceil(width / cell), math.ceil(height / cell))
    interpolation = cv2.INTER_NEAREST if method == "mosaic" else cv2.INTER_CUBIC
    return cv2.resize(cv2.resize(region, cells, interpolation=cv2.INTER_AREA), (width, height), interpolation=interpolation)


def _ellipse(face: Face, scale: float) -> np.ndarray:
    """An outline `(64, 2)` that reaches as far as the box of a face, enlarged, in all four directions."""
    low, high = face.box.astype(np.float64).reshape(2, 2)
    half, angles = scale * (high - low) / 2, np.linspace(0, 2 * np.pi, 64, endpoint=False)
    outline, right = np.stack([np.cos(angles), np.sin(angles)], axis=1), _right(face)
    if not right.any():
        return (low + high) / 2 + half * outline
    outline = outline * np.sort(half) @ np.array([right, [-right[1], right[0]]])  # a face is higher than wide
    return (low + high) / 2 + outline * max(half / np.abs(outline).max(axis=0))


def _right(face: Face) -> np.ndarray:
    """The horizontal of a face by its five points, `(2,)`, of length 1; 0 if it is not known."""
    if face.keypoints is None:
        return np.zeros(2)
    right = right_of(face.keypoints)
    length = np.linalg.norm(right)
    return right / length if 1e-6 < length < np.inf else np.zeros(2)


# The fill


def _fill(picture: np.ndarray, faces: Sequence[Face], scale: float, spared: np.ndarray | None) -> None:
    """Continue the colours around faces into them, in place.

    The fill of one face never takes colours from another face: all faces count as unknown.
    """
    hidden = np.zeros(picture.shape[:2], bool)
    places = []
    for face in faces:
        box = _reach(face, scale)
        part, origin = part_of(hidden, box)
        if part.size:
            shown = silhouette(face, origin, part.shape, scale)
            if spared is not None:
                shown &= ~_at(spared, origin, part.shape)
            part |= shown
            places.append((box, origin, shown))
    for box, origin, shown in places:
        size = max(box[2:] - box[:2])
        around, corner = part_of(picture, box + size * AROUND * np.array([-1, -1, 1, 1]))
        known = ~_at(hidden, corner, around.shape)
        edge = max(1, FEATHER * size)
        region, start = part_of(picture, box + edge * np.array([-1, -1, 1, 1]))
        own = np.zeros(region.shape[:2], bool)
        _at(own, origin - start, shown.shape)[:] = shown
        filled = _at(_continued(around, known), start - corner, region.shape) + _grain(around, known) * _noise(start, own.shape)
        opacity = (1 - cv2.distanceTransform((~own).astype(np.uint8), cv2.DIST_L2, 5) / edge).clip(0, 1)
        opacity[_at(hidden, start, own.shape) & ~own] = 0  # belongs to other faces
        if spared is not None:
            opacity[_at(spared, start, own.shape)] = 0
        soft = (opacity > 0) & ~own
        mixed = region[soft] + opacity[soft, None] * (filled[soft] - region[soft])
        region[soft], region[own] = mixed.round().clip(0, 255), filled[own].round().clip(0, 255)


def _reach(face: Face, scale: float) -> np.ndarray:
    """The box `(4,)` of the silhouette of a face."""
    points = np.concatenate([sign * margin + outline for outline, margin in _outlines(face, scale) for sign in (-1, 1)])
    return np.concatenate([points.min(axis=0) - 1, points.max(axis=0) + 1])


def _continued(region: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Smooth colours, float32, that meet those of the known pixels: the solution of Laplace's equation on a coarse grid."""
    height, width = known.shape
    stride = max(1, max(height, width) // SAMPLES)  # large parts are read at every so many pixels
    factor = min(1, GRID / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    seen = known[::stride, ::stride].astype(np.float32)
    weight = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
    colours = cv2.resize(region[::stride, ::stride] * seen[..., None], size, interpolation=cv2.INTER_AREA)
    return cv2.resize(_harmonic(colours, weight), (width, height), interpolation=cv2.INTER_CUBIC)


def _harmonic(colours: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Continue colours `(h, w, 3)`, which come times their weight `(h, w)`, to where it is 0; grey if it is 0 everywhere."""
    height, width = weight.shape
    fixed = weight > 1e-3
    values = np.where(fixed[..., None], colours / weight[..., None].clip(1e-3), 127.5).astype(np.float32)
    if fixed.all() or not fixed.any():
        return values
    half = ((width + 1) // 2, (height + 1) // 2)
    coarse = _harmonic(
        cv2.resize(colours, half, interpolation=cv2.INTER_AREA), cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    )
    guess = cv2.resize(coarse.reshape(*half[::-1], 3), (width, height), interpolation=cv2.INTER_LINEAR)
    solution = np.where(fixed[..., None], values, guess)
    for _ in range(SWEEPS):
        solution = np.where(fixed[..., None], values, cv2.blur(solution, (3, 3), borderType=cv2.BORDER_REPLICATE))
    return solution


def _grain(region: np.ndarray, known: np.ndarray) -> float:
    """The standard deviation of the grain in the corners, in grey levels; 0 if too few pixels are known there."""
    residuals = []
    for rows in (slice(None, GRAIN_SAMPLE), slice(-GRAIN_SAMPLE, None)):
        for columns in (slice(None, GRAIN_SAMPLE), slice(-GRAIN_SAMPLE, None)):
            grey = cv2.cvtColor(np.ascontiguousarray(region[rows, columns]), cv2.COLOR_RGB2GRAY).astype(np.float32)
            seen = known[rows, columns].astype(np.uint8)
            inside = cv2.erode(seen, np.ones((9, 9)), borderType=cv2.BORDER_REPLICATE) > 0  # no hidden pixel counts
            residuals.append(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), GRAIN_BLUR))[inside])
    residual = np.concatenate(residuals)
    return min(1.4826 * float(np.median(residual)), MOST_GRAIN) if residual.size else 0.0


def _noise(start: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The noise of a part of a picture, `(height, width, 1)`. It depends on the place alone, so that a video does not flicker."""
    columns, rows = (np.arange(length) + first for length, first in zip(shape[::-1], start, strict=True))
    return _grain_tile()[np.ix_(rows % GRAIN_TILE, columns % GRAIN_TILE)]


@cache
def _grain_tile() -> np.ndarray:
    """Noise `(GRAIN_TILE, GRAIN_TILE, 1)` whose `_grain` is 1."""
    noise = np.random.default_rng(0).standard_normal((GRAIN_TILE, GRAIN_TILE)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.6, borderType=cv2.BORDER_REFLECT)
    return (noise / (noise - cv2.GaussianBlur(noise, (0, 0), GRAIN_BLUR)).std())[..., None]
