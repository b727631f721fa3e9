"""A run's folder as its model card and its page show it: what its JSON files record, as facts and a table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from seqrec.data.report_table import Entry, ReportTable, report_table
from seqrec.errors import InputError
from seqrec.evaluation.list_report import lists_cells
from seqrec.evaluation.report import metrics_cells
from seqrec.evaluation.results import compare, read_results
from seqrec.experiments.report.tables import MIB
from seqrec.models.baselines.comparison import DECIDING
from seqrec.runs import Summary, read_summary
from seqrec.runs.finding import find_checkpoint
from seqrec.runs.summary import FILE_NAME as SUMMARY_FILE

_STATES = {
    "finished": "The run finished",
    "interrupted": "The run was interrupted",
    "failed": "The run failed",
    "running": "The run is not finished: it is running, or was killed",
}
# Stage of a command -> the file of its metrics.
_FILES = {"test": "test_metrics.json", "validation": "validate_metrics.json"}
# Name and text of each fact.
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class RunRecord:
    """The records in a run's folder, as facts and a table.

    Attributes:
        folder: The folder.
        summary: Its `summary.json`.
        status: How the run ended, in a sentence.
        metrics: Metrics of the test, or else of a validation, next to those of baselines; None without any.
        lists: Metrics of the recommended lists, likewise; None if they were not judged.
        is_tested: Whether they are of a test.
        values: The model's own metrics, by name.
        data: Facts about the log.
        costs: Facts about time, memory and size.
        origin: Facts about versions, machine and seeds.
    """

    folder: Path
    summary: Summary
    status: str
    metrics: ReportTable | None
    lists: ReportTable | None
    is_tested: bool
    values: dict[str, float | None]
    data: Facts
    costs: Facts
    origin: Facts

    @property
    def title(self) -> str:
        """The model, and the name of its log if that is recorded."""
        source = (self.summary.data or {}).get("source")
        return f"{self.summary.model} on {source}" if source else self.summary.model

    @property
    def checkpoint(self) -> str | None:
        """The folder, or a file elsewhere, that `seqrec.load` reads the model from; None if there is none."""
        try:
            find_checkpoint(str(self.folder))
        except InputError:
            named = [self.summary.checkpoint, (self.summary.best or {}).get("checkpoint")]
            return next((file for file in named if file and Path(file).is_file()), None)
        return str(self.folder)

    def command(self, name: str) -> str:
        """Return a command for this run's model, such as `seqrec test --ckpt runs/version_0`."""
        return f"seqrec {name} --ckpt {shlex.quote(self.checkpoint or str(self.folder))}"


def is_run(folder: Path | str) -> bool:
    """Return whether a folder has files of a run: a summary, metrics or a config that was saved."""
    return any(Path(folder, name).is_file() for name in (SUMMARY_FILE, *_FILES.values(), "metrics.csv", "config.yaml"))


def read_run(folder: Path | str) -> RunRecord:
    """Read what a run's folder records.

    Raises:
        MissingInputError: if it has no `summary.json`.
        InputError: if a file is damaged or of another version.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    file = folder / SUMMARY_FILE
    try:
        facts = {"data": list(_data(summary)), "costs": list(_costs(summary)), "origin": list(_origin(summary))}
        status = _status(summary)
        for stage, name in _FILES.items():
            if (file := folder / name).is_file():
                content = json.loads(file.read_text(encoding="utf-8"))
                table, lists = _judged(stage, content, folder), _lists(content.get("lists"))
                values = dict(content["models"][summary.model])
                return RunRecord(folder, summary, status, table, lists, stage == "test", values, **facts)
        file = folder / SUMMARY_FILE
        # A trainer in Python leaves no file of metrics.
        stage = "test" if summary.test else "validation"
        values = dict(summary.test or summary.validation or {})
        notes = ["Baselines are compared after fit by seqrec test"]
        table = _table(stage, {summary.model: values}, None, [*notes, *_terms(summary.protocol, summary.caveats)])
        return RunRecord(folder, summary, status, table if values else None, None, stage == "test", values, **facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is damaged or of another version: {type(error).__name__}: {error}; delete it, or write it again: "
            f"seqrec test --ckpt {shlex.quote(str(folder))}"
        ) from None


def _judged(stage: str, content: Mapping[str, Any], folder: Path) -> ReportTable:
    """Return the table of a file of metrics in a run's folder."""
    compared = content.get("baselines") or {}
    estimates = (compared.get("comparison") or {}).get("estimates", [])
    intervals = {each["run"]: tuple(each["interval"]) for each in estimates if each["metric"] == DECIDING}
    lacking: list[str] = []
    if not intervals and stage == "test":
        try:
            intervals = {next(iter(content["models"])): _own_interval(folder, content["protocol"])}
        except (InputError, OSError, polars.exceptions.PolarsError) as error:
            lacking = [f"Without interval: {' '.join(str(error).split())}"]
    left_out = [f"{users:,} users were not judged: {reason}" for reason, users in content["left_out"].items() if users]
    repeated = content.get("repeated_targets")
    notes = [
        *_terms(content["protocol"], content.get("caveats", [])),
        *left_out,
        *([f"{repeated:.1%} of the targets were in the user's history"] if repeated else []),
        *compared.get("notes", []),
        *lacking,
    ]
    return _table(f"{stage} of {content['users']:,} users", content["models"], intervals, notes)


