"""Metrics as a table for people and as a file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line a model, one column a metric, four decimals."""
    columns = sorted(next(iter(rows.values())), key=_by_metric_and_cutoff)
    width = max(len("model"), *(len(name) for name in rows))
    lines = ["  ".join([f"{'model':<{width}}", *(f"{column:>8}" for column in columns)])]
    for name, values in rows.items():
        lines.append("  ".join([f"{name:<{width}}", *(f"{values[column]:>8.4f}" for column in columns)]))
    return "\n".join(lines)


def write_metrics(path: Path, rows: Mapping[str, Mapping[str, float]], protocol_id: str) -> None:
    """Write metrics with the protocol that they belong to, as JSON."""
    content = {"protocol": protocol_id, "models": {name: dict(values) for name, values in rows.items()}}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _by_metric_and_cutoff(name: str) -> tuple[str, int]:
    metric, _, cutoff = name.partition("@")
    return metric, int(cutoff or 0)
