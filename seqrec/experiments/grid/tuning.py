"""The choice among the trials of a cell, by validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seqrec.data.report_table import ReportTable, report_table
from seqrec.errors import InputError


def best_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the result with the best validation, the first of equal ones. Trials that diverged have none.

    Raises:
        InputError: if no trial has a validation.

    Example:
        >>> values = {".001": 0.1, ".003": 0.2, ".01": None}
        >>> trials = [
        ...     {"changes": [f"model.optimizer.lr={lr}"], "validation": value and {"value": value}}
        ...     for lr, value in values.items()
        ... ]
        >>> best_trial(trials)["changes"]
        ['model.optimizer.lr=.003']
    """
    judged = [trial for trial in trials if trial["validation"] is not None]
    if not judged:
        raise InputError(f"none of the {len(trials)} trials has a validation: try smaller step sizes")
    return max(judged, key=lambda trial: float(trial["validation"]["value"]))


def choice_of(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the chosen changes with the validation of all trials, as plain values."""
    best = best_trial(trials)
    about = {name: best[name] for name in ("data", "length", "model", "seed")}
    rows = [
        {
            "changes": trial["changes"],
            **(trial["validation"] or {"failure": trial["failure"]}),
            "train_seconds": trial.get("train_seconds"),
        }
        for trial in trials
    ]
    return {**about, "chosen": best["changes"], "at_the_end_of": ends_of(trials, best), "trials": rows}


def choice_table(choice: dict[str, Any]) -> ReportTable:
    """Return the table of a choice for people: the trials, best first, and what may be missing from their values."""
    rows = []
    for trial in sorted(choice["trials"], key=lambda trial: -trial.get("value", -1.0)):
        values = [change.partition("=")[2] for change in trial["changes"]]
        if "failure" in trial:
            rows.append([*values, "-", "-", trial["failure"]])
            continue
        end = "still rising" if trial["rising"] else trial["ended_by"]
        rows.append([*values, f"{trial['value']:.4f}", f"{trial['step']:,}", end])
    names = [change.partition("=")[0] for change in choice["trials"][0]["changes"]]
    heads = [*names, "val NDCG@10", "best after", "ended"]
    title = (
        f"{choice['data']} {choice['length']} {choice['model']}: {len(rows)} trials by validation, the first is taken"
    )
    notes = [f"{name} is at the end of its list: a wider one may be better" for name in choice["at_the_end_of"]]
    return report_table(heads, rows, words=len(heads), title=title, notes=notes)


def ends_of(trials: Sequence[dict[str, Any]], best: dict[str, Any]) -> list[str]:
    """Return the arguments with numbers of which the best trial has the least or the largest of several."""
    found = []
    for place, change in enumerate(best["changes"]):
        texts = {trial["changes"][place].partition("=")[2] for trial in trials}
        try:
            values = sorted(map(float, texts))
        except ValueError:
            continue
        if len(values) > 1 and float(change.partition("=")[2]) in (values[0], values[-1]):
            found.append(change.partition("=")[0])
    return found
