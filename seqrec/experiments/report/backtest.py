"""The report of a backtest: quality, seconds and new items, slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from seqrec.data.inspect import utc_text
from seqrec.data.report_table import ReportTable, report_table
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.splits import units_a_second
from seqrec.evaluation.report import interval_text
from seqrec.evaluation.results import Results, compare
from seqrec.experiments.grid.result import METRICS
from seqrec.experiments.report.ladder import write_files
from seqrec.experiments.report.rows import CONFIDENCE, RESAMPLES
from seqrec.experiments.report.tables import INTERVAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "seqrec-backtest-1"
# The models of a slice, and the metric of the table.
WARM, RETRAINED, POPULAR = "warm start", "retrained", "RecentPopularity"
METRIC = "NDCG@10"
_NOTES = (
    "Each event of a slice is a target, ranked among all items given its user's events before it. The models have seen "
    "no event of the slice. A user's metrics are means over its events",
    f"Intervals and differences come from {RESAMPLES:,} bootstrap resamples of the users; the difference is that of "
    "the warm start to the retrained model, of the same users",
    "`seconds` are those of training. In the first row both models are the same one, which was trained once",
    "`append s` are those of the whole command, which is `seqrec prepare` in the first row",
    "`new` are targets with items that no event had before the slice, which are misses. `fresh` are targets with items "
    "that came with the slice before, and `hits` their share of the targets that are among the ten best",
    "Filters that count events are left out, because they would look into the future",
)


def with_missed(run: Results, missed: polars.DataFrame) -> polars.DataFrame:
    """Return the targets of a run, and those with items that the model does not know, behind the whole catalogue.

    Lengths of histories and counts of items are made up for the others: they tell no slices of users or items apart.
    """
    rank = {"better": run.header.num_items, "tied": 0, "history_length": 1, "item_train_events": 0, "repeated": False}
    others = missed.select(USER_ID, ITEM_ID, TIMESTAMP).with_columns(
        **{name: polars.lit(x) for name, x in rank.items()}
    )
    rows = others.select(polars.col(name).cast(kind) for name, kind in run.frame.schema.items())
    return polars.concat([run.frame, rows]).sort(USER_ID, ITEM_ID, TIMESTAMP)


def slice_figures(runs: Sequence[Results], fresh: AbstractSet[Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of each run on a slice by its name: `metrics` with intervals, `difference` to the first run.

    `fresh_targets` counts targets that are `fresh` items, `hits` the targets among the ten best, and `fresh_hits` the
    fresh ones among these; ties share their places.
    """
    found: dict[str, dict[str, Any]] = {run.name: {"metrics": {}, "difference": {}} for run in runs}
    for each in compare(runs, metrics=METRICS, resamples=RESAMPLES, confidence=CONFIDENCE).estimates:
        low, high = each.interval
        found[each.run]["metrics"][each.metric] = {"mean": each.mean, "low": low, "high": high}
        if each.difference is not None:
            low, high = each.difference.interval
            change = {"mean": each.difference.mean, "low": low, "high": high, "p": each.difference.p_value}
            found[each.run]["difference"][each.metric] = change
    for run in runs:
        better, tied = (run.frame[name].to_numpy() for name in ("better", "tied"))
        hits = np.clip((10 - better) / (tied + 1), 0, 1)
        is_fresh = run.frame[ITEM_ID].is_in(list(fresh)).to_numpy()
        counts = {"hits": hits.sum(), "fresh_targets": is_fresh.sum(), "fresh_hits": hits[is_fresh].sum()}
        found[run.name] |= {name: float(count) for name, count in counts.items()}
    return found


def write_backtest(
    folder: Path, rows: Sequence[Mapping[str, Any]], made_by: str
) -> tuple[ReportTable, str, dict[str, Any]]:
    """Write a backtest as `backtest.json`, `.md` and, if matplotlib is installed, `.png` into a folder.

    Args:
        folder: The folder.
        rows: The result of each slice.
        made_by: The command.

    Returns:
        The table, a line about the files, and the content of the JSON without its schema.
    """
    shown = [{name: value for name, value in row.items() if name not in ("schema", "settings")} for row in rows]
    content = {"made_by": made_by, "confidence": CONFIDENCE, "resamples": RESAMPLES, "slices": shown}
    models = [model for row in rows for model in row.get("models", {}).values()]
    hardware = "; ".join({model["hardware"]: None for model in models if "hardware" in model})
    table = backtest_table(rows, [*_NOTES, *_verdict(rows), f"Made by `{made_by}`", f"Hardware: {hardware}"])
    line = write_files(folder / "backtest", {"schema": SCHEMA, **content}, table, lambda: backtest_figure(rows))
    return table, line, content


