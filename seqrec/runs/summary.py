"""The summary of a run, as one JSON file for programs."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from seqrec.errors import InputError, MissingInputError
from seqrec.files import write_text

FILE_NAME = "summary.json"


@dataclass(frozen=True)
class Summary:
    """`summary.json` of a run's folder, key by key.

    It is written when training starts, at each epoch's end and when the run ends in any way. Counts and seconds are
    those of the whole run, resumed or not; work that is repeated because a run was killed after its last checkpoint
    counts once. Events and tokens are summed over processes, memory is the largest process's, and seconds are the
    first process's, measured with the device synchronised. Numbers that are not finite are null.

    Attributes:
        status: "running", "finished", "interrupted" by Ctrl+C or SIGTERM, or "failed". A run that was killed stays
            "running".
        error: Kind and message of the error that ended the run; None without one.
        model: The model's title, such as "MambaRec".
        epochs: Epochs trained to their end.
        steps: Optimiser steps.
        events: Events of the windows trained on, without padding.
        tokens: The same with padding.
        targets: Targets trained on: fewer than `events` if `data.targets` is set, else as many.
        seconds: By phase: `prepare` (opening or preparing the store), `train` (reading batches included), `validate`
            (while fitting, or by that command), `test`, `checkpoint` (writing them). Phases do not overlap.
        events_per_second: `events` divided by the seconds of `train`; None without training.
        tokens_per_second: `tokens` divided by the seconds of `train`; None without training.
        peak_memory: Bytes. `host`: peak resident memory of the process since it started; `device`: peak memory of
            tensors on the GPU, and `device_reserved`: peak memory that torch kept there, since the command (fit, test,
            ..) started; None without a GPU. The largest of all commands.
        parameters: Numbers that are learned or counted: `total`, `item_table` (with a separate output table and
            biases), `encoder`, and `other` (positions, users). A sharded table counts with all rows.
        best: `metric`, `value`, `epoch` (from 0) and `step` of the best validation by the monitored metric, and
            `checkpoint`, its file; None before the first.
        ended: Why training ended, `by` "budget" (`max_steps` or `max_epochs`), "patience" or "a callback", and the
            `step`; None before.
        validation: Metrics of the newest validation, by name without `val_`.
        test: Metrics of the test, by name without `test_`; None before the first.
        target_filter: `condition`, `events` and `targets` of the log, `users_without_targets` and the log's ids of the
            `first_users` without any; None if all events are targets.
        data: `source` (its name), `licence` (empty if the source does not know it), `store` (the folder), and `counts`
            of the store's manifest, such as `users`, `items` and `events`; None without a data module.
        checkpoint: Checkpoint that the newest test, or validation outside of a fit, judged; None if it loaded none.
        caveats: What the figures of `test`, or else of `validation`, are of, if not of a trained model and all users.
        protocol: Id of the protocol that the metrics belong to.
        seeds: `run`: seed of weights, dropout and negatives; `data`: seed of the training order.
        versions: Of python and of the packages that numbers depend on.
        hardware: `cpu`, `cores`, `threads`, `gpus`; see `seqrec.runs.provenance.hardware`.
        job: `ranks`, `nodes`, `device` (cpu, cuda), `strategy`, `precision`, `accumulate_grad_batches`.
        git: `commit` and `dirty` of the working directory's checkout; None without one.
        command: The command as typed.
        resume: Command that resumes this run; None before its first checkpoint.
        resumed_from: Checkpoint that this run resumed from; None at its first start.
        started: Start time of this process, ISO 8601, UTC.
        updated: Time at which this file was written, likewise.
    """

    status: str
    error: str | None
    model: str
    epochs: int
    steps: int
    events: int
    tokens: int
    seconds: dict[str, float]
    events_per_second: float | None
    tokens_per_second: float | None
    peak_memory: dict[str, int | None]
    parameters: dict[str, int]
    best: dict[str, Any] | None
    validation: dict[str, float] | None
    test: dict[str, float] | None
    protocol: str | None
    seeds: dict[str, int | None]
    versions: dict[str, str]
    hardware: dict[str, Any]
    job: dict[str, Any]
    git: dict[str, Any] | None
    command: str
    resume: str | None
    resumed_from: str | None
    started: str
    updated: str
    caveats: list[str] = field(default_factory=list)
    targets: int = 0
    target_filter: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    checkpoint: str | None = None

    def write(self, folder: Path | str) -> None:
        """Write the file into a folder in one move: an existing file is always complete."""
        file = Path(folder) / FILE_NAME
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n")


def read_summary(folder: Path | str) -> Summary:
    """Read the summary in a run's folder.

    Raises:
        MissingInputError: if the folder has none.
        InputError: if the file is damaged or of another version.
    """
    file = Path(folder) / FILE_NAME
    if not file.is_file():
        raise MissingInputError(f"{folder} has no {FILE_NAME}: it is no run's folder, or the run used another logger")
    # Older summaries lack what has a default; they counted events only, which were all targets.
    needed = [each.name for each in fields(Summary) if each.default is MISSING and each.default_factory is MISSING]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content = {"targets": content.get("events"), **content}
        names = [each.name for each in fields(Summary) if each.name in content or each.name in needed]
        return Summary(**{name: content[name] for name in names})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged or of another version: {type(error).__name__}: {error}") from None


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by None, in nested values."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
