"""Check the files of a table log: a pass over each counts rows, names malformed ones, and determines types."""

# Longer than 400 lines because each condition that is counted has its note or its message here.

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from seqrec.data.ids import BLANKS, EXPONENT, WHOLE_NUMBER, exponent_refusal
from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.checking import Tally, estimate_lines, is_integer, leave_out, shorten, tally
from seqrec.data.sources.json_rows import BadLineError
from seqrec.data.sources.source import CheckedLog, Malformed, Part
from seqrec.data.sources.table_file import TableFile
from seqrec.data.sources.time_column import FURTHEST_IN_MILLIONTHS
from seqrec.data.tasks import Tasks, require_seen
from seqrec.errors import InputError

_ROW = "row number"
# Rows that show whether the ids of a file are text.
_ROWS_IN_SAMPLE = 1000


def check_tables(
    files: Sequence[TableFile], max_bad_share: float, progress: Progress | None, tasks: Tasks
) -> CheckedLog:
    """Read all files of a log, at least one, to check them, by some tasks.

    Returns:
        The interaction frame, one file after the other, with the same types for all. The share of malformed rows that
        are left out is that of all files' rows.

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
    notes = _settle_orders(files, progress)
    files, surveys = _surveyed_by(tasks, files, progress)
    if any(found.fractions for found in surveys):
        for file in files:
            file.in_millionths = True
        if any(found.far_times for found in surveys):
            files, surveys = _surveyed_by(tasks, files, progress)
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
        (*notes, *_notes(files, surveys, id_types), *_two_units(files, surveys)),
        _lacking(files),
        _parts(files, frames, surveys),
    )


def _parts(files: Sequence[TableFile], frames: Sequence[pl.LazyFrame], surveys: Sequence[_Survey]) -> tuple[Part, ...]:
    if not all(map(_is_shared, files)):
        return ()
    return tuple(
        Part(frame, found.malformed.rows - found.malformed.count, file.can_slice and found.all_fit)
        for file, frame, found in zip(files, frames, surveys, strict=True)
    )


def _is_shared(file: TableFile) -> bool:
    # Unpacked files lie in a folder of this machine.
    return file.content == file.path.absolute()


def _settle_orders(files: Sequence[TableFile], progress: Progress) -> list[str]:
    """Decide for all files whether times such as 03/04/2020 have the day first, by the times that have one reading;
    return what was decided, in a sentence, if anything was.

    Raises:
        InputError: if no time decides it, or some have the day first and others the month.
    """
    shown: dict[str, str] = {}
    open_files = []
    for file in files:
        if file.time is None or not file.time.orders:
            continue
        open_files.append(file)
        readable = {order: time.whole.is_not_null() for order, time in file.time.orders.items()}
        day, month = readable["day"], readable.get("month", pl.lit(False))
        conditions = {"day": day & ~month, "month": month & ~day}
        with file.reading():
            found = _tally(file, "finding the order of day and month in", conditions, progress)
        for order, rows in found.first.items():
            if rows and order not in shown:
                shown[order] = f"{file.path}, {_numbered(file, rows[:1])[0]}"
    if not open_files:
        return []
    path, name, time = open_files[0].path, open_files[0].layout.timestamp, open_files[0].time
    assert time is not None
    if not shown:
        of_day, of_month = time.orders["day"].form, time.orders["month"].form
        raise InputError(
            f"{path}: timestamp={name!r} has {time.expects.replace('a time', 'times')}, in which day and month can be "
            f"read in both orders; give time_format={of_day!r} or time_format={of_month!r}"
        )
    if len(shown) == 2:
        raise InputError(
            f"timestamp={name!r} has the day first in {shown['day']}, but the month first in {shown['month']}; write "
            "all times in one order"
        )
    ((order, place),) = shown.items()
    for file in open_files:
        assert file.time is not None
        if order not in file.time.orders:
            raise InputError(
                f"{file.path} has times with dots, in which the day is first, but in other files the {order} is"
            )
        file.time = file.time.orders[order]
    return [f"timestamp: read with the {order} first, as in {place}"]


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
        yield from _why_text(name, files, surveys)
        of_files = [(file.path, found.ids[name]) for file, found in zip(files, surveys, strict=True)]
        changes = {
            "cut the blanks around {:,} ids": "blanks",
            "wrote {:,} ids in one form of Unicode (NFC)": "composed",
        }
        if dtype == pl.Int64:
            changes["read {:,} ids such as 12.0 as whole numbers"] = "decimals"
        for change, attribute in changes.items():
            count, where = _total((path, getattr(ids, attribute)) for path, ids in of_files)
            if count:
                yield f"{name}: {change.format(count)}, first in {where}"


def _two_units(files: Sequence[TableFile], surveys: Sequence[_Survey]) -> Iterator[str]:
    """Yield a warning if some times look like seconds, others like milliseconds."""
    counts = [[found.units[unit] for found in surveys] for unit in (0, 1)]
    if all(map(any, counts)):
        first = [files[next(place for place, number in enumerate(count) if number)].path for count in counts]
        seconds, milliseconds = (
            f"{sum(count):,} times, first in {path}," for count, path in zip(counts, first, strict=True)
        )
        yield (
            f"timestamp: {seconds} look like seconds since 1970, but {milliseconds} like milliseconds; if the log has "
            "both units, its order is wrong: write all times in one unit"
        )


def _why_text(name: str, files: Sequence[TableFile], surveys: Sequence[_Survey]) -> Iterator[str]:
    """Yield why all ids of a column are text, if some of them are whole numbers."""
    mixed = [found.ids[name].odd for found in surveys if found.ids[name].odd]
    texts = [file.path for file, found in zip(files, surveys, strict=True) if found.ids[name].text]
    if mixed:
        yield f"{name}: all ids are text, though some are whole numbers, because of {mixed[0]}"
    elif texts and len(texts) < sum(not found.is_empty for found in surveys):
        yield f"{name}: all ids are text, though those of some files are whole numbers, because of {texts[0]}"


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
        composed: Number of ids that were not in normal form.
        exponent: Place and text of the first id such as 1.2E+12; None if there is none.
        odd: The first text among whole numbers, with its place, for messages; "" if there is none.
    """

    text: bool = False
    decimals: int = 0
    blanks: int = 0
    composed: int = 0
    exponent: tuple[str, str] | None = None
    odd: str = ""


