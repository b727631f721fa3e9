"""Reading logs that are lines of text, with errors that name the file and the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.base import CheckedLog, Malformed
from seqrec.data.sources.malformed import leave_out
from seqrec.data.sources.row_count import estimate_lines
from seqrec.data.sources.tally import PLACES, tally
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl


@contextmanager
def reading(origin: Path | str, kind: str = "text") -> Iterator[None]:
    """Context in which a failure to read `origin` becomes a one-line error.

    Raises:
        InputError: polars or the operating system could not read the input.
    """
    import polars as pl

    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise InputError(f"{origin} is empty; expected at least one event") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        # Damaged Parquet files make polars panic, which no `except Exception` takes.
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().split("\n")[0]
        hint = " (save it as UTF-8)" if re.search("utf-?8", reason) else ""
        raise InputError(f"{origin} cannot be read as {kind}: {reason}{hint}") from error


def existing_file(path: str, argument: str) -> Path:
    """Return `path` as a Path if a file is there.

    Raises:
        MissingInputError: there is none; the message names the argument.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingInputError(f"{argument}={path!r}: no such file")
    return file


@dataclass(frozen=True)
class LineForm:
    """What each line of a log looks like.

    Attributes:
        pattern: Regular expression with one group a column, which must match the whole line.
        columns: Names of the groups, `user_id` and `item_id` among them.
        shown: The same for messages: "user item".
    """

    pattern: str
    columns: tuple[str, ...]
    shown: str


def check_lines(
    text: Path | bytes, form: LineForm, origin: str, max_bad_share: float, progress: Progress | None
) -> CheckedLog:
    """Read a log of lines to check it; blank lines count as lines but are no events.

    Args:
        text: A file, plain or compressed, or its content.
        form: What a line must look like.
        origin: The file's name for messages.
        max_bad_share: Largest share of malformed lines that are left out.
        progress: Told of the pass over the file.

    Returns:
        The columns as text, but for `user_id` and `item_id`, which are Int64 where all are integers.

    Raises:
        InputError: nothing in the file, a file that is no text, or too many lines of another form.
    """
    import polars as pl

    progress = progress or Progress()
    # A file may begin with a byte order mark, and so do the parts of files that were joined.
    line = pl.col("line").str.strip_prefix("\ufeff").str.strip_chars()
    groups = {name: line.str.extract(form.pattern, k + 1) for k, name in enumerate(form.columns)}
    unparsable = groups[form.columns[0]].is_null()
    is_blank = line.str.len_bytes() == 0
    conditions = {"blank": is_blank, "malformed": unparsable & ~is_blank}
    conditions |= {name: ~unparsable & ~is_integer(groups[name]) for name in (USER_ID, ITEM_ID)}
    with reading(origin), progress.stage(f"checking {origin}", estimate_lines(text)) as stage:
        lines = pl.scan_lines(text, glob=False)
        found = tally(lines, conditions, stage)
        rows = found.rows - found.counts["blank"]
        if rows == 0:
            raise InputError(f"{origin} is empty; expected lines of the form {form.shown}")
        numbered = lines.with_row_index("row").filter(pl.col("row").is_in(found.first["malformed"]))
        first = (
            numbered.head(PLACES).collect(engine="streaming") if found.counts["malformed"] else pl.DataFrame()
        )
        places = tuple(
            f"line {row + 1}: expected {form.shown}, got {shorten(got.strip())!r}"
            for row, got in first.iter_rows()
        )
    malformed = Malformed(origin, found.counts["malformed"], rows, places)
    left_out = leave_out([malformed], rows, max_bad_share)
    if found.counts["malformed"] or found.counts["blank"]:
        lines = lines.filter(~unparsable)
    integers = [name for name in (USER_ID, ITEM_ID) if not found.counts[name]]
    frame = lines.select(**groups).with_columns(pl.col(integers).cast(pl.Int64))
    return CheckedLog(frame, rows - malformed.count, left_out)


def is_integer(text: pl.Expr) -> pl.Expr:
    """Return whether a text is the decimal form of an int64; "007" is not, so that such ids stay text."""
    import polars as pl

    return (text.cast(pl.Int64, strict=False).cast(pl.String) == text).fill_null(False)


def shorten(text: str, width: int = 60) -> str:
    """Return `text`, cut to `width` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."
