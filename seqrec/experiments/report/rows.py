"""The rows of a report: cells that differ in their seed alone, with the metrics of each user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec.errors import InputError
from seqrec.evaluation.results import read_results
from seqrec.experiments.grid.budget import Budget
from seqrec.experiments.grid.cells import ENCODERS, is_baseline
from seqrec.experiments.grid.outcome import RUN_FOLDER

if TYPE_CHECKING:
    import polars

METRICS = ("HR@10", "NDCG@10")


@dataclass(frozen=True)
class Row:
    """One model at one length.

    Attributes:
        length: Events of a history, at most.
        model: Name of the encoder or baseline.
        ablation: What was changed; empty for nothing.
        runs: What is known of each run, seed after seed: the columns of the grid's results.
        users: (S, U, M) float64, `METRICS` of each user in each run.
    """

    length: int
    model: str
    ablation: str
    runs: tuple[dict[str, Any], ...]
    users: NDArray[np.float64]

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.model + (f", {self.ablation}" if self.ablation else "")

    @property
    def is_trained(self) -> bool:
        """Whether it is no baseline."""
        return not is_baseline(self.model)

    @property
    def means(self) -> NDArray[np.float64]:
        """(U, M) each user's metrics, mean over the runs."""
        means: NDArray[np.float64] = self.users.mean(0)
        return means

    def mean(self, column: str) -> float:
        """Of what the runs took."""
        return float(np.mean([run[column] or 0 for run in self.runs]))

    @property
    def epoch_seconds(self) -> float:
        """Of training an epoch, mean over the runs; NaN where none had a whole one."""
        known = [run["epoch_seconds"] for run in self.runs if run["epoch_seconds"] is not None]
        return float(np.mean(known)) if known else float("nan")

    def span(self, column: str) -> str:
        """Of a count: one number where all runs have it, else the least and the most."""
        values = [run[column] for run in self.runs]
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@dataclass(frozen=True)
class Log:
    """All rows of one log.

    Attributes:
        data: Its name.
        rows: Length after length, baselines first, then the encoders in their usual order, each with its ablations.
    """

    data: str
    rows: tuple[Row, ...]

    @property
    def unchanged(self) -> list[Row]:
        """Rows without ablations."""
        return [row for row in self.rows if not row.ablation]

    @property
    def lengths(self) -> list[int]:
        """Of rows without ablations, ascending."""
        return sorted({row.length for row in self.unchanged})

    @property
    def ablated_lengths(self) -> list[int]:
        """Of rows with ablations, ascending."""
        return sorted({row.length for row in self.rows if row.ablation})

    def at(self, length: int, *, ablated: bool = False) -> list[Row]:
        """Rows of one length: with ablations, those of the models that have some, or without them."""
        if not ablated:
            return [row for row in self.unchanged if row.length == length]
        found = [row for row in self.rows if row.length == length]
        models = {row.model for row in found if row.ablation}
        return [row for row in found if row.model in models]

    def missing(self) -> list[str]:
        """What a table by length should say of models that stand at some lengths alone; empty for nothing."""
        there = {(row.model, row.length) for row in self.unchanged}
        models = dict.fromkeys(row.model for row in self.unchanged)
        absent = [f"{model} at {n:,}" for n in self.lengths for model in models if (model, n) not in there]
        return [f"Not run, or failed: {', '.join(absent)}"] if absent else []

    def terms(self, rows: Sequence[Row]) -> list[str]:
        """What holds for rows: protocol, budget, versions, hardware, command."""
        runs = [run for row in rows for run in row.runs]
        budgets = sorted({run["budget"] for run in runs})
        said = (
            Budget.parse(budgets[0]).describe_optimizer
            if len(budgets) == 1
            else f"rows differ: {', '.join(budgets)}"
        )
        protocols = {f"`{run['protocol']}`, {run['users']:,} users": None for run in runs}
        return [
            f"Protocol {'; '.join(protocols)}; the epoch that is best in validation is tested",
            f"Budget: {said}",
            *(f"Made by `{command}`" for command in {run["made_by"]: None for run in runs}),
            f"On {'; '.join({run['hardware']: None for run in runs})}",
            *(f"With {versions}" for versions in {run["versions"]: None for run in runs}),
        ]


def read_logs(folder: Path, results: polars.DataFrame) -> list[Log]:
    """The rows of each log of a grid.

    Args:
        folder: Of the grid.
        results: Its results.

    Raises:
        InputError: cells of one log judged other users, or by other protocols.
    """
    cells = results.unique(subset="place").sort("place")
    logs = []
    for data in cells["data"].unique().sort():
        runs = cells.filter(data=data).to_dicts()
        rows = sorted(_rows(folder, runs), key=lambda row: (row.length, *_order(row)))
        logs.append(Log(data, tuple(rows)))
    return logs


def _rows(folder: Path, runs: list[dict[str, Any]]) -> Iterator[Row]:
    first = read_results(folder / runs[0]["place"] / RUN_FOLDER)
    targets = first.frame.select("user_id", "item_id")
    found: dict[tuple[int, str, str], list[tuple[dict[str, Any], NDArray[np.float64]]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        ranks = read_results(folder / run["place"] / RUN_FOLDER)
        same = ranks.frame.select("user_id", "item_id").equals(targets)
        if not same or ranks.header.protocol != first.header.protocol:
            raise InputError(
                f"{runs[0]['place']} and {run['place']} did not judge the same users and items by one protocol, so "
                "that they cannot stand in one table; run the grid again into an empty folder"
            )
        key = (run["length"], run["model"], run["ablation"])
        found.setdefault(key, []).append((run, ranks.metrics(METRICS)))
    for key, pairs in found.items():
        yield Row(*key, tuple(run for run, _ in pairs), np.stack([users for _, users in pairs]))


def _order(row: Row) -> tuple[int, str, str]:
    place = ENCODERS.index(row.model) if row.model in ENCODERS else len(ENCODERS) if row.is_trained else -1
    return place, row.model, row.ablation
