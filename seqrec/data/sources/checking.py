"""Check the rows of a log in one pass that holds a batch at a time, and refuse a log with too many malformed rows."""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from seqrec.data.progress import Progress
from seqrec.data.sources.source import Malformed
from seqrec.errors import InputError

# Malformed rows that a message lists.
PLACES = 5
_ROWS_IN_BATCH = 1 << 18
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Tally:
    """Result of a pass over a frame: number of rows, of rows that meet each condition, and the first of these."""

    rows: int
    counts: dict[str, int]
    first: dict[str, list[int]]


def tally(
    frame: pl.LazyFrame, conditions: Mapping[str, pl.Expr], progress: Progress, name: str, total: int | None
) -> Tally:
    """Count the rows of a frame, and those that meet each condition."""
    rows = 0
    counts = dict.fromkeys(conditions, 0)
    first: dict[str, list[int]] = {name: [] for name in conditions}
    flags = frame.select(**{name: condition.fill_null(False) for name, condition in conditions.items()})
    batches = flags.collect_batches(chunk_size=_ROWS_IN_BATCH, engine="streaming", lazy=True)
    for batch in progress.track(name, batches, total=total):
        for condition, found in batch.sum().row(0, named=True).items():
            # The sum of no rows is None.
            if found and (missing := PLACES - len(first[condition])) > 0:
                numbers = batch.select(pl.arg_where(pl.col(condition))).to_series().head(missing)
                first[condition] += [rows + number for number in numbers]
            counts[condition] += found or 0
        rows += len(batch)
    return Tally(rows, counts, first)


def leave_out(found: Sequence[Malformed], rows: int, max_bad_share: float) -> tuple[Malformed, ...]:
    """Return the malformed rows to leave out, of the files that have any.

    Raises:
        InputError: if more rows are malformed, or if all are; the message lists the first few.
    """
    found = [malformed for malformed in found if malformed.count]
    count = sum(malformed.count for malformed in found)
    if count > max_bad_share * rows:
        shown = "; ".join(_account(malformed) for malformed in _first(found))
        if len(found) > 1:
            shown = f"{_share(count, rows)} of {len(found)} files are malformed: {shown}"
        raise InputError(
            f"{shown}; max_bad_share={max_bad_share} allows {_percent(max_bad_share)}: mend them, or raise it"
        )
    if count == rows:
        raise InputError(f"{_account(found[0])}; no event is left")
    return tuple(found)


def _first(found: Sequence[Malformed]) -> list[Malformed]:
    # As many files as show the first few places.
    shown: list[Malformed] = []
    for malformed in found:
        if sum(len(before.places) for before in shown) < PLACES:
            shown.append(malformed)
    return shown


def _account(malformed: Malformed) -> str:
    verb = "is" if malformed.count == 1 else "are"
    more = "; ..." if malformed.count > len(malformed.places) else ""
    places = "; ".join(malformed.places)
    return f"{malformed.file}: {_share(malformed.count, malformed.rows)} {verb} malformed: {places}{more}"


def _share(count: int, rows: int) -> str:
    return f"{count:,} of {rows:,} row{'s' if rows != 1 else ''} ({_percent(count / rows)})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


@contextmanager
def reading(origin: Path | str, kind: str = "text") -> Iterator[None]:
    """Turn a failure to read `origin` into a one-line error."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{origin} is empty; expected at least one event") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        # Damaged Parquet files make polars panic, which `except Exception` does not catch.
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().split("\n")[0]
        if "Permission denied" in reason:
            refused = PermissionError(errno.EACCES, "Permission denied", str(origin))
            raise InputError(f"{origin} cannot be read: permission denied") from refused
        hint = " (save it as UTF-8)" if re.search("utf-?8", reason) else "; save it again, or give another file"
        raise InputError(f"{origin} cannot be read as {kind}: {reason}{hint}") from error


def is_integer(text: pl.Expr) -> pl.Expr:
    """Return True for text that is the decimal form of an int64. "007" is not, so such ids stay text."""
    return (text.cast(pl.Int64, strict=False).cast(pl.String) == text).fill_null(False)


def shorten(text: str, width: int = 60) -> str:
    """Return `text`, cut to `width` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."


def estimate_lines(file: Path | bytes) -> int | None:
    """Return about how many lines a file, plain or `.gz`, or its content has, by its first MiB; None for Zstandard."""
    if isinstance(file, bytes):
        size, sample = len(file), file[:_SAMPLE_BYTES]
    else:
        size = file.stat().st_size
        with file.open("rb") as stream:
            sample = stream.read(_SAMPLE_BYTES)
    read = len(sample)
    if sample.startswith(b"\x1f\x8b"):
        try:
            sample = zlib.decompressobj(wbits=31).decompress(sample)
        except zlib.error:
            return None
    # The standard library does not read Zstandard.
    if sample.startswith(b"\x28\xb5\x2f\xfd") or not read:
        return None
    return round(sample.count(b"\n") * size / read)
