"""Figures of an evaluation. They need matplotlib (`pip install "diffdeid[evaluate]"`) and leave pyplot's global state alone.

A method's colour follows from its place, so pass all methods to every plot: one with nothing to show draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffdeid.evaluation.structures import Evaluation, Scores, in_percent

# The colours of Okabe and Ito, which colour-blind people can tell apart, without the yellow that is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195")
LINES = ("-", "--", ":")
GREY, ALARM = "#777777", "#B00020"
CURVE_POINTS = 400
STRICT = 1e-3  # the false accept rate that is marked
TRACKS = 6  # most curves of a clip that can be told apart


def roc(scores_by_method: dict[str, Scores]) -> Figure:
    """Plot how often a picture is accepted as its person, at every rate of falsely accepted strangers."""
    figure, axes = _axes("share of strangers accepted (FAR)", "accepted as the person (TPR), %")
    all_far, has_originals = np.array([1.0]), False
    for index, (method, scores) in enumerate(scores_by_method.items()):
        impostor, genuine, deidentified = map(_finite, (scores.impostor, scores.genuine, scores.deidentified))
        ranks = np.unique(np.geomspace(1, max(len(impostor), 1), CURVE_POINTS).astype(int))[: len(impostor)]
        far, limits = ranks / max(len(impostor), 1), impostor[::-1][ranks - 1]
        all_far = np.union1d(all_far, far)
        if len(genuine) and not has_originals:  # the originals of all methods are the same
            axes.plot(far, _accepted(genuine, limits), color="black", label="originals")
            has_originals = True
        if len(deidentified):
            axes.plot(far, _accepted(deidentified, limits), label=_text(method), **_style(index))
    axes.figure.set_figheight(4.2)  # the legend has a line for two methods
    axes.plot(all_far, 100 * all_far, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="chance")
    axes.set(xscale="log", xlim=(min(all_far[0], 0.1), 1), ylim=(-2, 102))
    return _with_legend(axes)


def histograms(scores: Scores) -> Figure:
    """Plot cosines of originals to the same person and to strangers, and of de-identified pictures to their person."""
    groups = {"originals, same person": scores.genuine, "strangers": scores.impostor, "de-identified": scores.deidentified}
    styles = [
        {"color": colour, "fill": fill, "alpha": alpha}
        for colour, fill, alpha in (("black", 0, 1), (GREY, 1, 0.5), (ALARM, 1, 0.5))
    ]
    figure = distributions(groups, "cosine", "share of pairs, %", styles)
    impostor = _finite(scores.impostor)
    if len(impostor) * STRICT >= 1:
        limit = np.quantile(impostor, 1 - STRICT)
        figure.axes[0].axvline(limit, color="black", linestyle="--", linewidth=1)
        figure.axes[0].annotate(f" FAR {STRICT:g}", (limit, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    return figure


def distributions(
    values: dict[str, np.ndarray], xlabel: str, ylabel: str = "share of pictures, %", styles: Sequence[dict] | None = None
) -> Figure:
    """Plot histograms with common bins, as shares, so that groups of different sizes compare."""
    figure, axes = _axes(xlabel, ylabel)
    finite = {name: _finite(group) for name, group in values.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins=40)
    for index, (name, group) in enumerate(finite.items()):
        if len(group):
            shares = 100 * np.histogram(group, edges)[0] / len(group)
            axes.stairs(shares, edges, label=_text(name), linewidth=1.5, **(styles[index] if styles else _style(index)))
    return _with_legend(axes)


def bars(evaluations: list[Evaluation], metric_name: str) -> Figure:
    """Plot one metric of all methods, with its intervals, and what chance and the surroundings alone give."""
    figure, axes = _axes(metric_name, "")
    figure.set_figheight(1.0 + 0.38 * len(evaluations))
    for place, evaluation in enumerate(evaluations):
        for metric in (in_percent(metric) for metric in evaluation.metrics if metric.name == metric_name):
            axes.set_xlabel(_text(f"{metric_name}, {metric.unit}".rstrip(", ")))
            axes.barh(place, metric.value, color=_style(place)["color"])
            axes.plot(metric.interval or (), [place] * len(metric.interval or ()), color="black", marker="|", linewidth=1.5)
            for name, level, line in (("chance", metric.chance, ":"), ("floor", metric.floor, "--")):
                if level is not None:
                    axes.plot([level] * 2, [place - 0.5, place + 0.5], color="black", linestyle=line, label=name)
    axes.set_yticks(range(len(evaluations)), [_text(evaluation.method) for evaluation in evaluations])
    axes.set_ylim(len(evaluations) - 0.5, -0.5)  # the first on top
    return _with_legend(axes)


def along(x: np.ndarray, lines: dict[str, np.ndarray], xlabel: str, ylabel: str) -> Figure:
    """Plot lines over a level, or along a clip."""
    figure, axes = _axes(xlabel, ylabel)
    for index, (name, y) in enumerate(lines.items()):
        axes.plot(x, y, label=_text(name), marker="o" if len(x) <= 12 else None, markersize=4, **_style(index))
    return _with_legend(axes)


def clip(frames: list[dict[str, float]], name: str) -> Figure:
    """Plot a number along a clip, for the faces that are seen longest."""
    tracks = [int(row["track"]) for row in frames if name in row]
    longest = sorted(sorted(set(tracks), key=tracks.count, reverse=True)[:TRACKS])
    times = np.unique([row["time"] for row in frames])
    lines = {f"face {track + 1}": np.full(len(times), np.nan) for track in longest}
    for row in frames:
        if row["track"] in longest:
            lines[f"face {int(row['track']) + 1}"][np.searchsorted(times, row["time"])] = row[name]
    return along(times, lines, "time, s", name)


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.4), dpi=140, facecolor="white", layout="constrained")  # for phones: small, with large type
    axes = figure.add_subplot()
    axes.set_xlabel(_text(xlabel), fontsize=10)
    axes.set_ylabel(_text(ylabel), fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _with_legend(axes: Axes) -> Figure:
    """Add the legend below the axes, where it hides no curve."""
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        axes.figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return axes.figure


def _accepted(ordered: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The share at or above each limit, in %."""
    return 100 * (1 - np.searchsorted(ordered, limits) / len(ordered))


def _finite(values: np.ndarray) -> np.ndarray:
    """The finite values, sorted."""
    return np.sort(values[np.isfinite(values)])


def _style(index: int) -> dict[str, str]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def _text(name: str) -> str:
    """Text that matplotlib shows as it stands: it sets text between dollars as formulas, and hides labels that start with "_"."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
