"""Feature columns of text files: numbers, true and false, or text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

# Rows that the types are told from.
_GUESSED_FROM = 10_000


def as_guessed(frame: pl.LazyFrame, names: Sequence[str]) -> list[pl.Expr]:
    """Return columns of text as the type that their first 10,000 values have.

    Int64 where these are integers, Float64 where numbers, Boolean where true and false in any case; else text. A
    later value of another kind stops whoever collects the column: polars' error names it.

    Args:
        frame: String columns.
        names: Which of them.
    """
    import polars as pl

    if not names:
        return []
    sample = frame.select(names).head(_GUESSED_FROM).collect(engine="streaming")
    return [_typed(pl.col(name), sample[name].filter(sample[name].str.len_bytes() > 0)) for name in names]


def _typed(column: pl.Expr, values: pl.Series) -> pl.Expr:
    import polars as pl

    value = pl.when(column.str.len_bytes() > 0).then(column)
    if len(values) == 0:
        return value
    for number in (pl.Int64, pl.Float64):
        if values.cast(number, strict=False).is_not_null().all():
            return value.cast(number)
    if values.str.to_lowercase().is_in(["true", "false"]).all():
        # Text does not cast to Boolean, and any other way would not name a later value that is neither.
        return value.str.to_lowercase().cast(pl.Enum(["false", "true"])).to_physical().cast(pl.Boolean)
    return value