def _own_interval(folder: Path, protocol: str) -> tuple[float, float]:
    """Return the interval of a model without baselines, from its ranks user by user.

    Raises:
        InputError: if the folder has none of this protocol, or of no user.
    """
    results = read_results(folder)
    if results.header.protocol != protocol:
        raise InputError(f"the ranks user by user are of protocol {results.header.protocol}; test it again")
    if not results.num_users:
        raise InputError("no user was tested")
    (estimate,) = compare([results], metrics=[DECIDING]).estimates
    return estimate.interval


def _lists(content: Mapping[str, Any] | None) -> ReportTable | None:
    """Return the table of a file's metrics of lists."""
    if content is None:
        return None
    columns, lines = lists_cells(content["metrics"], content["intervals"], content.get("baselines") or {})
    used = [
        f"{name.replace('_', ' ')} {content[name]}"
        for name in ("diversity_column", "calibration_column")
        if content[name]
    ]
    return report_table(columns, lines, name="lists", title="Recommended lists", notes=used)


def _table(
    title: str,
    models: Mapping[str, Mapping[str, float | None]],
    intervals: Mapping[str, Any] | None,
    notes: list[str],
) -> ReportTable:
    columns, lines = metrics_cells(models, intervals)
    best: dict[int, str] = {
        place: max(line[place] for line in lines)
        for place in range(1, len(columns))
        if "interval" not in columns[place]
    }
    # Lines of cold and warm items are not compared with those of all items.
    compared = 1 < len(lines) == len(models)
    rows = tuple(
        tuple(Entry(text, bold=compared and bool(text) and best.get(place) == text) for place, text in cells)
        for cells in (enumerate(line) for line in lines)
    )
    return ReportTable("metrics", title.capitalize(), tuple(columns), 1, rows, tuple(notes))


def _terms(protocol: str | None, caveats: list[str]) -> list[str]:
    warning = f"Figures of {' and '.join(caveats)}: compare them with no others"
    return [*([warning] if caveats else []), *([f"Protocol {protocol}"] if protocol else [])]


def _status(summary: Summary) -> str:
    text = _STATES[summary.status]
    if summary.steps:
        text += f", after {_count(summary.steps, 'update')} in {_count(summary.epochs, 'complete epoch')}"
    if summary.ended:
        text += f"; training ended by {summary.ended['by']}"
    return f"{text}: {summary.error}" if summary.error else f"{text}."


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _data(summary: Summary) -> Iterator[tuple[str, str]]:
    data = summary.data
    if data is None:
        yield "log", "not recorded by the version of seqrec that wrote this run; seqrec inspect STORE shows a store"
        return
    counts = data["counts"]
    yield "log", data["source"]
    yield "size", f"{counts['events']:,} events of {counts['users']:,} users on {counts['items']:,} items"
    if counts.get("rows_read", counts["events"]) != counts["events"]:
        yield "left out", f"{counts['rows_read'] - counts['events']:,} of {counts['rows_read']:,} rows, by filters"
    if summary.target_filter:
        found = summary.target_filter
        yield "targets", f"{found['targets']:,} of {found['events']:,} events, where {found['condition']}"
    yield "licence", data["licence"] or "not known to seqrec; ask the publisher of the log"
    yield "event store", data["store"]


def _costs(summary: Summary) -> Iterator[tuple[str, str]]:
    names = {"train": "training", "validate": "validation", "prepare": "preparation", "checkpoint": "checkpoints"}
    for phase, seconds in summary.seconds.items():
        yield names.get(phase, phase), f"{seconds:,.1f} s"
    if summary.events_per_second:
        padded = f", {summary.tokens_per_second:,.0f} with padding" if summary.tokens_per_second else ""
        yield "speed", f"{summary.events_per_second:,.0f} events/s{padded}"
    kinds = {"host": "of the process", "device": "of tensors on the GPU"}
    found = {text: summary.peak_memory.get(key) for key, text in kinds.items()}
    peaks = [f"{peak / MIB:,.0f} MiB {text}" for text, peak in found.items() if peak]
    if peaks:
        yield "peak memory", ", ".join(peaks)
    parts = {name: summary.parameters[name] for name in ("item_table", "encoder", "other")}
    shares = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in parts.items())
    yield "parameters", f"{summary.parameters['total']:,} ({shares})"


def _origin(summary: Summary) -> Iterator[tuple[str, str]]:
    machine, job, git = summary.hardware, summary.job, summary.git
    yield "versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    yield "hardware", f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores{gpus}"
    ranks = f"{job['ranks']:,} process{'' if job['ranks'] == 1 else 'es'}"
    yield "job", f"{ranks} on {job['device']}, precision {job['precision']}"
    yield "seeds", ", ".join(f"{name} {seed}" for name, seed in summary.seeds.items())
    if git:
        yield "commit", f"{git['commit']}{', with changes' if git['dirty'] else ''}"
    yield "time", f"{summary.started} to {summary.updated}"
    if summary.resumed_from:
        yield "resumed from", summary.resumed_from
