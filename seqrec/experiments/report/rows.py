"""The rows of a report: cells that differ only in their seed, with the metrics of each user, and their comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import InputError
from seqrec.evaluation.results.intervals import bootstrap_means, percentile_intervals, sign_flip_p_values
from seqrec.experiments import ENCODERS, is_baseline
from seqrec.experiments.grid.cells import Budget
from seqrec.experiments.grid.result import METRICS, UserMetrics

CONFIDENCE = 0.95
RESAMPLES = 2000
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One model at one length; `ablation` is empty if nothing is changed.

    Attributes:
        runs: The result of each run, seed after seed.
        users: (S, U, M) float64, `METRICS` of each user in each run.
    """

    length: int
    model: str
    ablation: str
    runs: tuple[dict[str, Any], ...]
    users: Float64

    @property
    def name(self) -> str:
        """The model with its ablation, for tables."""
        return self.model + (f", {self.ablation}" if self.ablation else "")

    @property
    def is_trained(self) -> bool:
        """Whether it is no baseline."""
        return not is_baseline(self.model)

    @property
    def means(self) -> Float64:
        """(U, M) each user's metrics, mean over the runs."""
        return np.asarray(self.users.mean(0))

    def mean(self, column: str) -> float:
        """Return the mean of a column over the runs."""
        return float(np.mean([run[column] or 0 for run in self.runs]))

    @property
    def epoch_seconds(self) -> float:
        """Seconds of training per epoch, mean over the runs; NaN if none had a complete one."""
        known = [run["epoch_seconds"] for run in self.runs if run["epoch_seconds"] is not None]
        return float(np.mean(known)) if known else float("nan")

    def span(self, column: str) -> str:
        """Return a count in words: one number if all runs have it, else the least and the most."""
        return _span([run[column] for run in self.runs])

    @property
    def best_after(self) -> str:
        """Updates of the best validation, as `span` writes them; empty if no validation chose."""
        return _span([run["validation"]["step"] for run in self.runs if run["validation"] is not None])

    @property
    def rising(self) -> str:
        """Runs whose budget ended while validation still rose: "yes" means all, "no" none; else how many of them."""
        values = [run["validation"]["rising"] for run in self.runs if run["validation"] is not None]
        if not values:
            return ""
        return {0: "no", len(values): "yes"}.get(sum(values), f"{sum(values)} of {len(values)}")


@dataclass(frozen=True)
class Log:
    """All rows of one log, by length: baselines, then encoders in table order, each followed by its ablations."""

    data: str
    rows: tuple[Row, ...]

    @property
    def unchanged(self) -> list[Row]:
        """Rows without ablations."""
        return [row for row in self.rows if not row.ablation]

    @property
    def lengths(self) -> list[int]:
        """Lengths of rows without ablations, ascending."""
        return sorted({row.length for row in self.unchanged})

    @property
    def ablated_lengths(self) -> list[int]:
        """Lengths of rows with ablations, ascending."""
        return sorted({row.length for row in self.rows if row.ablation})

    def at(self, length: int, *, ablated: bool = False) -> list[Row]:
        """Return the rows of one length: those without ablations, or all of the models that have ablations."""
        if not ablated:
            return [row for row in self.unchanged if row.length == length]
        found = [row for row in self.rows if row.length == length]
        models = {row.model for row in found if row.ablation}
        return [row for row in found if row.model in models]

    def missing(self) -> list[str]:
        """Return a note about models that are missing at some lengths; empty if none are."""
        there = {(row.model, row.length) for row in self.unchanged}
        models = dict.fromkeys(row.model for row in self.unchanged)
        absent = [f"{model} at {n:,}" for n in self.lengths for model in models if (model, n) not in there]
        return [f"Not run, or failed: {', '.join(absent)}"] if absent else []

    def terms(self, rows: Sequence[Row]) -> list[str]:
        """Return notes that hold for rows: budget, protocol, command, hardware, versions."""
        runs = [run for row in rows for run in row.runs]
        budgets = sorted({run["budget"] for run in runs})
        protocols = {f"`{run['protocol']}`, {run['users']:,} users": None for run in runs}
        differ = f"rows differ: {', '.join(budgets)}"
        return [
            f"Budget: {Budget.parse(budgets[0]).description if len(budgets) == 1 else differ}",
            f"Protocol {'; '.join(protocols)}",
            *(f"Made by `{command}`" for command in {run["made_by"]: None for run in runs}),
            f"Hardware: {'; '.join({run['hardware']: None for run in runs})}",
            *(f"Versions: {versions}" for versions in {run["versions"]: None for run in runs}),
        ]


