"""The answers from made-up numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffdeid.evaluation.answers import answers
from diffdeid.evaluation.examiner import FILTER
from diffdeid.evaluation.report import from_json
from diffdeid.evaluation.structures import Evaluation, Metric

MEASURED = Path(__file__).parents[2] / "docs/report/numbers.json"


def answer(*metrics: Metric) -> tuple[str, str, list[str]]:
    """The cell of the only question that these metrics answer."""
    (found,) = answers([Evaluation("m", list(metrics))])
    (cell,) = found.cells
    return cell


@pytest.mark.parametrize(("name", "last"), [("london", "Does it look like a photo?"), ("clip", "Does it flicker?")])
def test_pictures_and_clips_have_five(name, last):
    found = answers(from_json(json.loads(MEASURED.read_text())[name]))
    assert len(found) == 5 and found[-1].words == last
    assert all("good" in one.meaning and len(one.cells[0][1]) > 0 for one in found)


def test_the_worst_independent_recogniser_counts():
    metrics = [
        Metric("privacy", f"rank-1 [{name}]", value, "", (0.1, 0.2), 0.01, False, 0.97)
        for name, value in (("a", 0.1), ("b", 0.2))
    ]
    metrics.append(Metric("privacy", f"rank-1 [{FILTER}]", 0.9, alarm=True))
    metrics.append(Metric("privacy", "rank-1 of originals [a]", 1.0))
    assert answer(*metrics) == ("", "20.0 %", ["[10.0, 20.0]", "by b", "chance 1.0 %", "floor 97.0 %"])


def test_an_alarm_of_any_of_them_is_shown():
    alarm, value, _ = answer(Metric("privacy", "rank-1 [a]", 0.1, alarm=True), Metric("privacy", "rank-1 [b]", 0.2))
    assert (alarm, value) == ("!", "20.0 %")


def test_what_could_mislead_alone_has_company():
    *_, notes = answer(Metric("utility", "same expression class", 1.0), Metric("utility", "face found", 0.02))
    assert notes == ["face found 2.0 %"]
    *_, notes = answer(
        Metric("quality", "Fréchet distance [net]", 46.8),
        Metric("quality", "Fréchet distance of originals [net]", 30.1),
        Metric("quality", "two-sample AUC [net]", 0.98),
        Metric("quality", "two-sample AUC of originals [net]", 0.5),
    )
    assert notes == ["by net", "Fréchet distance of originals 30.1", "two-sample AUC 0.980"]


def test_what_is_unknown_is_no_good_news():
    assert answer(Metric("privacy", "rank-1 [a]", np.nan), Metric("privacy", "rank-1 [b]", 0.0))[1] == "0.0 %"
    assert answer(Metric("privacy", "rank-1 [a]", np.nan, "", (np.nan, np.nan))) == ("", "–", ["by a"])
    (found,) = answers([Evaluation("a", [Metric("coverage", "faces left as they were", 0.5, alarm=True)]), Evaluation("none")])
    assert found.cells == [("!", "50.0 %", []), ("", "–", [])]
    assert answers([Evaluation("none")]) == []
