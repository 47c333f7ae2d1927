"""The output of `diffdeid evaluate`: a table for the terminal, files for other programs, and a page for people.

The page begins with the few numbers that matter, goes on with plots and faces, and ends with all numbers. It shows source faces,
so it is only for people who may see them. It needs `pip install "diffdeid[evaluate]"`, the rest does not.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from PIL import Image

from diffdeid.errors import ConfigurationError
from diffdeid.evaluation.answers import ALARM, UNKNOWN, answers, format_numbers
from diffdeid.evaluation.examiner import FILTER
from diffdeid.evaluation.structures import FEW, Block, Evaluation, ExaminedPair, Metric, Scores, in_percent
from diffdeid.io.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "†"
NOTES = {
    "[a, b]": "95 % bootstrap interval",
    "chance": "what a method gets that gives nothing away",
    "floor": "what the rest of the picture (K) gives away by itself, with all faces erased",
    UNKNOWN: "could not be measured",
    ALARM: "identity leaks, or a face was missed",
    MARK: "used by the method itself to accept results; not independent evidence",
}
NEAREST = 8  # pictures in the row of the worst results
GRIDS = ((160, 24), (128, 24), (96, 24), (72, 16), (56, 8))  # pixels of a crop and people for each method; the first that fits
GRID_BYTES = 4_000_000  # most bytes of faces, as base64, so that a phone can still open the page


class Row(NamedTuple):
    """A metric of all methods as text; each cell is alarm, value and interval."""

    block: str
    name: str
    label: str
    cells: list[tuple[str, str, str]]
    chance: str
    floor: str


def table(evaluations: list[Evaluation]) -> str:
    """All metrics as an aligned Markdown table, one row for each metric and one column for each method, and a legend."""
    lines = [["", *(evaluation.method for evaluation in evaluations), "chance", "floor"]]
    for block, rows in groupby(_rows(evaluations), lambda row: row.block):
        lines.append([block.upper()] + [""] * (len(evaluations) + 2))
        lines += [[row.label, *(" ".join(filter(None, cell)) for cell in row.cells), row.chance, row.floor] for row in rows]
    lines = [[" ".join(text.split()).replace("|", r"\|") for text in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines]
    text.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")
    return "\n".join([*text, "", *(f"{sign:6} {meaning}" for sign, meaning in NOTES.items())]) + "\n"


def warning_of_few(evaluations: list[Evaluation]) -> str:
    """What to say where so few pictures were compared that the numbers say nothing about a method; empty where it need not be."""
    least = min((len(evaluation.pairs) for evaluation in evaluations if evaluation.pairs), default=FEW)
    if least >= FEW:
        return ""
    return (
        f"Only {least} picture{'s' * (least > 1)} with a face could be compared, and at least {FEW} are needed. The numbers say "
        "nothing about the method. Compare more pictures."
    )


def to_json(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """All metrics, ready for `json.dumps`: what was not measured is None, and infinity is a string."""
    methods = []
    for evaluation in evaluations:
        metrics = []
        for metric in evaluation.metrics:
            interval = None if metric.interval is None else [*map(_json_number, metric.interval)]
            value, chance, floor = map(_json_number, (metric.value, metric.chance, metric.floor))
            numbers = {"value": value, "interval": interval, "chance": chance, "alarm": bool(metric.alarm), "floor": floor}
            metrics.append(asdict(metric) | numbers | {"independent": f"[{FILTER}]" not in metric.name})
        methods.append({"method": evaluation.method, "pictures": len(evaluation.pairs), "metrics": metrics})
    return methods


def from_json(methods: Sequence[dict[str, Any]]) -> list[Evaluation]:
    """The inverse of `to_json`, without the pictures."""

    def number(value: float | str | None) -> float:
        return math.nan if value is None else float(value)

    def metric(row: dict[str, Any]) -> Metric:
        interval = row["interval"] and (number(row["interval"][0]), number(row["interval"][1]))
        known = {name: row[name] for name in ("block", "name", "unit", "chance", "alarm", "floor")}
        return Metric(value=number(row["value"]), interval=interval, **known)

    return [Evaluation(method["method"], [metric(row) for row in method["metrics"]]) for method in methods]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of texts and numbers, by the names of their columns; a cell is empty where nothing could be measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: value for name, value in row.items() if isinstance(value, str) or not math.isnan(value)})
    write_whole(path, text.getvalue().encode())


def write_report(folder: Path, title: str, evaluations: list[Evaluation], figures: Iterable[tuple[str, Figure]] = ()) -> None:
    """Write `metrics.json`, `pictures.csv` or `frames.csv`, and the self-contained page `report.html`.

    Args:
        figures: more figures for the page, each with its caption.

    Raises:
        ConfigurationError: the packages for the page are missing; the other files are written all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(to_json(evaluations), indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "metrics.json", numbers.encode())
    pictures = [
        {"method": evaluation.method, "name": pair.name, "person": pair.person, **pair.numbers}
        for evaluation in evaluations
        for pair in evaluation.pairs
    ]
    frames = [{"method": evaluation.method, **row} for evaluation in evaluations for row in evaluation.frames]
    for kind, rows in (("pictures", pictures), ("frames", frames)):
        if rows:
            write_csv(folder / f"{kind}.csv", rows)
    write_whole(folder / "report.html", _page(title, evaluations, figures).encode())


