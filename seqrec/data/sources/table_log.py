"""Check the files of a table log: a pass over each counts rows, names malformed ones, and determines types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.ids import EXPONENT, WHOLE_NUMBER, exponent_refusal
from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.checking import Tally, estimate_lines, is_integer, leave_out, shorten, tally
from seqrec.data.sources.source import CheckedLog, Malformed
from seqrec.data.sources.table_file import TableFile
from seqrec.data.sources.time_column import FURTHEST_IN_MILLIONTHS
from seqrec.errors import InputError

_ROW = "row number"
# Rows that show whether the ids of a file are text.
_ROWS_IN_SAMPLE = 1000


def check_tables(files: Sequence[TableFile], max_bad_share: float, progress: Progress | None) -> CheckedLog:
    """Read all files of a log to check them.

    Args:
        files: The files in the order of the log, at least one.
        max_bad_share: Largest share of malformed rows, of all files' rows, that are left out.
        progress: Shows each pass over a file.

    Returns:
        The interaction frame, one file after the other, with the same types for all.

    Raises:
        InputError: if a file is unreadable or empty, if too many rows are malformed, or if the times of one file are
            dates and those of another are numbers.
    """
    if len({file.time.is_date for file in files if file.time is not None}) > 1:
        raise InputError(
            f"timestamp={files[0].layout.timestamp!r}: {' and '.join(str(file.path) for file in files)} "
            "have dates in some files, numbers in others"
        )
    progress = progress or Progress()
    surveys = [_survey(file, progress) for file in files]
    if any(found.fractions for found in surveys):
        for file in files:
            file.in_millionths = True
        if any(found.far_times for found in surveys):
            surveys = [_survey(file, progress) for file in files]
    rows = sum(found.malformed.rows for found in surveys)
    if rows == 0:
        what = files[0].path if len(files) == 1 else f"each of the {len(files)} files, first {files[0].path},"
        raise InputError(f"{what} is empty; expected at least one event")
    malformed = leave_out([found.malformed for found in surveys], rows, max_bad_share)
    id_types = {name: _id_type(name, files, surveys) for name in (USER_ID, ITEM_ID)}
    frames = [file.interactions(id_types, all_fit=found.all_fit) for file, found in zip(files, surveys, strict=True)]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    return CheckedLog(
        frame,
        rows - sum(left.count for left in malformed),
        malformed,
        tuple(_notes(files, surveys, id_types)),
        _lacking(files),
    )


def _id_type(name: str, files: Sequence[TableFile], surveys: Sequence[_Survey]) -> Any:
    """Return Int64 if every id of the log is a whole number, else String."""
    if any(found.ids[name].text for found in surveys):
        return pl.String
    for file, found in zip(files, surveys, strict=True):
        if (exponent := found.ids[name].exponent) is not None:
            place, example = exponent
            raise InputError(f"{file.path}: {place}: {exponent_refusal(example)}")
        if found.ids[name].decimals:
            file.decimals.add(name)
    return pl.Int64


def _notes(files: Sequence[TableFile], surveys: Sequence[_Survey], id_types: dict[str, Any]) -> Iterator[str]:
    for name, dtype in id_types.items():
        of_files = [(file.path, found.ids[name]) for file, found in zip(files, surveys, strict=True)]
        for count, where in (_total((path, ids.blanks) for path, ids in of_files),):
            if count:
                yield f"{name}: cut the blanks around {count:,} ids, first in {where}"
        for count, where in (_total((path, ids.decimals) for path, ids in of_files),):
            if count and dtype == pl.Int64:
                yield f"{name}: read {count:,} ids such as 12.0 as whole numbers, first in {where}"


def _total(counts: Iterable[tuple[Path, int]]) -> tuple[int, Path | None]:
    found = [(path, count) for path, count in counts if count]
    return sum(count for _, count in found), found[0][0] if found else None


def _lacking(files: Sequence[TableFile]) -> dict[str, str]:
    """Return the columns that some files have, each with the first file that does not."""
    names = {name for file in files for name in file.names}
    return {name: str(lacking[0].path) for name in names if (lacking := [f for f in files if name not in f.names])}


@dataclass(frozen=True)
class _Ids:
    """Findings in an id column, without malformed rows.

    Attributes:
        text: Whether an id is no number.
        decimals: Number of ids such as 12.0.
        blanks: Number of ids with blanks around them.
        exponent: Place and text of the first id such as 1.2E+12; None if there is none.
    """

    text: bool = False
    decimals: int = 0
    blanks: int = 0
    exponent: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Survey:
    """Findings in one file. All but `malformed` and `all_fit` disregard malformed rows.

    Attributes:
        malformed: The malformed rows. The count is 0 if the file has none.
        all_fit: Whether the file has neither malformed rows nor blank lines.
        ids: Findings in the columns `user_id` and `item_id`.
        fractions: Whether a time is not whole.
        far_times: Whether a time fits into int64, but its millionths do not.
    """

    malformed: Malformed
    all_fit: bool
    ids: dict[str, _Ids]
    fractions: bool
    far_times: bool


def _survey(file: TableFile, progress: Progress) -> _Survey:
    # One pass, or two if a row is malformed or blank.
    with file.reading():
        texts = _texts(file)
        found = _tally(file, "checking", _conditions(file, texts), progress)
        has_text = any(found.counts.get(f"{name} is text") for name in file.ids)
        if found.counts["unfit"] or (has_text and not file.loose):
            file.loose = True
            if found.counts["unfit"]:
                file.loosen_time()
            conditions = _conditions(file, texts) | _reasons(file)
            found = _tally(file, "finding malformed rows and unusual ids of", conditions, progress)
            if file.csv is not None and found.counts["long"]:
                file.csv.check_no_line_is_swallowed(found.rows)
        rows = found.rows - found.counts.get("blank", 0)
        places = _places(file, found.first.get("malformed", []))
    return _Survey(
        malformed=Malformed(str(file.path), found.counts.get("malformed", 0), rows, places),
        all_fit=not found.counts["unfit"],
        ids={name: _ids(file, name, texts, found) for name in file.ids},
        fractions=bool(found.counts.get("fraction")),
        far_times=bool(found.counts.get("far")),
    )


def _texts(file: TableFile) -> set[str]:
    """Return the id columns whose first rows have text that is no number; the ids of others are read strictly first."""
    names = [name for name in file.ids if file.is_text(name)]
    if not names:
        return set()
    file.loose = True
    first = file.frame.filter(~file.is_unfit).select(**{name: file.ids[name] for name in names}).head(_ROWS_IN_SAMPLE)
    sample = first.collect(engine="streaming")
    numbers = {name: _is_number(pl.col(name)) for name in names}
    texts = {name for name, found in sample.select(**numbers).to_dict().items() if not found.fill_null(True).all()}
    file.loose = bool(texts)
    return texts


def _is_number(text: pl.Expr) -> pl.Expr:
    return is_integer(text) | text.str.contains(WHOLE_NUMBER) | text.str.contains(EXPONENT)


def _conditions(file: TableFile, texts: set[str]) -> dict[str, pl.Expr]:
    unfit, ids = file.is_unfit, file.ids
    conditions = {"unfit": unfit}
    for name in filter(file.is_text, ids):
        if file.loose:
            longer = file.raw_ids[name].str.len_bytes() > ids[name].str.len_bytes()
            conditions[f"{name} has blanks"] = ~unfit & longer
        if name in texts:
            continue
        other = ~unfit & ~is_integer(ids[name])
        if file.loose:
            whole, exponent = ids[name].str.contains(WHOLE_NUMBER), ids[name].str.contains(EXPONENT)
            conditions[f"{name} is decimal"] = other & whole
            conditions[f"{name} has exponent"] = other & exponent
            other = other & ~whole & ~exponent
        conditions[f"{name} is text"] = other
    if file.time is not None:
        conditions["fraction"] = ~unfit & file.time.is_fraction
        conditions["far"] = ~unfit & file.time.millionths.is_null()
    return conditions


def _ids(file: TableFile, name: str, texts: set[str], found: Tally) -> _Ids:
    first = found.first.get(f"{name} has exponent", [])[:1]
    exponent = None
    if first:
        row = file.frame.slice(first[0], 1).select(file.ids[name].alias(name)).collect(engine="streaming")
        place = f"row {first[0] + 1}" if file.csv is None else f"line {file.csv.lines_of(first)[0]}"
        exponent = (f"{place}: {name}", str(row[name][0]))
    return _Ids(
        text=name in texts or bool(found.counts.get(f"{name} is text")),
        decimals=found.counts.get(f"{name} is decimal", 0),
        blanks=found.counts.get(f"{name} has blanks", 0),
        exponent=exponent,
    )


def _reasons(file: TableFile) -> dict[str, pl.Expr]:
    # Reasons why rows are unfit. Only a blank line is empty in all columns, so all must be read.
    unfit = file.is_unfit
    if file.csv is None:
        return {"malformed": unfit}
    blank = file.csv.is_blank
    return {"malformed": unfit & ~blank, "blank": blank, "long": file.csv.is_long}


def _tally(file: TableFile, doing: str, conditions: dict[str, pl.Expr], progress: Progress) -> Tally:
    if file.csv is None:
        total: int | None = int(file.frame.select(pl.len()).collect().item())
    else:
        total = estimate_lines(file.path)
    return tally(file.frame, conditions, progress, f"{doing} {file.path}", total)


def _places(file: TableFile, rows: list[int]) -> tuple[str, ...]:
    # "line 7: item='item_id' expected an id, got nothing" for each of the rows, which count from 0.
    if not rows:
        return ()
    chosen = file.frame.with_row_index(_ROW).filter(pl.col(_ROW).is_in(rows)).head(len(rows))
    raw = chosen.collect(engine="streaming").rows(named=True)
    missing = chosen.select(**{name: column.is_null() for name, column in file.parsed.items()})
    flags = missing.collect(engine="streaming").rows(named=True)
    numbers = [row + 1 for row in rows] if file.csv is None else file.csv.lines_of(rows)
    place = "row" if file.csv is None else "line"
    return tuple(
        f"{place} {number}: {_reason(file, values, is_missing)}"
        for number, values, is_missing in zip(numbers, raw, flags, strict=True)
    )


def _reason(file: TableFile, values: dict[str, Any], is_missing: dict[str, bool]) -> str:
    # The reason why a row is malformed, given its raw values.
    if file.csv is not None:
        filled = [k for k, name in enumerate(file.csv.extra, start=1) if values[name]]
        if filled:
            return f"expected {len(file.names)} fields, got {len(file.names) + filled[-1]}"
    layout, time = file.layout, file.time
    for argument, name, column in (("user", USER_ID, layout.user), ("item", ITEM_ID, layout.item)):
        if is_missing[name]:
            value = values[column]
            large = file.csv is None and isinstance(value, int) and value >= 2**63
            remedy = ", which is above 2^63 - 1: cast the column to text" if large else ""
            return f"{argument}={column!r} expected an id, got {_shown(value)}{remedy}"
    assert layout.timestamp is not None
    assert time is not None
    value = values[layout.timestamp]
    bounds = ""
    if not time.is_date and _is_finite(value):
        furthest = f"{FURTHEST_IN_MILLIONTHS:,}, as some times have fractions" if file.in_millionths else "2^63"
        bounds = f" nearer to 0 than {furthest}"
    return f"timestamp={layout.timestamp!r} expected {time.expects}{bounds}, got {_shown(value)}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else repr(shorten(str(value)))