@dataclass(frozen=True)
class Quality:
    """Metrics of rows of one length, of the same users. R rows, M metrics.

    Attributes:
        means: (R, M) over users and seeds.
        intervals: (R, M, 2) bootstrap intervals over the users.
        deviations: (R, M) standard deviation between seeds; NaN for one seed.
    """

    rows: tuple[Row, ...]
    means: Float64
    intervals: Float64
    deviations: Float64

    def places(self, metric: int) -> list[int]:
        """Return the numbers of the rows, best first."""
        return list(np.argsort(-self.means[:, metric], kind="stable"))

    def p_value(self, one: int, other: int, metric: int) -> float:
        """Return the p-value of the paired test between two rows."""
        difference = (self.rows[one].means - self.rows[other].means)[:, [metric]]
        return float(sign_flip_p_values(difference, resamples=RESAMPLES, seed=0)[0])


def judge(rows: Sequence[Row]) -> Quality:
    """Return the metrics of rows of one length."""
    columns = np.hstack([row.means for row in rows])
    resampled = bootstrap_means(columns, resamples=RESAMPLES, seed=0)
    seeds = [row.users.mean(1) for row in rows]
    intervals = percentile_intervals(resampled, CONFIDENCE).reshape(len(rows), len(METRICS), 2)
    unknown = np.full(len(METRICS), np.nan)
    deviations = [means.std(0, ddof=1) if len(means) > 1 else unknown for means in seeds]
    return Quality(tuple(rows), np.stack([means.mean(0) for means in seeds]), intervals, np.stack(deviations))


def read_logs(results: Sequence[dict[str, Any]]) -> list[Log]:
    """Return the rows of each log of a grid from the results of its cells.

    Raises:
        InputError: if cells of one log were tested on other users, or by other protocols.
    """
    logs = []
    for data in sorted({run["data"] for run in results}):
        runs = [run for run in results if run["data"] == data]
        rows = sorted(_rows(runs), key=lambda row: (row.length, *_order(row)))
        logs.append(Log(data, tuple(rows)))
    return logs


def _rows(runs: list[dict[str, Any]]) -> Iterator[Row]:
    first = UserMetrics.from_plain(runs[0]["user_metrics"])
    found: dict[tuple[int, str, str], list[tuple[dict[str, Any], Float64]]] = {}
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        own = UserMetrics.from_plain(run["user_metrics"])
        if own.targets != first.targets or run["protocol"] != runs[0]["protocol"]:
            names = " and ".join(f"{r['data']} {r['length']} {r['model']} seed {r['seed']}" for r in (runs[0], run))
            differ = "were not tested on the same users and items by one protocol, and cannot be in one table"
            raise InputError(f"{names} {differ}; run the grid again in an empty folder")
        key = (run["length"], run["model"], run["ablation"])
        found.setdefault(key, []).append((run, own.values))
    for key, pairs in found.items():
        yield Row(*key, tuple(run for run, _ in pairs), np.stack([users for _, users in pairs]))


def _order(row: Row) -> tuple[int, str, str]:
    place = ENCODERS.index(row.model) if row.model in ENCODERS else len(ENCODERS) if row.is_trained else -1
    return place, row.model, row.ablation


def _span(values: Sequence[int]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