def _page(title: str, evaluations: list[Evaluation], figures: Iterable[tuple[str, Figure]]) -> str:
    try:
        import jinja2

        from diffdeid.evaluation import plots
    except ImportError as error:
        raise ConfigurationError('The report needs other packages: `pip install "diffdeid[evaluate]"`.') from error

    nothing, recognisers, utility = Scores(*[np.empty(0)] * 3), {}, []
    for name in sorted({name: 0 for evaluation in evaluations for name in evaluation.scores}, key=lambda name: name == FILTER):
        scores = {evaluation.method: evaluation.scores.get(name, nothing) for evaluation in evaluations}
        drawn = [("ROC", plots.roc(scores))]
        drawn += [
            (f"cosines, {other.method}", plots.histograms(other.scores[name])) for other in evaluations if name in other.scores
        ]
        recognisers[_marked(f"[{name}]")] = _data_uris(drawn)
    for name in _number_names(evaluations):
        values = {e.method: np.array([pair.numbers.get(name, math.nan) for pair in e.pairs], float) for e in evaluations}
        if not set(np.unique([x for x in np.concatenate([*values.values()]) if math.isfinite(x)])) <= {0, 1}:
            utility.append((_marked(name), plots.distributions(values, name)))
    clips = [
        (f"{evaluation.method}: {_marked(name)}", plots.clip(evaluation.frames, name))
        for evaluation in evaluations
        for name in _column_names(evaluation.frames)
    ]
    rows = _rows(evaluations)
    bars = [(row.label, plots.bars(evaluations, row.name)) for row in rows if row.name.startswith("rank-1 [")]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.jinja").render(
        title=title,
        methods=[evaluation.method for evaluation in evaluations],
        few=warning_of_few(evaluations),
        answers=answers(evaluations),
        rows=[row for row in rows if row.block != "cost"],
        costs=[row for row in rows if row.block == "cost"],
        notes=NOTES,
        bars=_data_uris(bars),
        recognisers=recognisers,
        grids=_grids([evaluation for evaluation in evaluations if evaluation.pairs]),
        utility=_data_uris(utility),
        clips=_data_uris(clips),
        figures=_data_uris(figures),
    )


def _rows(evaluations: list[Evaluation]) -> list[Row]:
    """The metrics of all methods by block, privacy first, in the order in which they were measured."""
    found = [{(metric.block, metric.name): in_percent(metric) for metric in evaluation.metrics} for evaluation in evaluations]
    keys, rows = {key: metrics[key].unit for metrics in reversed(found) for key in metrics}, []
    order = {key: place for place, key in enumerate(dict.fromkeys(key for metrics in found for key in metrics))}
    for block, name in sorted(order, key=lambda key: (get_args(Block).index(key[0]), order[key])):
        metrics = [metrics.get((block, name), Metric(block, name, math.nan)) for metrics in found]
        cells = []
        for metric in metrics:
            value, *bounds = format_numbers([metric.value, *(metric.interval or ())], metric.unit)
            interval = f"[{', '.join(bounds)}]" if set(bounds) - {UNKNOWN} else ""
            cells.append((ALARM if metric.alarm else "", value, interval))
        chance, floor = (_range([getattr(metric, side) for metric in metrics], keys[block, name]) for side in ("chance", "floor"))
        label = _marked(f"{name}, {keys[block, name]}".rstrip(", "))
        rows.append(Row(block, name, label, cells, chance, floor))
    return rows