@dataclass(frozen=True)
class _Survey:
    """Findings in one file. All but `malformed` and `all_fit` disregard malformed rows.

    Attributes:
        malformed: The malformed rows. The count is 0 if the file has none.
        all_fit: Whether the file has neither malformed rows nor blank lines.
        ids: Findings in the columns `user_id` and `item_id`.
        fractions: Whether a time is not whole.
        far_times: Whether a time fits into int64, but its millionths do not.
        units: Number of times that look like seconds and like milliseconds since 1970.
    """

    malformed: Malformed
    all_fit: bool
    ids: dict[str, _Ids]
    fractions: bool
    far_times: bool
    units: tuple[int, int]

    @property
    def is_empty(self) -> bool:
        """Whether the file has no event."""
        return self.malformed.rows == self.malformed.count


def _surveyed_by(
    tasks: Tasks, files: Sequence[TableFile], progress: Progress
) -> tuple[Sequence[TableFile], list[_Survey]]:
    # A function that derives columns may be one that only this process has.
    alone = tasks.width == 1 or len(files) == 1 or any(file.layout.derive for file in files)
    if alone or not all(map(_is_shared, files)):
        return files, [_survey(file, progress) for file in files]
    stage = progress.stage(f"checking {files[0].path} and {len(files) - 1} more", len(files), unit="files")
    sizes = [(file, file.content.stat().st_size) for file in files]
    found = list(tasks.map(stage, _survey_elsewhere, None, sizes))
    return [file for file, _ in found], [survey for _, survey in found]


def _survey_elsewhere(
    _: None, sized: tuple[TableFile, int], advance: Callable[[int], None]
) -> tuple[TableFile, _Survey]:
    file, size = sized
    require_seen(file.content, size)
    survey = _survey(file, Progress())
    advance(1)
    return file, survey


def _survey(file: TableFile, progress: Progress) -> _Survey:
    try:
        return _surveyed(file, progress)
    except BadLineError:
        file.read_by_line()
        return _surveyed(file, progress)


def _surveyed(file: TableFile, progress: Progress) -> _Survey:
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
            if file.text is not None and found.counts["long"]:
                file.text.check_no_line_is_swallowed(found.rows)
        rows = found.rows - found.counts.get("blank", 0)
        places = _places(file, found.first.get("malformed", []))
    return _Survey(
        malformed=Malformed(str(file.path), found.counts.get("malformed", 0), rows, places),
        all_fit=not found.counts["unfit"],
        ids={name: _ids(file, name, texts, found) for name in file.ids},
        fractions=bool(found.counts.get("fraction")),
        far_times=bool(found.counts.get("far")),
        units=(found.counts.get("seconds", 0), found.counts.get("milliseconds", 0)),
    )


def _texts(file: TableFile) -> dict[str, str]:
    """Return the id columns whose first rows have text that is no number; the ids of others are read strictly first.

    The value shows such a text if these rows also have whole numbers, else it is empty.
    """
    names = [name for name in file.ids if file.is_text(name)]
    if not names:
        return {}
    file.loose = True
    first = file.frame.filter(~file.is_unfit).select(**{name: file.ids[name] for name in names}).head(_ROWS_IN_SAMPLE)
    sample = first.collect(engine="streaming")
    numbers = {name: _is_number(pl.col(name)) for name in names}
    texts = {}
    for name, found in sample.select(**numbers).to_dict().items():
        if (others := sample[name].filter(~found)).len():
            texts[name] = f"{shorten(others[0])!r} ({file.path})" if found.any() else ""
    file.loose = bool(texts)
    return texts


