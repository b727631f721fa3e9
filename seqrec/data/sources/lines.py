"""Read logs that are lines of text, with errors that name the file and the line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.checking import PLACES, estimate_lines, is_integer, leave_out, reading, shorten, tally
from seqrec.data.sources.source import CheckedLog, Malformed
from seqrec.errors import InputError


@dataclass(frozen=True)
class LineForm:
    """Form of each line of a log.

    Attributes:
        pattern: Regular expression with one group a column, which must match the whole line.
        columns: Names of the groups, `user_id` and `item_id` among them.
        shown: The same for messages: "user item".
        integers: Columns that become Int64.
        floats: Columns that become Float64.
    """

    pattern: str
    columns: tuple[str, ...]
    shown: str
    integers: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()


def check_lines(
    text: Path | bytes, form: LineForm, origin: str, max_bad_share: float, progress: Progress | None
) -> CheckedLog:
    """Read a log of lines, a file or its content, to check it. Blank lines count as lines but are not events.

    Returns:
        The columns as text, or as the numbers that `form` asks for. `user_id` and `item_id` are Int64 if all of
        them are integers.

    Raises:
        InputError: if the file is empty, is not text, or has too many lines of another form.
    """
    # A file may begin with a byte order mark, and so do the parts of files that were joined.
    line = pl.col("line").str.strip_prefix("\ufeff").str.strip_chars()
    groups = {name: line.str.extract(form.pattern, k + 1) for k, name in enumerate(form.columns)}
    unparsable = groups[form.columns[0]].is_null()
    is_blank = line.str.len_bytes() == 0
    conditions = {"blank": is_blank, "malformed": unparsable & ~is_blank}
    conditions |= {name: ~unparsable & ~is_integer(groups[name]) for name in (USER_ID, ITEM_ID)}
    with reading(origin):
        lines = pl.scan_lines(text, glob=False)
        total = estimate_lines(text)
        found = tally(lines, conditions, progress or Progress(), f"checking {origin}", total)
        rows = found.rows - found.counts["blank"]
        if rows == 0:
            raise InputError(f"{origin} is empty; expected lines of the form {form.shown}")
        numbered = lines.with_row_index("row").filter(pl.col("row").is_in(found.first["malformed"]))
        first = numbered.head(PLACES).collect(engine="streaming") if found.counts["malformed"] else pl.DataFrame()
        places = tuple(
            f"line {row + 1}: expected {form.shown}, got {shorten(got.strip())!r}" for row, got in first.iter_rows()
        )
    malformed = Malformed(origin, found.counts["malformed"], rows, places)
    left_out = leave_out([malformed], rows, max_bad_share)
    if found.counts["malformed"] or found.counts["blank"]:
        lines = lines.filter(~unparsable)
    integers = [name for name in (USER_ID, ITEM_ID) if not found.counts[name]] + [*form.integers]
    frame = lines.select(**groups).with_columns(pl.col(integers).cast(pl.Int64), pl.col(form.floats).cast(pl.Float64))
    return CheckedLog(frame, rows - malformed.count, left_out)
