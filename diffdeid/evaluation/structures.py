"""What an evaluation is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from diffdeid.evaluation.examiner import ExaminedFace

Block = Literal["privacy", "attacks", "utility", "quality", "video", "coverage", "cost"]

SHARES = ("rank-", "TPR", "EER", "same ", "face found", "no face", "faces left", "faces covered", "floor of K")


@dataclass(frozen=True)
class Metric:
    """One number of a table.

    Attributes:
        block: the part of the table.
        name: with what measures it in brackets: "rank-1 [faceplugin]".
        value: NaN where it cannot be measured.
        unit: "%", "°", "dB", …; empty for plain numbers. Shares are 0…1 and carry no unit.
        interval: 95 % bootstrap interval, or `None`.
        chance: what a method gets that gives nothing away, or `None`.
        alarm: the number shows that identity leaks, or that a face was missed.
        floor: what the surroundings of the face give away by themselves, whatever a method does in the face, or `None`.
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
    """A face and what became of it.

    Attributes:
        name: of the picture, relative to its folder, without suffix.
        person: who it is.
        source, result: the face before and after.
        crops: uint8 `(224, 224, 3)` of both pictures, in the same window.
        numbers: of this picture alone, by name.
    """

    name: str
    person: str
    source: ExaminedFace
    result: ExaminedFace
    crops: tuple[np.ndarray, np.ndarray]
    numbers: dict[str, float]


def in_percent(metric: Metric) -> Metric:
    """Shares, which are 0…1, as people read them; other metrics as they are."""
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
    """All about one method on one set of pictures, or about one clip.

    Attributes:
        method: the name of the method, of the folder of results or of the clip.
        metrics: the numbers of the table.
        pairs: of pictures.
        scores: of pictures, by recogniser.
        frames: of a clip, a row per face of every measured frame: `frame`, `time` (seconds), `track` (from 0; -1 for a face
            without landmarks, which has no numbers but `unprocessed`), `found` (in the result), and numbers by name, NaN where
            unknown.
    """

    method: str
    metrics: list[Metric] = field(default_factory=list)
    pairs: list[ExaminedPair] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    frames: list[dict[str, float]] = field(default_factory=list)
