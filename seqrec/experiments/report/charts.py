"""Charts of a run's page as inline SVG, in colours of its style sheet, and the learning curves that they show."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from seqrec.data.report_table import ReportTable, report_table
from seqrec.errors import InputError, MissingInputError

FILE_NAME = "metrics.csv"
# Most points of a curve that are drawn.
MAX_POINTS = 200
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 200, 46, 12, 10, 34
_ROW = 30
# Column of metrics.csv -> name in the legend; those of a loss come first.
_LOSSES = {"train_loss_epoch": "mean of an epoch", "train_loss_step": "of single updates"}
_METRICS = {"val_NDCG@10": "NDCG@10", "val_HR@10": "HR@10"}


@dataclass(frozen=True)
class Curve:
    """A named line: `points` are (updates, value), in the order of the updates."""

    name: str
    points: tuple[tuple[int, float], ...]


def read_curves(folder: Path) -> tuple[list[Curve], list[Curve]]:
    """Return the training loss and the validation metrics that a run logged, each thinned to `MAX_POINTS`.

    The loss is the mean of each epoch, or that of single updates if no epoch was complete.

    Raises:
        MissingInputError: if the folder has no `metrics.csv`.
        InputError: if it is damaged.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise MissingInputError(f"{folder} has no {FILE_NAME}: the run logged no metrics, or used another logger")
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in (*_LOSSES, *_METRICS)}
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for name, points in found.items():
                    # Updates are counted from 0 in this file.
                    if row.get(name) and math.isfinite(value := float(row[name])):
                        points.append((int(row["step"]) + 1, value))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from None
    curves = {name: Curve({**_LOSSES, **_METRICS}[name], _thinned(points)) for name, points in found.items() if points}
    losses = [curves[name] for name in _LOSSES if name in curves]
    return losses[:1], [curves[name] for name in _METRICS if name in curves]


def _thinned(points: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    places = sorted({round(place * (len(points) - 1) / (MAX_POINTS - 1)) for place in range(MAX_POINTS)})
    return tuple(points) if len(points) <= MAX_POINTS else tuple(points[place] for place in places)


def line_chart(title: str, curves: Sequence[Curve], *, from_zero: bool, best: int | None = None) -> str:
    """Return a figure of curves over updates, with their values in a table that opens; `best` marks an update."""
    values = [value for curve in curves for _, value in curve.points]
    low, high = (0.0 if from_zero else min(values)), max(values)
    ticks = _ticks(low, high)
    last = max(update for curve in curves for update, _ in curve.points)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(update: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * update / last
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        y = place(0, tick)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (each for each in _ticks(0, last) if each <= last and each == int(each)):
        x = place(tick, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{tick:,.0f}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">updates</text>')
    if best is not None and best <= last:
        x = place(best, low)[0]
        parts.append(f'<path class="best" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 4}">dotted: the best validation</text>')
    legend = []
    for number, curve in enumerate(curves):
        points = [place(*point) for point in curve.points]
        parts.append(f'<path class="line c{number}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')
        if len(points) <= 30:
            parts += [f'<circle class="c{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
        legend.append(f'<span class="key c{number}">{escape(curve.name)}</span>')
    spoken = "; ".join(f"{curve.name} {curve.points[-1][1]:.4g} after {curve.points[-1][0]:,}" for curve in curves)
    return (
        f"<figure><figcaption>{escape(title)} {' '.join(legend)}</figcaption>\n"
        f"{_svg(_HEIGHT, f'{title} by updates: {spoken}', parts)}\n"
        f"<details><summary>{escape(title)}: values</summary>{_values(title, curves).as_html()}</details></figure>\n"
    )


def dot_chart(title: str, rows: Sequence[tuple[str, float, tuple[float, float]]]) -> str:
    """Return a figure with a line for each (name, mean, interval): a dot at the mean, on a bar of the interval."""
    most = max(*(high for _, _, (_, high) in rows), 1e-9)

    def at(value: float) -> float:
        return 6 + (_WIDTH - 12) * value / most

    parts = []
    for number, (name, mean, (low, high)) in enumerate(rows):
        top = number * _ROW
        parts.append(f'<text x="6" y="{top + 12}">{escape(name)}</text>')
        parts.append(f'<text x="{_WIDTH - 6}" y="{top + 12}" text-anchor="end">{mean:.4f}</text>')
        parts.append(f'<path class="grid" d="M6 {top + 21}H{_WIDTH - 6}"/>')
        parts.append(f'<path class="line c0" d="M{at(low):.1f} {top + 21}H{at(high):.1f}"/>')
        parts.append(f'<circle class="c0" cx="{at(mean):.1f}" cy="{top + 21}" r="4"/>')
    spoken = f"{title}: {'; '.join(f'{name} {mean:.4f}' for name, mean, _ in rows)}"
    return f"<figure><figcaption>{escape(title)}</figcaption>\n{_svg(len(rows) * _ROW, spoken, parts)}</figure>\n"


def _svg(height: int, spoken: str, parts: Sequence[str]) -> str:
    drawn = "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(spoken)}">\n{drawn}\n</svg>'


def _values(title: str, curves: Sequence[Curve]) -> ReportTable:
    updates = sorted({update for curve in curves for update, _ in curve.points})
    by_name = {curve.name: dict(curve.points) for curve in curves}
    rows = (
        (f"{update:,}", *(f"{found[update]:.4f}" if update in found else "" for found in by_name.values()))
        for update in updates
    )
    return report_table(("updates", *by_name), rows, name="values", title=title)


def _ticks(low: float, high: float) -> list[float]:
    """Return some round numbers from below `low` to `high` or above."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = unit * next(times for times in (1, 2, 5, 10) if unit * times >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{step * number:.12g}") for number in range(first, max(last, first + 1) + 1)]
