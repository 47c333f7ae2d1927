"""The few of all measured numbers that matter most, each with the question of a newcomer that it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from diffdeid.evaluation.examiner import FILTER
from diffdeid.evaluation.structures import Evaluation, Metric, in_percent

UNKNOWN, ALARM = "–", "!"


class Question(NamedTuple):
    """What a newcomer asks, and the metric that answers it.

    Attributes:
        metric: its name without brackets. Of several networks the one with the largest value counts, which is the worst; the
            recogniser of the method itself never does.
        words: the question.
        meaning: what the number is, and whether low or high is good.
        beside: names of metrics, without brackets, to show with it, because the number alone could mislead.
    """

    metric: str
    words: str
    meaning: str
    beside: tuple[str, ...] = ()


class Answer(NamedTuple):
    """A question and its cells, one for each method: the alarm or "", the number, and notes beside it."""

    words: str
    meaning: str
    cells: list[tuple[str, str, list[str]]]


# Evaluations of pictures answer five of these, and evaluations of clips five.
QUESTIONS = (
    Question(
        "rank-1",
        "Is the nearest photo the person's own?",
        "This is the share of results whose nearest photo, among photos of everybody, shows the right person. Low is good: at "
        "chance, the result tells nothing. The floor is what hair, neck, clothes and background tell when all faces are erased.",
    ),
    Question(
        "TPR at FAR 1e-03",
        "Is it accepted as the same person?",
        "This is the share of results that a recogniser accepts as the person, if it wrongly accepts one stranger in a "
        "thousand. Low is good.",
    ),
    Question(
        "source similarity, max",
        "Does any frame show the person?",
        "This is the cosine between a face and its source in the worst frame. Low is good. The alarm says that the recogniser "
        "takes the two for one person.",
    ),
    Question(
        "faces left as they were",
        "Was a face left as it was?",
        "This is the share of faces that show no change. Only 0 is good.",
        ("faces", "faces in frames", "faces covered instead of replaced", "pictures in which no face was found"),
    ),
    Question(
        "identity switches",
        "Is it one new person throughout?",
        "This is how often a face becomes somebody else's for more than some frames. Only 0 is good.",
    ),
    Question(
        "same expression class",
        "Does the expression stay?",
        "This is the share of faces in which a network sees the same of seven expressions before and after. It counts only "
        "faces that are still found. High is good.",
        ("face found",),
    ),
    Question(
        "EXP cosine",
        "Does the expression follow?",
        "This is how alike the expressions of source and result are, where a face is still found. High is good: 1 is the same.",
        ("no face found in its place",),
    ),
    Question(
        "Fréchet distance",
        "Does it look like a photo?",
        "This is how far the results lie from other originals, as a network sees them. Low is good: the distance of originals "
        "is as low as it gets. The AUC says how well a classifier tells results from originals: 1 is always, 0.5 is not at all.",
        ("Fréchet distance of originals", "two-sample AUC"),
    ),
    Question(
        "warping error in parts of the source's",
        "Does it flicker?",
        "This is how much a face changes between frames where it should only move, compared with the source. Low is good: 1 is "
        "as calm as the source.",
    ),
)


def answers(evaluations: Sequence[Evaluation]) -> list[Answer]:
    """The answers to all questions whose metric was measured for any of the methods."""
    found = []
    for question in QUESTIONS:
        cells = [_cell(question, [in_percent(metric) for metric in evaluation.metrics]) for evaluation in evaluations]
        if any(cells):
            found.append(Answer(question.words, question.meaning, [cell or ("", UNKNOWN, []) for cell in cells]))
    return found


def _cell(question: Question, metrics: list[Metric]) -> tuple[str, str, list[str]] | None:
    """The worst value of all networks; an alarm of any of them counts."""
    measured = [metric for metric in metrics if _is(metric, question.metric)]
    if not measured:
        return None
    worst = max(measured, key=lambda metric: -math.inf if math.isnan(metric.value) else metric.value)
    value, *bounds = format_numbers([worst.value, *(worst.interval or ())], worst.unit)
    notes = [f"[{', '.join(bounds)}]"] if set(bounds) - {UNKNOWN} else []
    if "[" in worst.name:
        notes.append(f"by {worst.name.rpartition('[')[2].rstrip(']')}")
    levels = {"chance": worst.chance, "floor": worst.floor} if worst.block == "privacy" else {}
    notes += [f"{name} {_quantity(level, worst.unit)}" for name, level in levels.items() if level is not None]
    notes += [
        f"{name} {_quantity(metric.value, metric.unit)}" for name in question.beside for metric in metrics if _is(metric, name)
    ]
    return ALARM if any(metric.alarm for metric in measured) else "", _with_unit(value, worst.unit), notes


def _is(metric: Metric, name: str) -> bool:
    return metric.name == name or (metric.name.startswith(f"{name} [") and f"[{FILTER}]" not in metric.name)


def _quantity(value: float, unit: str) -> str:
    return _with_unit(*format_numbers([value], unit), unit)


def _with_unit(value: str, unit: str) -> str:
    return value if value == UNKNOWN else f"{value} {unit}".rstrip()


def format_numbers(values: Sequence[float], unit: str = "") -> list[str]:
    """Numbers with as many decimals as show three digits of the largest, within sensible bounds; counts get none."""
    sizes = [abs(value) for value in values if math.isfinite(value)]
    largest = max(sizes, default=0)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 1
    if unit == "%":
        decimals = min(decimals, 1 if largest == 0 or largest >= 0.1 else 2)
    elif all(size == int(size) for size in sizes):
        decimals = 0
    else:
        decimals = min(decimals, 3 if largest >= 0.01 else 4)
    return [UNKNOWN if math.isnan(value) else f"{value:.{decimals}f}".replace("inf", "∞") for value in values]
