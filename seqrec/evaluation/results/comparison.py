"""Comparison of runs on the same targets: means, intervals, paired differences, and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.progress import Progress
from seqrec.data.report_table import Part, report_table
from seqrec.errors import InputError, check_at_least
from seqrec.evaluation.results.file import Results, Slice, slices_of
from seqrec.evaluation.results.intervals import bootstrap_means, percentile_intervals, sign_flip_p_values

METRICS = ("HR@10", "NDCG@10", "MRR@10")


@dataclass(frozen=True)
class Difference:
    """Difference of a run to the first one, over the same users.

    Attributes:
        mean: Its mean minus that of the first run.
        interval: Bootstrap interval of the mean.
        p_value: Two-sided p-value of the sign-flip test; not adjusted for the number of comparisons.
    """

    mean: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Estimate:
    """A metric of one run over one slice.

    Attributes:
        slice: Name of the slice; "all" for all targets.
        users: Users with a target in the slice.
        targets: Targets in the slice.
        metric: Name, such as "HR@10".
        run: Name of the run.
        mean: Mean over the users.
        interval: Bootstrap interval of the mean.
        difference: To the first run; None for the first run itself.
    """

    slice: str
    users: int
    targets: int
    metric: str
    run: str
    mean: float
    interval: tuple[float, float]
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Metrics of runs over the same targets.

    Attributes:
        models: Name of each run's model, by the run's name.
        protocols: Protocol id of each run, by the run's name.
        confidence: Share of the resamples inside an interval.
        resamples: Number of resamples for intervals and p-values.
        estimates: Estimates, ordered by slice, metric and run.

    Example:
        >>> from seqrec import Comparison
        >>> Comparison({"a": "SASRec"}, {"a": "full"}, 0.95, 1000, ()).models
        {'a': 'SASRec'}
    """

    models: dict[str, str]
    protocols: dict[str, str]
    confidence: float
    resamples: int
    estimates: tuple[Estimate, ...]


