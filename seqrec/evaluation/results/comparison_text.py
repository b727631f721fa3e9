"""A comparison for people to read."""

from __future__ import annotations

from collections.abc import Sequence

from seqrec.evaluation.results.comparison import Comparison, Estimate


def comparison_text(comparison: Comparison) -> str:
    """What is compared by which terms, and a table with a line a slice, metric and run."""
    share = f"{100 * comparison.confidence:.4g}%"
    columns = ["slice", "users", "metric", "run", "mean", f"{share} interval"]
    compared = len(comparison.protocols) > 1
    if compared:
        columns += ["difference", f"{share} interval", "p"]
    sliced = len({estimate.slice for estimate in comparison.estimates}) > 1
    table = [columns, *(_cells(estimate, compared) for estimate in comparison.estimates)]
    if not sliced:
        table = [row[2:] for row in table]
    return "\n".join([*_terms(comparison), "", *_aligned(table, figures_from="mean")])


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


def _aligned(table: Sequence[Sequence[str]], figures_from: str) -> list[str]:
    """Lines of a table with words on the left and, from the column `figures_from` on, figures on the right."""
    words = table[0].index(figures_from)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
