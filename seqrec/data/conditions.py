"""SQL conditions over the events of a log, as settings state them: "is_click = 1 AND rating >= 4"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars as pl


def event_condition(frame: pl.LazyFrame, text: str, argument: str) -> pl.Expr:
    """Return the condition `text`, the value of `argument`, over the columns of a frame with one event a row.

    Raises:
        InputError: if it is not SQL, names an unknown column, or is not true or false.
    """
    # Training needs no polars.
    import polars as pl

    try:
        condition = pl.sql_expr(text)
        kind = frame.select(condition.alias("condition")).collect_schema()["condition"]
    except pl.exceptions.PolarsError as error:
        raise condition_error(text, argument, error, frame.collect_schema().names()) from error
    if kind != pl.Boolean:
        raise InputError(f"{argument}={text!r} gives {kind}; it must be true or false, as in rating >= 4")
    return condition


def condition_error(text: str, argument: str, error: Exception, columns: list[str] | None = None) -> InputError:
    """Return the error of a condition that polars refuses, with the known columns if they are given."""
    reason = str(error).strip().split("\n")[0].split("; valid columns")[0]
    known = f"; columns: {', '.join(columns)}" if columns else ""
    return InputError(f"{argument}={text!r}: {reason}{known}")
