"""Reading logs that are lines of text, with errors that name the file and the line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.errors import InputError, MissingInputError

if TYPE_CHECKING:
    import polars as pl

# A character that text logs do not hold, so that polars takes each line as one field.
_NO_SEPARATOR = "\x1f"


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
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().split("\n")[0]
        hint = " (save it as UTF-8)" if "utf-8" in reason else ""
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


def scan_lines(
    text: Path | bytes, pattern: str, columns: Sequence[str], origin: str, form: str
) -> pl.LazyFrame:
    r"""Split lines into columns; blank lines count as lines but are no events.

    Args:
        text: A file, plain or compressed, or its content.
        pattern: Regular expression with one group a column, which must match the whole line.
        columns: Names of the groups, which become String columns.
        origin: The file's name for messages.
        form: What a line must look like, for messages: "user item".

    Returns:
        The columns, with `user_id` and `item_id` as Int64 where all are integers.

    Raises:
        InputError: nothing in the file, a file that is no text, or a line of another form.
    """
    import polars as pl

    with reading(origin):
        lines = pl.scan_csv(
            text,
            has_header=False,
            separator=_NO_SEPARATOR,
            quote_char=None,
            infer_schema=False,
            new_columns=["line"],
        )
        line = pl.col("line").str.strip_chars()
        is_event = line.str.len_bytes().fill_null(0) > 0
        groups = [line.str.extract(pattern, k + 1).alias(name) for k, name in enumerate(columns)]
        frame = lines.filter(is_event).select(*groups)
        unparsable = pl.col(columns[0]).is_null()
        survey = frame.select(
            pl.len().alias("events"),
            unparsable.sum().alias("unparsable"),
            *(is_integer(pl.col(name)).alias(name) for name in (USER_ID, ITEM_ID)),
        ).collect()
        if survey["events"].item() == 0:
            raise InputError(f"{origin} is empty; expected lines of the form {form}")
        if survey["unparsable"].item() > 0:
            numbered = lines.with_row_index("row").filter(is_event)
            first = numbered.with_columns(*groups).filter(unparsable).head(1).collect()
            number, got = first["row"].item() + 1, first["line"].item()
            raise InputError(f"{origin} line {number}: expected {form}, got {shorten(got)!r}")
    integers = [name for name in (USER_ID, ITEM_ID) if survey[name].item()]
    return frame.with_columns(pl.col(integers).cast(pl.Int64))


def is_integer(text: pl.Expr) -> pl.Expr:
    """Return whether all of a text column are decimal forms of int64; "007" is not, so such ids stay text."""
    import polars as pl

    return (text.cast(pl.Int64, strict=False).cast(pl.String) == text).fill_null(False).all()


def shorten(text: str, width: int = 60) -> str:
    """Return `text`, cut to `width` characters."""
    return text if len(text) <= width else text[: width - 3] + "..."
