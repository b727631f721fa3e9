"""Metrics as a table for people and as a JSON file for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec.data.report_table import Part, ReportTable, report_table
from seqrec.evaluation.metrics import COLD, EXPOSED, LIST_METRICS, WARM
from seqrec.evaluation.protocols import Protocol
from seqrec.files import write_json


def interval_text(pair: Sequence[float | None] | None, sign: str = "") -> str:
    """Return the ends of an interval to four decimals, with "+" as `sign` for differences; empty if it, or one of its
    ends, is None or NaN.
    """
    ends = [] if pair is None else [end for end in pair if end is not None and not math.isnan(end)]
    return " to ".join(f"{end:{sign}.4f}" for end in ends) if len(ends) == 2 else ""


def number_text(value: float | None) -> str:
    """Return a number to four decimals; empty for None."""
    return "" if value is None else f"{value:.4f}"


def finite(value: float) -> float | None:
    """Return a number as JSON has it: NaN becomes None."""
    return None if math.isnan(value) else value


def metrics_table(
    rows: Mapping[str, Mapping[str, float]], intervals: Mapping[str, tuple[float, float]] | None = None
) -> ReportTable:
    """Return the table of `metrics_cells`.

    Example:
        >>> print(metrics_table({"SASRec": {"HR@10": 0.75, "HR@5": 0.5}}))
        model      HR@5    HR@10
        SASRec   0.5000   0.7500
    """
    return report_table(*metrics_cells(rows, intervals))


def metrics_cells(
    rows: Mapping[str, Mapping[str, float | None]], intervals: Mapping[str, tuple[float, float]] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return column names, and a line for each model with each metric to four decimals.

    Metrics of cold and warm targets, which have prefixes, are in lines of their own. Those of lists and exposed items
    are left out, for the tables of `ListReport` and `ExposureReport`. `intervals` are 95% intervals of NDCG@10 by
    model, which get a column if there are any.

    Example:
        >>> metrics_cells({"SASRec": {"HR@10": 0.75, "HR@5": 0.5}})
        (['model', 'HR@5', 'HR@10'], [['SASRec', '0.5000', '0.7500']])
    """
    names = list(next(iter(rows.values())))
    others = (COLD, WARM, EXPOSED)
    shown = (name for name in names if not name.startswith(others) and name.partition("@")[0] not in LIST_METRICS)
    columns = sorted(shown, key=_by_metric_and_cutoff)
    parts = {"": ""}
    if any(name.startswith((COLD, WARM)) for name in names):
        parts |= {", cold items": COLD, ", warm items": WARM}
    ends = {name: interval_text(pair) for name, pair in (intervals or {}).items()}
    lines = [
        [
            f"{name}{part}",
            *(number_text(values.get(f"{prefix}{column}")) for column in columns),
            *([ends.get(f"{name}{part}", "")] if ends else []),
        ]
        for name, values in rows.items()
        for part, prefix in parts.items()
    ]
    return ["model", *columns, *(["NDCG@10, 95% interval"] if ends else [])], lines


def report_parts(
    heading: str,
    rows: Mapping[str, Mapping[str, float]],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    caveats: Sequence[str] = (),
    notes: Sequence[Part] = (),
) -> list[Part]:
    r"""Return what people read after a test: a heading, a warning if there are caveats, the table, and notes.

    Example:
        >>> print(*report_parts("test of 9 users", {"SASRec": {"HR@10": 0.75}}, notes=["a note"]), sep="\n")
        <BLANKLINE>
        test of 9 users
        model      HR@10
        SASRec    0.7500
        a note
    """
    warning = f"warning: these are figures of {' and '.join(caveats)}; compare them with no others"
    return ["", heading, *([warning] if caveats else []), metrics_table(rows, intervals), *notes]


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
    path: Path | None,
    rows: Mapping[str, Mapping[str, float]],
    protocol: Mapping[str, Any],
    *,
    users: int,
    left_out: Mapping[str, int],
    repeated: float,
    caveats: Sequence[str] = (),
    baselines: Mapping[str, Any] | None = None,
    lists: Mapping[str, Any] | None = None,
    exposures: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write metrics by model with the settings of their protocol, from `Protocol.describe`, as JSON; NaN becomes null.

    Without a `path` nothing is written. The content is returned.

    `users` were evaluated; `left_out` counts those that the split leaves out, by reason. `repeated` is the share of the
    targets that are in the user's history; `caveats` are from the function of that name. `baselines` are intervals and
    differences to those among the models; None if none are compared. `lists` and `exposures` are `as_dict` of
    `ListReport` and `ExposureReport`.
    """
    models = {name: {metric: finite(value) for metric, value in values.items()} for name, values in rows.items()}
    content = {
        "protocol": protocol["id"],
        "settings": dict(protocol),
        "users": users,
        "left_out": dict(left_out),
        "repeated_targets": repeated,
        "caveats": list(caveats),
        "models": models,
        "baselines": baselines,
        "lists": lists,
        "exposures": exposures,
    }
    if path is not None:
        write_json(path, content)
    return content


def _by_metric_and_cutoff(name: str) -> tuple[str, int]:
    metric, _, cutoff = name.partition("@")
    return metric, int(cutoff or 0)
