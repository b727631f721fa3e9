"""What a pass over a table's file finds: its rows, those that are malformed, and the types that fit the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.base import Malformed
from seqrec.data.sources.lines import is_integer, shorten
from seqrec.data.sources.row_count import estimate_lines
from seqrec.data.sources.table_file import TableFile
from seqrec.data.sources.tally import Tally, tally
from seqrec.data.sources.times import FURTHEST_IN_MILLIONTHS
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl

_ROW = "row number"


@dataclass(frozen=True)
class Survey:
    """What was found in a file.

    Attributes:
        malformed: Its malformed rows; without any, the count is 0.
        all_fit: No row is malformed, and no line blank.
        integer_ids: Whether every `user_id`, and every `item_id`, is an integer; malformed rows do not matter.
        fractions: Some time is not whole; malformed rows do not matter.
        far_times: Some time fits into int64, but not its millionths.
    """

    malformed: Malformed
    all_fit: bool
    integer_ids: dict[str, bool]
    fractions: bool
    far_times: bool


def survey(file: TableFile, progress: Progress, *, in_millionths: bool) -> Survey:
    """Read a file once to check it; twice where some row is malformed or blank.

    Args:
        file: The file.
        progress: Told of the passes.
        in_millionths: The log's times are given in millionths, which fewer times fit into.

    Raises:
        InputError: the file is unreadable or empty.
    """
    with file.reading():
        found = _tally(file, "checking", _conditions(file, in_millionths), progress)
        if found.counts["unfit"]:
            file.loosen_time()
            conditions = _conditions(file, in_millionths) | _reasons(file, in_millionths)
            found = _tally(file, "finding malformed rows of", conditions, progress)
            if file.csv is not None and found.counts["long"]:
                file.csv.check_no_line_is_swallowed(found.rows)
        rows = found.rows - found.counts.get("blank", 0)
        if rows == 0:
            raise InputError(f"{file.path} is empty; expected at least one event")
        places = _places(file, found.first.get("malformed", []), in_millionths)
    return Survey(
        malformed=Malformed(str(file.path), found.counts.get("malformed", 0), rows, places),
        all_fit=not found.counts["unfit"],
        integer_ids={name: not found.counts.get(f"{name} is text") for name in file.ids},
        fractions=bool(found.counts.get("fraction")),
        far_times=bool(found.counts.get("far")),
    )


def _conditions(file: TableFile, in_millionths: bool) -> dict[str, pl.Expr]:
    unfit = file.is_unfit(in_millionths=in_millionths)
    conditions = {"unfit": unfit}
    for name in _text_ids(file):
        conditions[f"{name} is text"] = ~unfit & ~is_integer(file.ids[name])
    if file.time is not None:
        conditions["fraction"] = ~unfit & file.time.is_fraction
        conditions["far"] = ~unfit & file.time.millionths.is_null()
    return conditions


def _reasons(file: TableFile, in_millionths: bool) -> dict[str, pl.Expr]:
    # Why rows are unfit. To know blank lines all columns must be read.
    unfit = file.is_unfit(in_millionths=in_millionths)
    if file.csv is None:
        return {"malformed": unfit}
    blank = file.csv.is_blank
    return {"malformed": unfit & ~blank, "blank": blank, "long": file.csv.is_long}


def _text_ids(file: TableFile) -> list[str]:
    import polars as pl

    types = file.frame.select(**file.ids).collect_schema()
    return [name for name in file.ids if types[name] == pl.String]


def _tally(file: TableFile, doing: str, conditions: dict[str, pl.Expr], progress: Progress) -> Tally:
    import polars as pl

    if file.csv is None:
        total: int | None = int(file.frame.select(pl.len()).collect().item())
    else:
        total = estimate_lines(file.path)
    with progress.stage(f"{doing} {file.path}", total) as stage:
        return tally(file.frame, conditions, stage)


def _places(file: TableFile, rows: list[int], in_millionths: bool) -> tuple[str, ...]:
    # "line 7: item='item_id' expected an id, got nothing", for each of the rows, which count from 0.
    import polars as pl

    if not rows:
        return ()
    parsed = dict(file.ids)
    if (times := file.timestamps(in_millionths=in_millionths)) is not None:
        parsed[TIMESTAMP] = times
    chosen = file.frame.with_row_index(_ROW).filter(pl.col(_ROW).is_in(rows)).head(len(rows))
    raw = chosen.collect(engine="streaming").rows(named=True)
    missing = chosen.select(**{name: column.is_null() for name, column in parsed.items()})
    flags = missing.collect(engine="streaming").rows(named=True)
    numbers = [row + 1 for row in rows] if file.csv is None else file.csv.lines_of(rows)
    place = "row" if file.csv is None else "line"
    return tuple(
        f"{place} {number}: {_reason(file, values, is_missing, in_millionths)}"
        for number, values, is_missing in zip(numbers, raw, flags, strict=True)
    )


def _reason(file: TableFile, values: dict[str, Any], is_missing: dict[str, bool], in_millionths: bool) -> str:
    # Why a row is malformed, by its raw values.
    if file.csv is not None:
        filled = [k for k, name in enumerate(file.csv.extra, start=1) if values[name]]
        if filled:
            return f"expected {len(file.names)} fields, got {len(file.names) + filled[-1]}"
    columns, time = file.columns, file.time
    for argument, name, column in (("user", USER_ID, columns.user), ("item", ITEM_ID, columns.item)):
        if is_missing[name]:
            return f"{argument}={column!r} expected an id, got {_shown(values[column])}"
    assert columns.timestamp is not None
    assert time is not None
    value = values[columns.timestamp]
    bounds = ""
    if not time.is_date and _is_finite(value):
        furthest = f"{FURTHEST_IN_MILLIONTHS:,}, as some times have fractions" if in_millionths else "2^63"
        bounds = f" nearer to 0 than {furthest}"
    return f"timestamp={columns.timestamp!r} expected {time.expects}{bounds}, got {_shown(value)}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else repr(shorten(str(value)))
