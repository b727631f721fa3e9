"""Metrics as a table for people and as a JSON file for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from seqrec.evaluation.metrics import COLD, WARM
from seqrec.evaluation.protocols import Protocol
from seqrec.files import write_json


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """Return a table in plain text, with the first `names` columns aligned left and the others right.

    Example:
        >>> print(text_table(["model", "HR@10"], [["SASRec", "0.25"], ["Pop", "0.1"]]))
        model      HR@10
        SASRec      0.25
        Pop          0.1
    """
    align = ["left" if column < names else "right" for column in range(len(headers))]
    return tabulate(rows, headers=headers, tablefmt="plain", colalign=align, disable_numparse=True)


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with a line for each model and a column for each metric, to four decimals.

    Metrics of cold and warm targets, which have prefixes, are in lines of their own.

    Example:
        >>> print(metrics_table({"SASRec": {"HR@10": 0.75, "HR@5": 0.5}}))
        model      HR@5    HR@10
        SASRec   0.5000   0.7500
    """
    names = list(next(iter(rows.values())))
    columns = sorted((name for name in names if not name.startswith((COLD, WARM))), key=_by_metric_and_cutoff)
    parts = {"": ""}
    if len(names) > len(columns):
        parts |= {", cold items": COLD, ", warm items": WARM}
    lines = [
        [f"{name}{part}", *(f"{values[f'{prefix}{column}']:.4f}" for column in columns)]
        for name, values in rows.items()
        for part, prefix in parts.items()
    ]
    return text_table(["model", *columns], lines)


def note_on_repeats(repeated: float, protocol: Protocol) -> str | None:
    """Return a line for people if lists by a protocol can never contain some targets; None if they can.

    `repeated` is the share of the targets that are in the user's history.

    Example:
        >>> from seqrec import FullRanking
        >>> note_on_repeats(0.0, FullRanking()) is None
        True
        >>> note_on_repeats(0.25, FullRanking())[:58]
        "25.0% of the targets were in the user's history: no list w"
    """
    if not (repeated > 0 and protocol.filter_seen):
        return None
    return (
        f"{repeated:.1%} of the targets were in the user's history: no list without seen items can contain them, "
        "though this protocol ranks them; to judge lists that repeat items, set --protocol.filter_seen false"
    )


def write_metrics(
    path: Path,
    rows: Mapping[str, Mapping[str, float]],
    protocol: Mapping[str, Any],
    *,
    users: int,
    left_out: Mapping[str, int],
    repeated: float,
    caveats: Sequence[str] = (),
) -> None:
    """Write metrics by model with the settings of their protocol, from `Protocol.describe`, as JSON; NaN becomes null.

    `users` were evaluated; `left_out` counts those that the split leaves out, by reason. `repeated` is the share of the
    targets that are in the user's history; `caveats` are from the function of that name.
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
        "repeated_targets": repeated,
        "caveats": list(caveats),
        "models": models,
    }
    write_json(path, content)


def _by_metric_and_cutoff(name: str) -> tuple[str, int]:
    metric, _, cutoff = name.partition("@")
    return metric, int(cutoff or 0)
