"""Metrics as a table for people and as a file for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line a model, one column a metric, four decimals."""
    columns = sorted(next(iter(rows.values())), key=_by_metric_and_cutoff)
    width = max(len("model"), *(len(name) for name in rows))
    widths = {column: max(8, len(column)) for column in columns}
    lines = ["  ".join([f"{'model':<{width}}", *(f"{column:>{widths[column]}}" for column in columns)])]
    for name, values in rows.items():
        cells = (f"{values[column]:>{widths[column]}.4f}" for column in columns)
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def write_metrics(
    path: Path,
    rows: Mapping[str, Mapping[str, float]],
    protocol: Mapping[str, Any],
    *,
    users: int,
    left_out: Mapping[str, int],
) -> None:
    """Write metrics with the protocol that they belong to, as JSON; what is not a number becomes null.

    Args:
        path: The file.
        rows: Metrics by model.
        protocol: What `Protocol.describe` says.
        users: Users that were judged.
        left_out: Users that the split does not judge, by the reason.
    """
    models = {
        name: {metric: None if math.isnan(value) else value for metric, value in values.items()}
        for name, values in rows.items()
    }
    content = {
        "protocol": protocol["id"],
        "settings": dict(protocol),
        "users": users,
        "left_out": dict(left_out),
        "models": models,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _by_metric_and_cutoff(name: str) -> tuple[str, int]:
    metric, _, cutoff = name.partition("@")
    return metric, int(cutoff or 0)
