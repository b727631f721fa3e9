"""The report of a ladder: what each step is worth, with intervals and a paired test against the step that it changes.

U users, M metrics.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.report_table import Entry, ReportTable
from seqrec.evaluation.results.intervals import bootstrap_means, percentile_intervals, sign_flip_p_values
from seqrec.experiments.grid.cells import Budget
from seqrec.experiments.grid.result import METRICS, UserMetrics
from seqrec.experiments.report import figures
from seqrec.experiments.report.rows import CONFIDENCE, RESAMPLES
from seqrec.experiments.report.tables import INTERVAL, MIB, PEAK_MEMORY, RISING
from seqrec.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "seqrec-ladder-1"
_COSTS = ("train_seconds", "epoch_seconds", "test_seconds", "peak_memory", "epochs", "steps", "events")
_NOTES = (
    f"Intervals come from {RESAMPLES:,} bootstrap resamples of the users",
    "`change` is relative to the step in the column `from`, user by user, p of a sign-flip test. The p-values are not "
    "adjusted for the number of comparisons. A change of protocol is a difference of what is measured, not of models",
    "A step on another log than the one in `from` has no test: another file may number the same users differently",
    "A step with `=` in the column `model` is tested on the model of an earlier step. Its costs of training are those "
    "of that model",
    PEAK_MEMORY,
    RISING,
)


def ladder_rows(steps: Sequence[Mapping[str, Any]], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each step as plain values, the content of `ladder.json`.

    Args:
        steps: `name`, `part`, `trained`, and `base`, the number of the step that it changes, from 0, or None.
        runs: The result of each.

    Returns:
        Rows with `step` (from 1), `from` (likewise), name, part, whether the step trained, data, length, model, seed,
        changes, protocol id, users, `metrics` (mean, low and high end of the interval), `change` relative to `from`
        (the same and `p`; None for the first step, or if log or users are others), validation, costs (seconds, bytes,
        number of parameters), hardware, versions and commit.
    """
    users = [UserMetrics.from_plain(run["user_metrics"]) for run in runs]
    rows = []
    for number, (step, run) in enumerate(zip(steps, runs, strict=True)):
        base, change = step["base"], None
        # Two files of one log may number its users differently.
        if base is not None and runs[base]["data"] == run["data"] and users[base].users == users[number].users:
            differences = users[number].values - users[base].values
            p_values = sign_flip_p_values(differences, resamples=RESAMPLES, seed=0)
            change = {
                name: {**each, "p": float(p)} for (name, each), p in zip(_estimates(differences), p_values, strict=True)
            }
        parameters = sum(run[f"{part}_parameters"] for part in ("table", "encoder", "other"))
        about = ("data", "length", "model", "seed", "changes", "protocol", "users")
        made_with = ("hardware", "versions", "commit")
        rows.append(
            {
                "step": number + 1,
                "from": None if base is None else base + 1,
                **{name: step[name] for name in ("name", "part", "trained")},
                **{name: run[name] for name in about},
                "metrics": dict(_estimates(users[number].values)),
                "change": change,
                "validation": run["validation"],
                "costs": {**{name: run[name] for name in _COSTS}, "parameters": parameters},
                **{name: run[name] for name in made_with},
            }
        )
    return rows


def write_ladder(
    folder: Path,
    name: str,
    steps: Sequence[Mapping[str, Any]],
    runs: Sequence[dict[str, Any]],
    made_by: str,
    budget: Budget,
) -> tuple[ReportTable, str, dict[str, Any]]:
    """Write a ladder as JSON, Markdown and, if matplotlib is installed, PNG into a folder.

    Returns:
        The table, a line about the files, and the content of the JSON without its schema.
    """
    rows = ladder_rows(steps, runs)
    terms = {"ladder": name, "made_by": made_by, "budget": str(budget)}
    resampling = {"confidence": CONFIDENCE, "resamples": RESAMPLES}
    content = {**terms, **resampling, "steps": rows}
    notes = [*_NOTES, f"Budget: {budget.description}", f"Made by `{made_by}`"]
    notes += [f"Hardware: {'; '.join({row['hardware']: None for row in rows})}"]
    notes += [f"Versions: {'; '.join({row['versions']: None for row in rows})}"]
    table = ladder_table(name, rows, notes)
    line = write_files(folder / "ladder", {"schema": SCHEMA, **content}, table, lambda: ladder_figure(name, rows))
    return table, line, content