def _is_number(text: pl.Expr) -> pl.Expr:
    return is_integer(text) | text.str.contains(WHOLE_NUMBER) | text.str.contains(EXPONENT)


def _conditions(file: TableFile, texts: Collection[str]) -> dict[str, pl.Expr]:
    unfit, ids = file.is_unfit, file.ids
    conditions = {"unfit": unfit}
    for name in filter(file.is_text, ids):
        if file.loose:
            stripped = file.raw_ids[name].str.strip_chars(BLANKS)
            conditions[f"{name} has blanks"] = ~unfit & (file.raw_ids[name].str.len_bytes() > stripped.str.len_bytes())
            conditions[f"{name} is composed"] = ~unfit & (stripped != ids[name])
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
        if not file.time.is_date:
            for unit, least, most in (("seconds", 10**8, 10**10), ("milliseconds", 10**11, 10**13)):
                conditions[unit] = ~unfit & file.time.whole.is_between(least, most)
    return conditions


def _ids(file: TableFile, name: str, texts: dict[str, str], found: Tally) -> _Ids:
    def first(condition: str) -> tuple[str, str] | None:
        # Place and id of the first row that meets a condition.
        rows = found.first.get(condition, [])[:1]
        if not rows:
            return None
        value = file.frame.slice(rows[0], 1).select(file.ids[name].alias(name)).collect(engine="streaming")[name][0]
        return _numbered(file, rows)[0], str(value)

    exponent, text = first(f"{name} has exponent"), first(f"{name} is text")
    return _Ids(
        text=name in texts or bool(found.counts.get(f"{name} is text")),
        decimals=found.counts.get(f"{name} is decimal", 0),
        blanks=found.counts.get(f"{name} has blanks", 0),
        composed=found.counts.get(f"{name} is composed", 0),
        exponent=None if exponent is None else (f"{exponent[0]}: {name}", exponent[1]),
        odd=texts.get(name, "") if text is None else f"{shorten(text[1])!r} ({file.path}, {text[0]})",
    )


def _reasons(file: TableFile) -> dict[str, pl.Expr]:
    # Reasons why rows are unfit. Only a blank line is empty in all columns, so all must be read.
    unfit = file.is_unfit
    if file.text is None:
        return {"malformed": unfit}
    blank = file.text.is_blank
    return {"malformed": unfit & ~blank, "blank": blank, "long": file.text.is_long}


def _tally(file: TableFile, doing: str, conditions: dict[str, pl.Expr], progress: Progress) -> Tally:
    if file.text is None:
        total: int | None = int(file.frame.select(pl.len()).collect().item())
    else:
        total = estimate_lines(file.content)
    return tally(file.frame, conditions, progress, f"{doing} {file.path}", total)


def _places(file: TableFile, rows: list[int]) -> tuple[str, ...]:
    # "line 7: item='item_id' expected an id, got nothing" for each of the rows, which count from 0.
    if not rows:
        return ()
    chosen = file.frame.with_row_index(_ROW).filter(pl.col(_ROW).is_in(rows)).head(len(rows))
    raw = chosen.collect(engine="streaming").rows(named=True)
    missing = chosen.select(**{name: column.is_null() for name, column in file.parsed.items()})
    flags = missing.collect(engine="streaming").rows(named=True)
    return tuple(
        f"{place}: {_reason(file, values, is_missing)}"
        for place, values, is_missing in zip(_numbered(file, rows), raw, flags, strict=True)
    )


def _numbered(file: TableFile, rows: list[int]) -> list[str]:
    """Return "line 7" or, in a file without lines, "row 6" for rows in ascending order, which count from 0."""
    return [f"row {row + 1}" for row in rows] if file.text is None else [f"line {n}" for n in file.text.lines_of(rows)]


def _reason(file: TableFile, values: dict[str, Any], is_missing: dict[str, bool]) -> str:
    # The reason why a row is malformed, given its raw values.
    if file.text is not None and (problem := file.text.problem(values)):
        return problem
    layout, time = file.layout, file.time
    for argument, name, column in (("user", USER_ID, layout.user), ("item", ITEM_ID, layout.item)):
        if is_missing[name]:
            expected = file.expected_id(column, values[column])
            return f"{argument}={column!r} expected {expected}, got {_shown(values[column])}"
    assert layout.timestamp is not None
    assert time is not None
    value = values[layout.timestamp]
    bounds = ""
    if not time.is_date and _is_finite(value):
        furthest = f"{FURTHEST_IN_MILLIONTHS:,}, as some times have fractions" if file.in_millionths else "2^63"
        bounds = f" nearer to 0 than {furthest}"
        if isinstance(value, str) and "e" in value.lower():
            bounds = " without exponent, which may have cut digits"
    return f"timestamp={layout.timestamp!r} expected {time.expects}{bounds}, got {_shown(value)}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _shown(value: Any) -> str:
    return "nothing" if value is None or value == "" else repr(shorten(str(value)))
