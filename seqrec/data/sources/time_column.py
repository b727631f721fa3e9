"""Times of a table: expressions that read a column of numbers, dates or text as int64, in any usual form."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import polars as pl

from seqrec.errors import InputError

# Values that determine the form of a time column.
TIMES_IN_SAMPLE = 1000
MICROSECONDS = 1_000_000
# Largest time for which the millionths fit into int64, with any fraction.
FURTHEST_IN_MILLIONTHS = (2**63 - 1) // MICROSECONDS - 1
# Times from here on, with an exponent, are no times: spreadsheets write so what does not fit into a column.
CUT_FROM = 1e8
# A time that is nearer than this to a whole number counts as whole.
_HALF_A_MILLIONTH = 0.5 / MICROSECONDS
# Forms to try on a column's first values; "%.f" also takes no fraction. No text has two of these forms.
DATE_TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S UTC",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%Y%m%dT%H%M%SZ",
    "%Y%m%dT%H%M%S",
)
# Day and month by numbers: which is first shows in the values of all files of a log; see `TimeColumn.orders`.
# A blank in a form also takes none, as in 10:02AM.
_OF_DAY = (" %H:%M:%S%.f", " %H:%M", "", " %I:%M:%S %p", " %I:%M %p")
DAY_FIRST, MONTH_FIRST = (
    tuple(f"{date}{time}" for date in dates for time in _OF_DAY)
    for dates in (("%d/%m/%Y", "%d-%m-%Y", "%d.%m.%Y"), ("%m/%d/%Y", "%m-%d-%Y"))
)
# "%B" also takes the short names.
WORDS = (
    *("%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S GMT", "%d/%b/%Y:%H:%M:%S %z"),
    *(f"{date}{time}" for date in ("%d %B %Y", "%d-%B-%Y", "%B %d, %Y", "%B %d %Y", "%Y-%B-%d") for time in _OF_DAY),
    *(f"{date}{time}" for date in ("%Y-%m-%d", "%Y/%m/%d") for time in _OF_DAY if "%p" in time),
)
# `%Y` also takes a year of two digits, as that year of our era.
_FIRST_YEAR = 1000
ZONED_FORMATS = tuple(f"{form}%#z" for form in DATE_TIME_FORMATS if "%H" in form and form[-1] not in "ZC")


@dataclass(frozen=True)
class TimeColumn:
    """Expressions that read a time column.

    Attributes:
        is_date: True if values are dates, False if they are numbers in the log's own unit.
        expects: Description of a valid value, for messages.
        whole: int64 expression: numbers rounded to whole ones, or dates in seconds since 1970 UTC. Null if the value
            is not a time or does not fit.
        millionths: int64 expression: millionths of the same. Null likewise, and fewer times fit.
        is_fraction: Boolean expression: True if the time is not whole. A log with such a time is kept in millionths.
        looser: A slower way that reads more values; None if this way already reads all.
        orders: For days and months by numbers, the ways that read the day first and the month first. Which is right
            shows in all values of the log. Empty for other times.
        form: The form of most times written as text.
    """

    is_date: bool
    expects: str
    whole: pl.Expr
    millionths: pl.Expr
    is_fraction: pl.Expr
    looser: TimeColumn | None = None
    orders: dict[str, TimeColumn] = field(default_factory=dict)
    form: str = ""


def time_column(
    column: pl.Expr, dtype: pl.DataType, sample: pl.Series, time_format: str | None = None
) -> TimeColumn | None:
    """Return the strictest way to read a time column; None if it contains no times.

    The form of most values of `sample`, the first that are not null, is the form of times written as text, if no
    `time_format` is given. The looser way also reads the other forms, but no times with a zone among times without one.

    Raises:
        InputError: if the form is none.
    """
    if dtype.is_integer():
        return _integers(column.cast(pl.Int64, strict=False))
    if dtype.is_float():
        return _numbers(column.cast(pl.Float64))
    if dtype.is_temporal() and dtype != pl.Time and not isinstance(dtype, pl.Duration):
        return _dates(column.cast(pl.Datetime("us"), strict=False), "a time")
    if dtype != pl.String:
        return None
    if time_format is not None:
        return _of_format(column, time_format)
    most = len(sample) - sample.cast(pl.Float64, strict=False).null_count()
    best = None
    for form in (*DATE_TIME_FORMATS, *ZONED_FORMATS, *DAY_FIRST, *MONTH_FIRST, *WORDS):
        if (found := int(sample.to_frame().select(_moment(pl.first(), form).count()).item())) > most:
            best, most = form, found
    if most == 0:
        return None
    if best is None:
        integer = column.cast(pl.Int64, strict=False)
        number = column.cast(pl.Float64, strict=False)
        # Whoever wrote 1.6E+09 may have cut its digits.
        is_cut = column.str.contains("[eE]") & (number.abs() >= CUT_FROM)
        return replace(_integers(integer), looser=_numbers(pl.when(~is_cut).then(number), integer))
    if best in WORDS:
        return _of_format(column, best)
    example = sample.to_frame().filter(_moment(pl.first(), best).is_not_null()).item(0, 0)
    expects = f"a time like {example}"
    if best in DAY_FIRST or best in MONTH_FIRST:
        day, month = best, best
        for first, second in (("%d/%m", "%m/%d"), ("%d-%m", "%m-%d")):
            day, month = day.replace(second, first), month.replace(first, second)
        # With dots the day is always first.
        forms = {"day": (day, DAY_FIRST)} | ({} if "." in day else {"month": (month, MONTH_FIRST)})
        orders = {order: _of_forms(column, form, alike, expects) for order, (form, alike) in forms.items()}
        return replace(orders["day" if best in DAY_FIRST else "month"], orders=orders)
    return _of_forms(column, best, ZONED_FORMATS if best in ZONED_FORMATS else DATE_TIME_FORMATS, expects)


def _of_forms(column: pl.Expr, form: str, alike: tuple[str, ...], expects: str) -> TimeColumn:
    """Return the times of one form, and of all forms like it as the looser way."""
    looser = _dates(pl.coalesce(*(_moment(column, each) for each in alike)), expects)
    return replace(_dates(_moment(column, form), expects), looser=looser, form=form)


def _of_format(column: pl.Expr, form: str) -> TimeColumn:
    """Return the times of one form; those with a zone are read in UTC, those without one are taken as UTC."""
    try:
        moment = _moment(column, form)
        pl.select(pl.lit("x").str.to_datetime(form, strict=False, time_unit="us"))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"time_format={form!r} is no form of times: {str(error).splitlines()[0]}") from error
    return _dates(moment, f"a time of the form {form}")


def _moment(text: pl.Expr, form: str) -> pl.Expr:
    moment = text.str.to_datetime(form, strict=False, time_unit="us")
    return pl.when(moment.dt.year() >= _FIRST_YEAR).then(moment)


def _integers(integer: pl.Expr) -> TimeColumn:
    return TimeColumn(False, "a number", integer, _scaled(integer), pl.lit(False))


def _numbers(number: pl.Expr, integer: pl.Expr | None = None) -> TimeColumn:
    # Integers in the text are kept to the last digit, which a float would lose.
    nearest = number.round()
    is_fraction = number.is_finite() & ((number - nearest).abs() >= _HALF_A_MILLIONTH)
    rest = ((number - nearest) * MICROSECONDS).round().cast(pl.Int64, strict=False)
    # As floats, integers just below -2^63 become -2^63 itself.
    whole: pl.Expr = pl.when(nearest > -(2.0**63)).then(nearest.cast(pl.Int64, strict=False))
    if integer is not None:
        whole = pl.coalesce(integer, whole)
        is_fraction = is_fraction & integer.is_null()
    millionths = _scaled(whole) + pl.when(is_fraction).then(rest).otherwise(0)
    # If the millionths of a fraction do not fit, the value is not a time in either unit.
    whole = pl.when(~is_fraction | millionths.is_not_null()).then(whole)
    return TimeColumn(False, "a number", whole, millionths, is_fraction)


def _dates(moment: pl.Expr, expects: str) -> TimeColumn:
    microseconds = moment.dt.timestamp("us")
    return TimeColumn(True, expects, microseconds // MICROSECONDS, microseconds, microseconds % MICROSECONDS != 0)


def _scaled(whole: pl.Expr) -> pl.Expr:
    # The product would wrap around beyond these bounds.
    fits = whole.is_between(-FURTHEST_IN_MILLIONTHS, FURTHEST_IN_MILLIONTHS)
    return pl.when(fits).then(whole * MICROSECONDS)