def write_files(place: Path, content: dict[str, Any], table: ReportTable, draw: Callable[[], Figure]) -> str:
    """Write a report to files of one name with other ends, and return a line about them.

    Args:
        place: The files without their ends .json, .md and .png; the last one only if matplotlib is installed.
        content: The JSON.
        table: The Markdown.
        draw: Returns the figure.
    """
    data, page, picture = (place.with_suffix(end) for end in (".json", ".md", ".png"))
    write_json(data, content)
    text = table.as_markdown()
    if importlib.util.find_spec("matplotlib") is None:
        write_text(page, text)
        missing = 'no figure, which needs matplotlib: pip install "seqrec[report]"'
        return f"{place.parent}: {data.name}, {page.name}; {missing}"
    with figures.look():
        draw().savefig(picture, bbox_inches="tight", metadata={"Software": None})
    write_text(page, f"{text}\n![{table.title}]({picture.name})\n")
    return f"{place.parent}: {data.name}, {page.name}, {picture.name}"


def ladder_table(name: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> ReportTable:
    """Return the table of a ladder."""
    lines = []
    for row in rows:
        texts = [str(row["step"]), row["name"], str(row["from"] or ""), row["model"] + ("" if row["trained"] else " =")]
        for metric in METRICS:
            value = row["metrics"][metric]
            texts += [f"{value['mean']:.4f}", f"{value['low']:.4f} to {value['high']:.4f}"]
        change = None if row["change"] is None else row["change"]["NDCG@10"]
        texts += ["", ""] if change is None else [f"{change['mean']:+.4f}", f"{change['p']:.4f}"]
        costs, best = row["costs"], row["validation"]
        texts += [
            f"{costs['train_seconds']:,.0f}",
            f"{costs['test_seconds']:,.1f}",
            f"{costs['peak_memory'] / MIB:,.0f}",
        ]
        texts += [f"{costs['parameters']:,}", f"{costs['steps']:,}"]
        texts += ["", ""] if best is None else [f"{best['step']:,}", "yes" if best["rising"] else "no"]
        lines.append(tuple(map(Entry, [*texts, f"`{row['protocol']}`"])))
    heads = [head for metric in METRICS for head in (metric, INTERVAL)]
    costs_heads = ("train s", "test s", "peak MiB", "parameters", "steps", "best after", "rising", "protocol")
    columns = ("step", "change", "from", "model", *heads, "change of NDCG@10", "p", *costs_heads)
    return ReportTable("ladder", f"Ladder {name}", columns, 4, tuple(lines), tuple(notes))


def ladder_figure(name: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot NDCG@10 of each step, with intervals, the first one at the top; protocol and recipe differ by their mark."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.9 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for part, mark, colour in (("protocol", "o", "#0072B2"), ("recipe", "s", "#D55E00")):
        shown = [row for row in rows if row["part"] == part]
        values = [row["metrics"]["NDCG@10"] for row in shown]
        means = np.array([value["mean"] for value in values])
        # If all users have the same value, the ends equal it except for rounding.
        ends = [[max(0, v["mean"] - v["low"]) for v in values], [max(0, v["high"] - v["mean"]) for v in values]]
        style: dict[str, Any] = {"marker": mark, "color": colour, "linestyle": "none", "capsize": 2, "elinewidth": 0.8}
        axis.errorbar(means, [-row["step"] for row in shown], xerr=ends, label=part, **style)
    axis.set_yticks([-row["step"] for row in rows], [f"{row['step']} {row['name']}" for row in rows])
    axis.set_xlabel("NDCG@10 (bars: 95% over users)")
    axis.set_title(f"ladder {name}", fontsize=10)
    axis.legend(loc="best")
    return figure


def _estimates(values: NDArray[np.float64]) -> list[tuple[str, dict[str, float]]]:
    """Return mean and interval of each metric of values (U, M)."""
    ends = percentile_intervals(bootstrap_means(values, resamples=RESAMPLES, seed=0), CONFIDENCE)
    pairs = zip(METRICS, values.mean(0), ends, strict=True)
    return [(name, {"mean": float(mean), "low": float(low), "high": float(high)}) for name, mean, (low, high) in pairs]
