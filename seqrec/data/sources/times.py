"""Times of a table's column, in whatever form it has, as int64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

MICROSECONDS = 1_000_000
# Tried in turn on a column's first value; "%.f" also takes no fraction.
DATE_TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


@dataclass(frozen=True)
class TimeColumn:
    """A way to read a time column.

    Attributes:
        is_integer: Values are integers and kept as they are.
        is_date: Values are dates; without it they are numbers in the log's own unit.
        expects: What a value must look like, for messages.
        parsed: int64 expression, null where the value is no time: integers as they are, other numbers in
            millionths, dates in microseconds since 1970 UTC.
    """

    is_integer: bool
    is_date: bool
    expects: str
    parsed: pl.Expr

    def value(self, *, fractions: bool) -> pl.Expr:
        """Return the int64 timestamp.

        Args:
            fractions: Some time of the log is not whole, so that all of them are given in millionths.
        """
        if self.is_integer:
            return self.parsed * MICROSECONDS if fractions else self.parsed
        return self.parsed if fractions else self.parsed // MICROSECONDS

    def has_fractions(self) -> pl.Expr:
        """Return whether any time of the column is not whole."""
        import polars as pl

        if self.is_integer:
            return pl.lit(False)
        return (self.parsed % MICROSECONDS != 0).any()


def ways_to_read(column: pl.Expr, dtype: pl.DataType, first: object) -> list[TimeColumn]:
    """Return the ways in which a time column may be read, strictest first; none where it holds no times.

    Args:
        column: The column.
        dtype: Its type.
        first: Its first value that is not null, which tells the form of dates written as text.
    """
    import polars as pl

    as_integer = TimeColumn(True, False, "a number", column.cast(pl.Int64, strict=False))
    if dtype.is_integer():
        return [as_integer]
    number = column.cast(pl.Float64, strict=False)
    millionths = (number * MICROSECONDS).round().cast(pl.Int64, strict=False)
    as_number = TimeColumn(False, False, "a number", millionths)
    if dtype.is_float():
        return [as_number]
    if dtype.is_temporal() and dtype != pl.Time and not isinstance(dtype, pl.Duration):
        return [TimeColumn(False, True, "a time", column.cast(pl.Datetime("us")).dt.timestamp("us"))]
    if dtype != pl.String or not isinstance(first, str):
        return []
    sample = pl.Series([first])
    if sample.cast(pl.Float64, strict=False).is_not_null().all():
        return [as_integer, as_number]
    for form in DATE_TIME_FORMATS:
        if sample.str.to_datetime(form, strict=False, time_unit="us").is_not_null().all():
            times = column.str.to_datetime(form, strict=False, time_unit="us").dt.timestamp("us")
            return [TimeColumn(False, True, f"a time like {first}", times)]
    return []
