"""The values of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from diffdeid.evaluation.examiner import ExaminedFace

Block = Literal["privacy", "attacks", "utility", "quality", "video", "coverage", "cost"]

FEW = 10  # pictures, below which five folds teach a classifier nothing, and shares say nothing about a method
SHARES = ("rank-", "TPR", "EER", "same ", "face found", "no face", "faces left", "faces covered", "floor of K")


@dataclass(frozen=True)
class Metric:
    """One number of a table.

    Attributes:
        block: the part of the table.
        name: with the measuring network in brackets, as in "rank-1 [faceplugin]".
        value: NaN where it cannot be measured.
        unit: "%", "°", "dB", …; empty for plain numbers. Shares are 0…1 and carry no unit.
        interval: 95 % bootstrap interval, or `None`.
        chance: the value of a method that gives nothing away, or `None`.
        alarm: whether the number shows that identity leaks, or that a face was missed.
        floor: what the surroundings of the face alone give away, whatever a method does to the face, or `None`.
    """

    block: Block
    name: str
    value: float
    unit: str = ""
    interval: tuple[float, float] | None = None
    chance: float | None = None
    alarm: bool = False
    floor: float | None = None


@dataclass(frozen=True)
class ExaminedPair:
    """A face before and after de-identification.

    Attributes:
        name: of the picture, relative to its folder, without suffix.
        person: whom it shows.
        source, result: the face before and after.
        crops: uint8 `(224, 224, 3)` of both pictures, in the same window.
        numbers: measured on this picture alone, by name.
    """

    name: str
    person: str
    source: ExaminedFace
    result: ExaminedFace
    crops: tuple[np.ndarray, np.ndarray]
    numbers: dict[str, float]


def in_percent(metric: Metric) -> Metric:
    """A share of 0…1 in percent; other metrics as they are."""
    if metric.unit or not (metric.name.startswith(SHARES) or " rank-1 [" in metric.name):
        return metric
    interval = metric.interval and (100 * metric.interval[0], 100 * metric.interval[1])
    chance, floor = (None if share is None else 100 * share for share in (metric.chance, metric.floor))
    return replace(metric, value=100 * metric.value, unit="%", interval=interval, chance=chance, floor=floor)


@dataclass(frozen=True)
class Scores:
    """Cosines by one recogniser, for curves and histograms.

    Attributes:
        genuine: `(n,)` originals against another (or, without one, the same) photo of their own.
        impostor: `(m,)` originals against other people's.
        deidentified: `(n,)` de-identified pictures against their person's photo.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    deidentified: np.ndarray


@dataclass
class Evaluation:
    """All results of one method on one set of pictures, or of one clip.

    Attributes:
        method: the name of the method, of the folder of results or of the clip.
        metrics: the numbers of the table.
        pairs: for pictures, the largest face of each.
        scores: for pictures, by recogniser.
        frames: for a clip, a row for each face of every measured frame: `frame`, `time` (seconds), `track` (from 0; -1 for a
            face without landmarks, which has only the number `unprocessed`), `found` (in the result), and numbers by name, NaN
            where unknown.
    """

    method: str
    metrics: list[Metric] = field(default_factory=list)
    pairs: list[ExaminedPair] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    frames: list[dict[str, float]] = field(default_factory=list)
