"""The tables of a grid: quality, costs and ablations."""

from __future__ import annotations

from math import isnan

from seqrec.data.report_table import Entry, ReportTable
from seqrec.experiments.grid.result import METRICS
from seqrec.experiments.report.rows import CONFIDENCE, RESAMPLES, Log, Quality, Row, judge

SIGNIFICANT = 0.05
MIB = 1 << 20
INTERVAL = f"{CONFIDENCE:.0%} interval"
TESTED = "The epoch with the best validation is tested"
PEAK_MEMORY = (
    "`peak MiB` is the memory of tensors on a GPU. On a CPU it is the memory of the process, libraries included"
)
RISING = (
    "`best after` is the number of updates of the best validation. `rising` is yes if training ended by its budget and "
    "the last validation was the best: a larger budget may be better"
)
QUALITY_NOTES = (
    f"Metrics are means over seeds and users. Intervals come from {RESAMPLES:,} bootstrap resamples of the users",
    "± is the standard deviation between seeds. Neither the intervals nor the test include it",
    "Bold marks the best model of a length",
    f"† marks a best model that beats the second in a paired sign-flip test, p < {SIGNIFICANT:g}. The p-values are not "
    "adjusted for the number of comparisons",
    TESTED,
    RISING,
)
COST_NOTES = (
    "Values are means over seeds",
    "`table`, `encoder` and `other` are numbers of parameters: of the item table, of the encoder, and of the rest, "
    "such as positions",
    PEAK_MEMORY,
    "Seconds are measured with the device synchronised",
    "`train s` includes reading. It excludes validation and checkpoints",
    "`s/epoch` counts complete epochs",
    "`val. s` is the time of all validations, `test s` that of the test",
    "`events/s` is the number of events trained on, divided by `train s`",
    TESTED,
)
TRAINING = ("seeds", "epochs", "steps", "best after", "rising")
CHANGES = "Changes are relative to the same model unchanged, user by user, with a sign-flip test"


def quality_table(log: Log) -> ReportTable | None:
    """Return the metrics of all lengths and models of a log; None if only ablations have results."""
    if not log.unchanged:
        return None
    rows: list[tuple[Entry, ...]] = []
    tested: list[str] = []
    for length in log.lengths:
        quality = judge(log.at(length))
        marks = [""] * len(METRICS)
        for metric, name in enumerate(METRICS):
            if len(quality.rows) > 1:
                first, second = quality.places(metric)[:2]
                p_value = quality.p_value(first, second, metric)
                marks[metric] = "†" if p_value < SIGNIFICANT else ""
                pair = f"{quality.rows[first].name} over {quality.rows[second].name}"
                tested.append(f"{name} at {length:,}: {pair}, p = {p_value:.4f}")
        for number, row in enumerate(quality.rows):
            cells = _name(row)
            for metric, mark in enumerate(marks):
                is_best = number == quality.places(metric)[0]
                deviation = quality.deviations[number, metric]
                cells.append(Entry(f"{quality.means[number, metric]:.4f}{mark if is_best else ''}", is_best))
                cells.append(_interval(quality, number, metric))
                cells.append(Entry("" if isnan(deviation) else f"{deviation:.4f}"))
            rows.append((*cells, *_training(row)))
    heads = [head for metric in METRICS for head in (metric, INTERVAL, "± seeds")]
    compared = [f"Best compared with second: {'; '.join(tested)}"] if tested else []
    columns = ("length", "model", *heads, *TRAINING)
    notes = (*QUALITY_NOTES, *compared, *log.missing(), *log.terms(log.unchanged))
    title = f"{log.data}: quality by history length"
    return ReportTable(f"quality_{log.data}", title, columns, 2, tuple(rows), notes)


def ablation_table(log: Log) -> ReportTable | None:
    """Return changed models next to the unchanged ones; None if a log has no ablations."""
    rows: list[tuple[Entry, ...]] = []
    shown: list[Row] = []
    metric = METRICS.index("NDCG@10")
    for length in log.ablated_lengths:
        changed = log.at(length, ablated=True)
        shown += changed
        quality = judge(changed)
        names = {(row.model, row.ablation): number for number, row in enumerate(changed)}
        for number, row in enumerate(changed):
            unchanged = names.get((row.model, ""))
            change = [Entry(""), Entry("")]
            if unchanged not in (None, number):
                assert unchanged is not None
                difference = quality.means[number, metric] - quality.means[unchanged, metric]
                p_value = quality.p_value(number, unchanged, metric)
                change = [Entry(f"{difference:+.4f}"), Entry(f"{p_value:.4f}")]
            mean = Entry(f"{quality.means[number, metric]:.4f}")
            rows.append((*_name(row), mean, _interval(quality, number, metric), *change, *_training(row)))
    if not rows:
        return None
    columns = ("length", "model", "NDCG@10", INTERVAL, "change", "p", *TRAINING)
    notes = (CHANGES, TESTED, *log.terms(shown))
    return ReportTable(f"ablations_{log.data}", f"{log.data}: ablations", columns, 2, tuple(rows), notes)


def cost_table(log: Log) -> ReportTable | None:
    """Return memory, time and parameters of all trained models of a log; None if none is trained."""
    shown = [row for row in log.unchanged if row.is_trained]
    if not shown:
        return None
    parts = ("table", "encoder", "other")
    times = ("train s", "s/epoch", "val. s", "test s", "events/s")
    rows = []
    for row in shown:
        texts = [f"{row.runs[0][f'{part}_parameters']:,}" for part in parts]
        texts += [f"{row.mean('peak_memory') / MIB:,.0f}", f"{row.mean('train_seconds'):,.1f}"]
        texts += ["" if isnan(row.epoch_seconds) else f"{row.epoch_seconds:,.1f}"]
        texts += [f"{row.mean('validation_seconds'):,.1f}", f"{row.mean('test_seconds'):,.2f}"]
        texts += [f"{row.mean('events_per_second'):,.0f}", row.span("epochs"), row.span("steps")]
        rows.append((*_name(row), *map(Entry, texts)))
    columns = ("length", "model", *parts, "peak MiB", *times, "epochs", "steps")
    title, notes = f"{log.data}: costs by history length", (*COST_NOTES, *log.terms(shown))
    return ReportTable(f"costs_{log.data}", title, columns, 2, tuple(rows), notes)


def _name(row: Row) -> list[Entry]:
    return [Entry(f"{row.length:,}"), Entry(row.name)]


def _interval(quality: Quality, number: int, metric: int) -> Entry:
    low, high = quality.intervals[number, metric]
    return Entry(f"{low:.4f} to {high:.4f}")


def _training(row: Row) -> list[Entry]:
    counts = (row.span(name) if row.is_trained else "" for name in ("epochs", "steps"))
    return [Entry(text) for text in (f"{len(row.runs)}", *counts, row.best_after, row.rising)]