def compare(
    runs: Sequence[Results],
    *,
    metrics: Sequence[str] = METRICS,
    slices: bool = False,
    across_protocols: bool = False,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare runs with the first of them, user by user.

    Args:
        runs: Results of one or more runs.
        metrics: Names such as "HR@10"; see `seqrec.evaluation.metrics.metric_named`.
        slices: Whether slices of the targets are compared too; see `slices_of`.
        across_protocols: Whether runs of different protocols may be compared. Their targets must still be the same.
        resamples: Resamples of users for intervals, and draws of the sign-flip test.
        confidence: Share of the resamples inside an interval.
        seed: Seed of both.
        progress: Shows how many slices are compared; None shows nothing.

    Raises:
        InputError: if the runs' protocols, catalogues, users or targets differ, two have the same name, or a number
            is out of range.

    Example:
        >>> import polars as pl
        >>> from seqrec import compare
        >>> from seqrec.evaluation.results import Header, Results, comparison_text
        >>> header = Header("SASRec", "full-seenout-tiemean-loo", {}, "achievable", 100, 9, 3)
        >>> ranks = {"user_id": [7, 9], "item_id": [1, 2], "better": [0, 4], "tied": [0, 0]}
        >>> others = {"history_length": [5, 8], "repeated": [False, False]}
        >>> runs = [Results("run", header, pl.DataFrame({**ranks, **others}))]
        >>> print(comparison_text(compare(runs, metrics=["HR@1"])))
        2 users, 2 targets, protocol full-seenout-tiemean-loo
        run: SASRec
        intervals of 1,000 bootstrap resamples of the users
        <BLANKLINE>
        metric    run      mean      95% interval
        HR@1      run    0.5000  0.0000 to 1.0000
    """
    check_at_least(1, resamples=resamples)
    check_at_least(0, seed=seed)
    if not metrics:
        raise InputError("metrics is empty; name at least one, such as HR@10")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"a run is compared with itself: {', '.join(names)}; give different ones")
    for run in runs[1:]:
        _refuse_other_terms(runs[0], run, across_protocols)
        _refuse_other_targets(runs[0], run)
    parts = [Slice("all", np.ones(len(runs[0].frame), dtype=bool)), *(slices_of(runs[0]) if slices else [])]
    estimates: list[Estimate] = []
    for part in (progress or Progress()).each("comparing", parts, "slices"):
        estimates += _estimates([run.only(part.kept) for run in runs], part.name, metrics, resamples, confidence, seed)
    models = {run.name: run.header.model for run in runs}
    protocols = {run.name: run.header.protocol for run in runs}
    return Comparison(models, protocols, confidence, resamples, tuple(estimates))


def _estimates(
    runs: Sequence[Results], name: str, metrics: Sequence[str], resamples: int, confidence: float, seed: int
) -> list[Estimate]:
    values = [run.metrics(metrics) for run in runs]
    # All runs at once, because they must get the same resamples.
    resampled = bootstrap_means(np.hstack(values), resamples=resamples, seed=seed)
    drawn = np.split(resampled, len(runs), axis=1)
    intervals = [percentile_intervals(means, confidence) for means in drawn]
    changes: list[list[Difference | None]] = [[None] * len(metrics)]
    for own, means in zip(values[1:], drawn[1:], strict=True):
        difference = own - values[0]
        p_values = sign_flip_p_values(difference, resamples=resamples, seed=seed)
        ends = percentile_intervals(means - drawn[0], confidence)
        changes.append(
            [
                Difference(float(mean), _pair(end), float(p_value))
                for mean, end, p_value in zip(difference.mean(0), ends, p_values, strict=True)
            ]
        )
    return [
        Estimate(
            slice=name,
            users=runs[0].num_users,
            targets=len(runs[0].frame),
            metric=metric,
            run=run.name,
            mean=math.fsum(values[place][:, column]) / len(values[place]),
            interval=_pair(intervals[place][column]),
            difference=changes[place][column],
        )
        for column, metric in enumerate(metrics)
        for place, run in enumerate(runs)
    ]


def _pair(ends: NDArray[np.float64]) -> tuple[float, float]:
    low, high = ends.tolist()
    return low, high


def _refuse_other_terms(first: Results, other: Results, across_protocols: bool) -> None:
    one, two = first.header, other.header
    if one.num_items != two.num_items:
        raise InputError(
            f"{first.name} and {other.name} have catalogues of {one.num_items:,} and {two.num_items:,} items; "
            "test both on one event store"
        )
    if across_protocols:
        return
    if one.protocol != two.protocol:
        difference = f"{one.protocol} and {two.protocol}"
    else:
        missing = object()
        mine, theirs = _switched_on(one.settings), _switched_on(two.settings)
        changed = [key for key in {**mine, **theirs} if mine.get(key, missing) != theirs.get(key, missing)]
        if not changed:
            return
        difference = f"both named {one.protocol}, with different {', '.join(changed)}"
    raise InputError(
        f"{first.name} and {other.name} were judged by different protocols, {difference}; test both by one, or "
        "compare them anyway: --across_protocols true"
    )


def _switched_on(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without switches that are off and filters that are unset, which older files do not have."""
    inner = {key: _switched_on(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in inner.items() if value is not False and value is not None}


def _refuse_other_targets(first: Results, other: Results) -> None:
    keys = ["user_id", "item_id"]
    if first.frame.select(keys).schema != other.frame.select(keys).schema:
        raise InputError(f"{first.name} and {other.name} are of different logs: their ids differ in type")
    if first.frame.select(keys).equals(other.frame.select(keys)):
        return
    frames = [run.frame.group_by(keys).len() for run in (first, other)]
    users = [frame.select("user_id").unique() for frame in frames]
    alone = [users[a].join(users[1 - a], on="user_id", how="anti").height for a in (0, 1)]
    changed = pl.concat([frames[a].join(frames[1 - a], on=[*keys, "len"], how="anti") for a in (0, 1)])
    both = changed.join(users[0], on="user_id", how="semi").join(users[1], on="user_id", how="semi")
    raise InputError(
        f"{first.name} and {other.name} have different targets: {alone[0]:,} users are only in the first, "
        f"{alone[1]:,} only in the second, and {both['user_id'].n_unique():,} that are in both have other targets; "
        "test both on one event store with one split, without limits on the batches"
    )


def comparison_text(comparison: Comparison) -> str:
    """Return the comparison's terms, and a table with a line for each slice, metric and run."""
    return "\n".join(map(str, comparison_parts(comparison)))


def comparison_parts(comparison: Comparison) -> list[Part]:
    """Return a comparison's terms as lines, and its estimates as a table."""
    share = f"{100 * comparison.confidence:.4g}%"
    columns = ["slice", "users", "metric", "run", "mean", f"{share} interval"]
    compared = len(comparison.protocols) > 1
    if compared:
        columns += ["difference", f"{share} interval", "p"]
    first = 0 if len({estimate.slice for estimate in comparison.estimates}) > 1 else 2
    rows = [_cells(estimate, compared)[first:] for estimate in comparison.estimates]
    return [*_terms(comparison), "", report_table(columns[first:], rows, words=columns.index("mean") - first)]


def _terms(comparison: Comparison) -> list[str]:
    everyone, protocols = comparison.estimates[0], comparison.protocols
    one_protocol = len(set(protocols.values())) == 1
    judged = f"protocol {protocols[everyone.run]}" if one_protocol else "different protocols"
    lines = [f"{everyone.users:,} users, {everyone.targets:,} targets, {judged}"]
    for run, model in comparison.models.items():
        lines.append(f"{run}: {model}" if one_protocol else f"{run}: {model}, protocol {protocols[run]}")
    lines.append(f"intervals of {comparison.resamples:,} bootstrap resamples of the users")
    if len(comparison.protocols) > 1:
        lines.append(
            f"differences to {everyone.run}, user by user; p of a sign-flip test, not adjusted for the number of "
            "comparisons"
        )
    return lines


def _cells(estimate: Estimate, compared: bool) -> list[str]:
    cells = [
        estimate.slice,
        f"{estimate.users:,}",
        estimate.metric,
        estimate.run,
        f"{estimate.mean:.4f}",
        _interval(estimate.interval, ""),
    ]
    if not compared:
        return cells
    change = estimate.difference
    if change is None:
        return [*cells, "", "", ""]
    return [*cells, f"{change.mean:+.4f}", _interval(change.interval, "+"), f"{change.p_value:.4f}"]


def _interval(ends: tuple[float, float], sign: str) -> str:
    return " to ".join(f"{end:{sign}.4f}" for end in ends)