def backtest_table(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> ReportTable:
    """Return the table of a backtest with a line for each slice; an empty one has only its time."""
    heads = ["slice", "from", "events", "users", "targets", WARM, INTERVAL, RETRAINED, INTERVAL, "difference", INTERVAL]
    heads += [POPULAR, INTERVAL, "seconds", "retrained s", "append s", "new", "fresh", "hits", "hits, retrained"]
    lines = []
    for row in rows:
        models, targets = row.get("models", {}), row.get("targets", 0)
        cells = [str(row["slice"]), _date(row["start"]), f"{row['events']:,}"]
        cells += [f"{row.get('users', 0):,}", f"{targets:,}"] if row["events"] else ["", "no event"]
        change = models.get(WARM, {}).get("difference", {}) if RETRAINED in models else {}
        for name in (WARM, RETRAINED):
            cells += _estimate(models.get(name, {}).get("metrics", {}))
        cells += _estimate(change, "+") + _estimate(models.get(POPULAR, {}).get("metrics", {}))
        for seconds in (
            *(models.get(name, {}).get("train_seconds") for name in (WARM, RETRAINED)),
            row.get("append_seconds"),
        ):
            cells.append("" if seconds is None else f"{seconds:,.1f}")
        cells.append(f"{row['targets_of_new_items'] / targets:.1%}" if targets else "")
        ended = [models[name] for name in (WARM, RETRAINED) if "hits" in models.get(name, {})]
        # All items of the first training came at once.
        ended = [model for model in ended if model["fresh_targets"]]
        cells.append(f"{ended[0]['fresh_targets'] / targets:.1%}" if ended else "")
        cells += [f"{model['fresh_hits'] / model['hits']:.1%}" if model["hits"] else "" for model in ended]
        lines.append(cells)
    return report_table(heads, lines, name="backtest", words=2, title=f"Backtest, {METRIC}", notes=notes)


def backtest_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot quality with intervals, and seconds of training, of each model by slice."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    quality, costs = figure.subplots(1, 2)
    for name in (WARM, RETRAINED, POPULAR):
        found = [(row["slice"], row.get("models", {}).get(name, {})) for row in rows]
        points = [(number, model["metrics"][METRIC]) for number, model in found if "metrics" in model]
        if not points:
            continue
        means = [value["mean"] for _, value in points]
        # If all users have the same value, the ends equal it except for rounding.
        below = [max(0.0, value["mean"] - value["low"]) for _, value in points]
        above = [max(0.0, value["high"] - value["mean"]) for _, value in points]
        style = {"label": name, "capsize": 2, "elinewidth": 0.8, **_STYLES[name]}
        quality.errorbar([number for number, _ in points], means, yerr=[below, above], **style)
        trained = [(number, model["train_seconds"]) for number, model in found if "train_seconds" in model]
        if trained:
            costs.plot(*zip(*trained, strict=True), label=name, **_STYLES[name])
    for axis, title in ((quality, f"{METRIC} (bars: 95% over users)"), (costs, "training, s")):
        axis.set_xlabel("slice")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.locator_params(axis="x", integer=True)
    quality.legend(loc="best")
    return figure


_STYLES: dict[str, dict[str, Any]] = {
    WARM: {"color": "#0072B2", "marker": "o"},
    RETRAINED: {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    POPULAR: {"color": "#777777", "marker": ".", "linestyle": ":"},
}


def _estimate(metrics: Mapping[str, Any], sign: str = "") -> list[str]:
    if METRIC not in metrics:
        return ["", ""]
    value = metrics[METRIC]
    return [f"{value['mean']:{sign}.4f}", interval_text((value["low"], value["high"]), sign)]


def _date(time: int) -> str:
    # Only times of these decades are taken for dates.
    ticks = units_a_second(time)
    return utc_text(time, ticks).rpartition(":")[0] if 5e8 < time / ticks < 5e9 else f"{time:,}"


def _verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in how many slices the warm start is within the noise of the retrained model, and its share of seconds."""
    pairs = [(row["models"][WARM], row["models"][RETRAINED]) for row in rows if RETRAINED in row.get("models", {})]
    judged = [(warm, other) for warm, other in pairs if warm.get("difference")]
    if not judged:
        return []
    fine = sum(warm["difference"][METRIC]["high"] >= 0 for warm, _ in judged)
    seconds = [sum(model["train_seconds"] for model in models) for models in zip(*judged, strict=True)]
    return [
        f"In {fine} of {len(judged)} slices the warm start is not worse than the retrained model, or the interval of "
        f"the difference contains 0; its trainings took {seconds[0]:,.0f} s, {seconds[0] / seconds[1]:.0%} of "
        f"{seconds[1]:,.0f} s"
    ]
