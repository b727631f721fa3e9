"""Parts that all benchmarks share: checks of arguments, cells, tables for people and a JSON file for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqrec.benchmark.measurement import MemoryLimitError
from seqrec.data.output import show
from seqrec.data.progress import STATUS, Progress, duration
from seqrec.data.report_table import Part, ReportTable, report_table
from seqrec.errors import InputError, check_at_least

Row = dict[str, Any]
# Arguments of a trainer that writes and shows nothing.
_SWITCHES = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET: dict[str, Any] = dict.fromkeys(_SWITCHES, False)
# First figure of a row that has none, because its cell needed too much memory.
DID_NOT_RUN = "did not run"


class Benchmark:
    """One run of a benchmark: shows its progress, collects its figures and writes them.

    The content of the file by key, in this order, is the settings, and an empty list per table. The file's folder is
    checked now rather than after an hour. Progress counts `total` cells; if None, those of the first `run`.

    Raises:
        InputError: if `json_file` is in a folder that does not exist.

    Example:
        >>> benchmark = Benchmark(None, settings={"width": 8}, figures=[])
        >>> cells = [{"length": 10}, {"length": 20}]
        >>> benchmark.run("figures", cells, lambda cell: {"seconds": cell["length"] / 10}, "length {length}")
        >>> rows = ([str(row["length"]), f"{row['seconds']:.1f}"] for row in benchmark["figures"])
        >>> print(table("length | s", rows))
        length      s
        10        1.0
        20        2.0
    """

    def __init__(self, json_file: str | None, total: float | None = None, **content: Any) -> None:
        if json_file is not None and not Path(json_file).absolute().parent.is_dir():
            raise InputError(f"json_file={json_file!r} is in a folder that does not exist; make it first")
        self.progress = Progress(STATUS)
        self.stage = self.progress.stage("measuring", total, unit="cells")
        self._json_file = json_file
        self._content = content
        # Name of the cell that is measured.
        self._cell = ""

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._content[key] = value

    def run(
        self,
        key: str,
        cells: Iterable[Row],
        measure: Callable[[Row], Row],
        name: str,
        outcome: Callable[[Row], str] | None = None,
    ) -> None:
        """Measure cells one after the other, and write the file anew after each.

        The list `key` gets a row per cell: the cell with the figures from `measure`, or with `failure`, a reason.
        For progress, `name` is the format of a cell's name, and `outcome` returns a line about a row.
        """
        every = list(cells)
        self.stage.total = self.stage.total or len(every)
        for cell in every:
            self._cell, start = name.format(**cell), time.monotonic()
            try:
                row = cell | measure(cell)
            except MemoryLimitError as error:
                row = cell | {"failure": str(error)}
            self[key].append(row)
            text = outcome(row) if outcome is not None and not failed(row) else duration(time.monotonic() - start)
            text = f"{DID_NOT_RUN}, {row['failure']}" if failed(row) else text
            self.stage.complete(1, f"{self._cell}: {text}")
            self.write()

    @contextmanager
    def cell(self, name: str) -> Iterator[None]:
        """Count what runs inside as one cell, which progress calls by this name."""
        self._cell = name
        yield
        self.stage.complete(1, name)

    def show(self, line: str = "") -> None:
        """Show that a cell is measured, and the last line of its process: the argument `show` of `run_measured`."""
        self.stage.refresh(": ".join(filter(None, [self._cell, line])))

    def write(self) -> None:
        """Write the figures so far into the JSON file, if one was asked for."""
        if self._json_file is not None:
            text = json.dumps(self._content, indent=2)
            Path(self._json_file).write_text(text + "\n", encoding="utf-8")

    def finish(self, *parts: Part | None) -> None:
        """Show the parts of a report, with empty lines between them, and write the file."""
        self.stage.end()
        show(*(line for part in parts if part for line in ("", part)), **self._content)
        self.write()


def table(head: str | Sequence[str], rows: Iterable[Sequence[str]]) -> ReportTable:
    """Return an aligned table: the first column to the left, the others, which are figures, to the right.

    `head` is a list of headings, or text with " | " between them. A short row is filled with empty cells.
    """
    return report_table(head.split(" | ") if isinstance(head, str) else head, rows)


def failed(row: Mapping[str, Any]) -> bool:
    """Return whether a row has no figures."""
    return row.get("failure") is not None


def failures(rows: Iterable[Row], name: str) -> str:
    """Return a line per row without figures, with the reason."""
    return "\n".join(f"{name.format(**row)}: {row['failure']}" for row in rows if failed(row))


def with_first(rows: Iterable[Row], *keys: str) -> Iterator[tuple[Row, Row]]:
    """Yield each row with the first complete row that has the same values of `keys`, which ratios compare it with."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        yield row, row if failed(row) else first.setdefault(tuple(row[key] for key in keys), row)


def machine(device: str) -> dict[str, Any]:
    """Return a description of the machine: `device`, `threads`, and the version of `torch`."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def check_numbers(least: float, *, empty: bool = True, **values: float | Sequence[float]) -> None:
    """Raise InputError if a number, or one of a list, is below `least`, or a list is empty that must not be."""
    for name, value in values.items():
        if isinstance(value, (int, float)):
            check_at_least(least, **{name: value})
        elif any(number < least for number in value) or not (value or empty):
            one = "" if empty else "one or more, and "
            raise InputError(f"{name}={list(value)} must be {one}all at least {least}")


def check_names(known: Iterable[str], **values: Sequence[str]) -> None:
    """Raise InputError if a list is empty or contains an unknown name."""
    known = list(known)
    for name, value in values.items():
        if not value or not set(value) <= set(known):
            raise InputError(f"{name}={list(value)} must be some of {', '.join(known)}")


def check_device(device: str, *further: str) -> None:
    """Raise InputError if a device is neither cpu nor cuda, nor one of `further`."""
    allowed = [*further, "cpu", "cuda"]
    if device not in allowed:
        raise InputError(f"device={device!r} must be {', '.join(allowed[:-1])} or {allowed[-1]}")