def _range(values: Sequence[float | None], unit: str) -> str:
    """The smallest and the largest known value, or just one if they are equal; empty if none is known."""
    known = [value for value in values if value is not None]
    least, most = format_numbers([min(known), max(known)], unit) if known else ("", "")
    return least if least == most else f"{least} … {most}"


def _json_number(value: float | None) -> float | str | None:
    if value is None or math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else str(float(value)).replace("inf", "Infinity")


def _marked(name: str) -> str:
    return f"{name} {MARK}" if f"[{FILTER}]" in name else name


def _number_names(evaluations: list[Evaluation]) -> list[str]:
    return list(dict.fromkeys(name for evaluation in evaluations for pair in evaluation.pairs for name in pair.numbers))


def _column_names(frames: list[dict[str, float]]) -> list[str]:
    """The columns to plot along a clip: those that are neither counts nor yes or no."""
    names = dict.fromkeys(name for row in frames for name in row)
    return [name for name in names if name not in ("frame", "time", "track", "found", "unprocessed")]


def _grids(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """For each method, the pictures nearest to their sources, and people spread evenly over all."""
    for side, people in GRIDS:
        grids = []
        for evaluation in evaluations:
            persons = list({pair.person: pair for pair in evaluation.pairs}.values())
            chosen = [persons[i] for i in np.unique(np.linspace(0, len(persons) - 1, people).astype(int))] if persons else []
            nearest, others = ([_card(pair, side) for pair in pairs] for pairs in (_nearest(evaluation), chosen))
            grids.append({"method": evaluation.method, "nearest": nearest, "people": others})
        if sum(len(card["uri"]) for grid in grids for card in grid["nearest"] + grid["people"]) < GRID_BYTES:
            break
    return grids


def _nearest(evaluation: Evaluation) -> list[ExaminedPair]:
    """The pictures that any independent recogniser finds nearest to their source, in standard deviations of strangers."""
    nearness = np.full(len(evaluation.pairs), -np.inf)
    for name, scores in evaluation.scores.items():
        strangers = scores.impostor[np.isfinite(scores.impostor)]
        if name != FILTER and len(strangers):
            cosines = np.array([pair.numbers.get(f"cosine to the source [{name}]", math.nan) for pair in evaluation.pairs])
            nearness = np.fmax(nearness, (cosines - strangers.mean()) / max(strangers.std(), 1e-6))
    order = np.argsort(-nearness, kind="stable")[:NEAREST]
    return [evaluation.pairs[index] for index in order if np.isfinite(nearness[index])]


def _card(pair: ExaminedPair, side: int) -> dict[str, Any]:
    """Source and result in one JPEG, and the numbers for below it."""
    both = [np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.LANCZOS)) for crop in pair.crops]
    encoded = io.BytesIO()
    Image.fromarray(np.concatenate(both, axis=1)).save(encoded, "JPEG", quality=80)
    numbers = {_marked(name): format_numbers([value])[0] for name, value in pair.numbers.items()}
    return {"name": pair.name, "found": pair.result.found, "uri": _data_uri(encoded, "jpeg"), "side": side, "numbers": numbers}


def _data_uris(figures: Iterable[tuple[str, Figure]]) -> list[tuple[str, str]]:
    uris = []
    for caption, figure in figures:
        drawn, encoded = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png")
        Image.open(drawn).convert("RGB").quantize(128).save(encoded, "PNG", optimize=True)  # a third of the bytes, no metadata
        uris.append((caption, _data_uri(encoded, "png")))
    return uris


def _data_uri(content: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
