"""Figures of a grid, with Okabe & Ito's colours for colour-blind people; marks and dashes differ, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrec.errors import MissingInputError
from seqrec.experiments import ENCODERS
from seqrec.experiments.grid.result import METRICS
from seqrec.experiments.report.rows import Log, Row, judge
from seqrec.experiments.report.tables import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^vPX"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
# Baselines are grey, with one mark each.
_BASELINES = ("Popularity", "RecentPopularity", "Markov", "ItemKNN", "RecentItems")
_BASELINE_MARKS = ".x+12"
# Reproducible files: no dates, and no random names within SVG.
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "seqrec",
    "svg.fonttype": "none",
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@contextmanager
def look() -> Iterator[None]:
    """Set one style for figures that are made and saved inside; raise MissingInputError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        message = 'figures need matplotlib; install it: pip install "seqrec[report]"'
        raise MissingInputError(message) from error
    with matplotlib.rc_context(_SETTINGS):
        yield


def quality_figure(log: Log) -> Figure:
    """Plot HR@10 and NDCG@10 against history length, with intervals."""
    figure, axes = _panels(len(METRICS))
    judged = {length: judge(log.at(length)) for length in log.lengths}
    for metric, (name, axis) in enumerate(zip(METRICS, axes, strict=True)):
        for place, (model, trained) in enumerate(_models(log)):
            points = []
            for length, quality in judged.items():
                for number, row in enumerate(quality.rows):
                    if row.model == model:
                        mean, (low, high) = quality.means[number, metric], quality.intervals[number, metric]
                        # If all users have the same value, the ends equal it except for rounding.
                        points.append((length, mean, max(0, mean - low), max(0, high - mean)))
            x, y, below, above = np.array(points).T
            # Side by side, to keep intervals apart.
            x = x * 1.025 ** (place - (len(_models(log)) - 1) / 2)
            style = {"capsize": 2, "elinewidth": 0.8, **_style(model, trained)}
            axis.errorbar(x, y, yerr=[below, above], label=model, **style)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        _length_axis(axis, log)
    _finish(figure, axes, f"{log.data}: quality by history length (bars: 95% over users)")
    return figure


def cost_figure(log: Log) -> Figure:
    """Plot time of training and of the test, and peak memory, against history length."""
    figure, axes = _panels(3)
    values: dict[str, Callable[[Row], float]] = {
        "training, s an epoch": lambda row: row.epoch_seconds,
        "test, s": lambda row: row.mean("test_seconds"),
        "peak memory, MiB": lambda row: row.mean("peak_memory") / MIB,
    }
    for axis, (title, value) in zip(axes, values.items(), strict=True):
        for model in [model for model, trained in _models(log) if trained]:
            rows = [row for row in log.unchanged if row.model == model]
            points = [row.length for row in rows], [value(row) for row in rows]
            axis.plot(*points, label=model, **_style(model, True))
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:,g}")
        _length_axis(axis, log)
    _finish(figure, axes, f"{log.data}: costs by history length")
    return figure


def curve_figure(log: Log) -> Figure:
    """Plot validation NDCG@10 after each validation, mean over the seeds that reached it, in a panel per length."""
    figure, axes = _panels(len(log.lengths), sharey=True)
    for axis, length in zip(axes, log.lengths, strict=True):
        for row in [row for row in log.at(length) if row.is_trained]:
            values: dict[int, list[float]] = {}
            for run in row.runs:
                for step, value in zip(run["curve"]["step"], run["curve"]["NDCG@10"], strict=True):
                    values.setdefault(step, []).append(value)
            steps = sorted(values)
            means = [np.mean(values[step]) for step in steps]
            axis.plot(steps, means, label=row.model, **_style(row.model, True))
        axis.set_title(f"histories of up to {length:,} events", fontsize=9)
        axis.set_xlabel("updates")
        axis.locator_params(axis="x", integer=True, nbins=5)
    # After all panels have their lines, because they share the axis.
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("validation NDCG@10")
    _finish(figure, axes, f"{log.data}: learning curves (mean over the seeds that reached an update)")
    return figure


def ablation_figure(log: Log, length: int) -> Figure:
    """Plot NDCG@10 of changed models, with intervals, at one length."""
    rows = log.at(length, ablated=True)
    quality, metric = judge(rows), METRICS.index("NDCG@10")
    figure, (axis,) = _panels(1, size=(6.5, 0.8 + 0.24 * len(rows)))
    places = np.arange(len(rows))[::-1]
    for number, (place, row) in enumerate(zip(places, rows, strict=True)):
        mean, ends = quality.means[number, metric], quality.intervals[number, metric]
        style = {**_style(row.model, True), "linestyle": "none"}
        error = np.abs(ends - mean).reshape(2, 1)
        axis.errorbar([mean], [place], xerr=error, capsize=2, elinewidth=0.8, **style)
        beside = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
        axis.annotate(f"{mean:.4f}", (1.01, place), **beside)  # type: ignore[arg-type]  # a mixed dictionary
    axis.set_yticks(places, [row.name for row in rows])
    axis.set_xlabel("NDCG@10 (bars: 95% over users)")
    axis.set_title(f"{log.data}, histories of up to {length:,} events: ablations", fontsize=10)
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png and `name`.svg."""
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


def _panels(number: int, size: Any = None, **options: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (0.8 + 3.3 * number, 3.2), layout="constrained")
    return figure, list(figure.subplots(1, number, squeeze=False, **options)[0])


def _finish(figure: Figure, axes: Sequence[Axes], title: str) -> None:
    figure.suptitle(title, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    # Below the panels, to hide no line.
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))


def _length_axis(axis: Axes, log: Log) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(log.lengths, [f"{length:,}" for length in log.lengths])
    axis.minorticks_off()
    axis.margins(x=0.12)
    axis.set_xlabel("history length, events at most")


def _models(log: Log) -> list[tuple[str, bool]]:
    return list({(row.model, row.is_trained): None for row in log.unchanged})


def _style(model: str, trained: bool) -> dict[str, Any]:
    if not trained:
        mark = _BASELINE_MARKS[_BASELINES.index(model)]
        return {"color": "#777777", "linewidth": 1.2, "marker": mark, "linestyle": (0, (1, 2))}
    # An encoder has the same style in all figures.
    place = ENCODERS.index(model) if model in ENCODERS else len(ENCODERS) + sum(map(ord, model)) % 2
    place %= len(_COLOURS)
    return {"color": _COLOURS[place], "marker": _MARKS[place], "linestyle": _DASHES[place], "markersize": 5}
