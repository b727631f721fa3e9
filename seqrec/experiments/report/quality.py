"""How well each row recommends: means, intervals, the best one and a test of whether it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqrec.evaluation.results.intervals import bootstrap_means, percentile_intervals, sign_flip_p_values
from seqrec.experiments.report.rows import METRICS, Log, Row
from seqrec.experiments.report.tables import Entry, Table

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
RESAMPLES = 2000


@dataclass(frozen=True)
class Quality:
    """Metrics of rows of one length, which judged the same users. R rows, M metrics.

    Attributes:
        rows: The rows.
        means: (R, M) over users and seeds.
        intervals: (R, M, 2) bootstrap intervals over the users.
        deviations: (R, M) standard deviation between seeds; NaN where there is one.
    """

    rows: tuple[Row, ...]
    means: NDArray[np.float64]
    intervals: NDArray[np.float64]
    deviations: NDArray[np.float64]

    def places(self, metric: int) -> list[int]:
        """Numbers of the rows, the best first."""
        places: list[int] = np.argsort(-self.means[:, metric], kind="stable").tolist()
        return places

    def p_value(self, one: int, other: int, metric: int) -> float:
        """Of the paired test between two rows."""
        difference = (self.rows[one].means - self.rows[other].means)[:, [metric]]
        return float(sign_flip_p_values(difference, resamples=RESAMPLES, seed=0)[0])


def judge(rows: Sequence[Row]) -> Quality:
    """Metrics of rows of one length."""
    columns = np.hstack([row.means for row in rows])
    resampled = bootstrap_means(columns, resamples=RESAMPLES, seed=0)
    seeds = [row.users.mean(1) for row in rows]
    deviations = [
        means.std(0, ddof=1) if len(means) > 1 else np.full(len(METRICS), np.nan) for means in seeds
    ]
    return Quality(
        tuple(rows),
        np.stack([means.mean(0) for means in seeds]),
        percentile_intervals(resampled, CONFIDENCE).reshape(len(rows), len(METRICS), 2),
        np.stack(deviations),
    )


def quality_table(log: Log) -> Table | None:
    """All lengths and models of a log; None where only ablations have results."""
    if not log.unchanged:
        return None
    rows: list[tuple[Entry, ...]] = []
    tested: list[str] = []
    for length in log.lengths:
        quality = judge(log.at(length))
        best = [quality.places(metric)[0] for metric in range(len(METRICS))]
        marks = [""] * len(METRICS)
        for metric, name in enumerate(METRICS):
            if len(quality.rows) > 1:
                first, second = quality.places(metric)[:2]
                p_value = quality.p_value(first, second, metric)
                marks[metric] = "†" if p_value < SIGNIFICANT else ""
                pair = f"{quality.rows[first].name} over {quality.rows[second].name}"
                tested.append(f"{name} at {length}: {pair}, p = {p_value:.4f}")
        for number, row in enumerate(quality.rows):
            cells = [Entry(f"{length:,}"), Entry(row.name)]
            for metric in range(len(METRICS)):
                is_best = number == best[metric]
                mean = f"{quality.means[number, metric]:.4f}{marks[metric] if is_best else ''}"
                low, high = quality.intervals[number, metric]
                cells += [Entry(mean, is_best), Entry(f"{low:.4f} to {high:.4f}")]
                cells.append(Entry(_deviation(quality.deviations[number, metric])))
            rows.append((*cells, *_training(row)))
    heads = [head for metric in METRICS for head in (metric, f"{CONFIDENCE:.0%} interval", "± seeds")]
    return Table(
        f"quality_{log.data}",
        f"{log.data}: quality by history length",
        ("length", "model", *heads, "seeds", "epochs", "steps"),
        2,
        tuple(rows),
        (
            *_signs(),
            *([f"Best against second: {'; '.join(tested)}"] if tested else []),
            *log.missing(),
            *log.terms(log.unchanged),
        ),
    )


def ablation_table(log: Log) -> Table | None:
    """Models with something changed, beside themselves; None where a log has no ablations."""
    rows: list[tuple[Entry, ...]] = []
    shown: list[Row] = []
    metric = METRICS.index("NDCG@10")
    for length in log.ablated_lengths:
        changed = log.at(length, ablated=True)
        quality = judge(changed)
        shown += changed
        names = {(row.model, row.ablation): number for number, row in enumerate(changed)}
        for number, row in enumerate(changed):
            low, high = quality.intervals[number, metric]
            cells = [Entry(f"{length:,}"), Entry(row.name), Entry(f"{quality.means[number, metric]:.4f}")]
            cells += [
                Entry(f"{low:.4f} to {high:.4f}"),
                *_change(quality, number, names.get((row.model, ""))),
            ]
            rows.append((*cells, *_training(row)))
    if not rows:
        return None
    columns = (
        "length",
        "model",
        "NDCG@10",
        f"{CONFIDENCE:.0%} interval",
        "change",
        "p",
        "seeds",
        "epochs",
        "steps",
    )
    return Table(
        f"ablations_{log.data}",
        f"{log.data}: ablations",
        columns,
        2,
        tuple(rows),
        ("Changes are to the same model unchanged, user by user, with a sign-flip test", *log.terms(shown)),
    )


def _change(quality: Quality, number: int, unchanged: int | None) -> list[Entry]:
    metric = METRICS.index("NDCG@10")
    if unchanged is None or unchanged == number:
        return [Entry(""), Entry("")]
    change = quality.means[number, metric] - quality.means[unchanged, metric]
    return [Entry(f"{change:+.4f}"), Entry(f"{quality.p_value(number, unchanged, metric):.4f}")]


def _training(row: Row) -> list[Entry]:
    return [
        Entry(f"{len(row.runs)}"),
        *(Entry(row.span(name) if row.is_trained else "") for name in ("epochs", "steps")),
    ]


def _deviation(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


def _signs() -> tuple[str, ...]:
    return (
        f"Means over seeds and users; intervals of {RESAMPLES:,} bootstrap resamples of the users; ± is the standard "
        "deviation between seeds, which neither the intervals nor the test hold",
        f"Bold: best of its length; † where it beats the second in a paired sign-flip test, p < {SIGNIFICANT:g}, not "
        "adjusted for the number of comparisons",
    )
