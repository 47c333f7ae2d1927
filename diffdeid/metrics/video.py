"""How consistent a de-identified clip is over time, and with the clip it was made from.

T frames come in order. Embeddings are unit vectors of one recogniser, for one track of one face; frames without a face are left
out. Coefficients are ρ `(261,)` of docs/conventions.md; rows of NaN (no face) are left out. What cannot be measured is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from diffdeid.structures import MorphableCoefficients

SWITCH_WINDOW = 5  # frames averaged on either side of a possible change of person
SWITCH_LEAST = 3  # at the ends of a track; with two frames, one bad frame would be half of the mean
STILL = 1e-3  # of the face's size: a landmark that moves less (standard deviation) stands still


def identity_consistency(embeddings: np.ndarray) -> dict[str, float]:
    """Whether a face stays one person: cosines, -1…1, of embeddings `(T, d)`.

    `mean` and `min` are of consecutive frames; `to mean` is the mean over frames of the cosine to the track's mean.
    """
    if len(embeddings) < 2:
        return dict.fromkeys(("mean", "min", "to mean"), float("nan"))
    consecutive, central = _cosines(embeddings[1:], embeddings[:-1]), _cosines(embeddings, embeddings.mean(0, keepdims=True))
    return {"mean": float(consecutive.mean()), "min": float(consecutive.min()), "to mean": float(central.mean())}


def source_similarity(source: np.ndarray, result: np.ndarray) -> dict[str, float]:
    """How much of the source's identity is left: `mean` and `max` over frames of the cosine, -1…1, of `(T, d)` embeddings.

    The maximum is what counts: one frame may give the person away.
    """
    cosines = _cosines(source, result)
    return {"mean": float(cosines.mean()), "max": float(cosines.max())}


def identity_switches(embeddings: np.ndarray, limit: float) -> int:
    """How often the person changes within a track.

    A change lies between two frames where the mean embeddings, of `(T, d)`, of the `SWITCH_WINDOW` frames before and after have a
    cosine below the limit for one person, and lower than anywhere else within that window. The means make single bad frames
    harmless. So a person who is shown for fewer frames than about a window does not count either.
    """
    cuts = np.arange(SWITCH_LEAST, len(embeddings) - SWITCH_LEAST + 1)
    sides = [(embeddings[max(0, cut - SWITCH_WINDOW) : cut], embeddings[cut : cut + SWITCH_WINDOW]) for cut in cuts]
    cosines = np.array([_cosines(before.mean(0), after.mean(0)) for before, after in sides])
    switches: list[int] = []
    for index in np.argsort(cosines, kind="stable"):
        if cosines[index] < limit and all(abs(index - other) >= SWITCH_WINDOW for other in switches):
            switches.append(index)
    return len(switches)


def warping_error(real: Sequence[np.ndarray], anon: Sequence[np.ndarray], mask: np.ndarray) -> tuple[float, float]:
    """Flicker: how much a frame differs from the one before, moved as the source moves (after Lai et al. 2018).

    The flow (DIS, Kroeger et al. 2016) is the source's, so that a result cannot hide its flicker in its own flow. Points whose
    flow forwards and backwards disagrees (test and constants of Sundaram et al. 2010) are occluded and left out. The differences
    are absolute, not squared, and in parts of the range of pixels.

    Args:
        real, anon: two consecutive uint8 `(H, W, 3)` frames of the source and of the result.
        mask: `(H, W)` bool, where to measure, in the second frame.

    Returns:
        Errors, 0…1, of the result and of the source itself, which shows how much of it the method did not cause.
    """
    if not mask.any():
        return float("nan"), float("nan")
    lines = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    room = 16 + max(map(np.ptp, lines)) // 2  # for what moves in from around the face
    window = tuple(slice(max(0, line[0] - room), line[-1] + room + 1) for line in lines)
    real, anon, inside = [frame[window] for frame in real], [frame[window] for frame in anon], mask[window]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in real]
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there, back = estimator.calc(grey[0], grey[1], None), estimator.calc(grey[1], grey[0], None)
    origin = (np.dstack(np.indices(inside.shape)[::-1]) + back).astype(np.float32)  # of the second frame's points in the first

    def warped(first: np.ndarray) -> np.ndarray:
        return cv2.remap(first, origin, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    returning = warped(there)
    visible = np.square(returning + back).sum(-1) <= 0.01 * (np.square(returning) + np.square(back)).sum(-1) + 0.5
    visible &= inside & ((origin >= 0) & (origin <= np.subtract(inside.shape[::-1], 1))).all(-1)
    if not visible.any():
        return float("nan"), float("nan")
    error, own = (np.abs(pair[1][visible] - warped(pair[0].astype(np.float32))[visible]).mean() / 255 for pair in (anon, real))
    return float(error), float(own)


def landmark_correlation(source: np.ndarray, result: np.ndarray) -> float:
    """Whether the landmarks move as those of the source do: Pearson correlation over time, -1…1 (after BLANKET, 2025).

    Landmarks are `(T, 468, 2)` in picture pixels; the value is the mean over landmarks and axes. Trajectories that stand still in
    the source are left out; those that stand still only in the result count 0. Movement is measured in sizes of the source's face
    (the mean side of its boxes).
    """
    before, after = ((points - points.mean(0)).astype(np.float64) / np.ptp(source, axis=1).mean() for points in (source, result))
    deviations = before.std(0), after.std(0)
    moving, following = (deviation > STILL for deviation in deviations)
    if len(source) < 3 or not moving.any():
        return float("nan")
    correlation = (before * after).mean(0) / np.where(moving & following, deviations[0] * deviations[1], np.inf)
    return float(correlation[moving].mean())


def expression_cosine(source: np.ndarray, result: np.ndarray) -> float:
    """The paper's EXP for video: mean over frames of the cosine, -1…1, of β. Takes ρ `(T, 261)` of both."""
    return _coefficient_cosine(1, source, result)


def pose_cosine(source: np.ndarray, result: np.ndarray) -> float:
    """The paper's POSE for video: as `expression_cosine`, but of p, rotation (radians) and translation (decimetres)."""
    return _coefficient_cosine(4, source, result)


def gaze_cosine(source: np.ndarray, result: np.ndarray) -> float:
    """The paper's GAZE for video: as `expression_cosine`, but of ω."""
    return _coefficient_cosine(5, source, result)


def _coefficient_cosine(part: int, source: np.ndarray, result: np.ndarray) -> float:
    ends = np.cumsum(MorphableCoefficients.SIZES)[:-1]
    cosines = _cosines(*(np.split(packed, ends, axis=1)[part] for packed in (source, result)))
    known = cosines[~np.isnan(cosines)]
    return float(known.mean()) if len(known) else float("nan")


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of the vectors in the last axis; NaN where one of them is zero."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1, dtype=np.float64) / np.where(lengths > 0, lengths, np.nan)
