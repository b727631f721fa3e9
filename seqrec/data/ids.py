"""How ids are written: which text is no id, and which spellings are the same id.

One rule for logs, histories, lists of users and block lists:

- Blanks around an id are no part of it: spaces, tabs, no-break spaces, a byte order mark.
- A letter with an accent is one character, as in Unicode's normal form NFC, also where a log writes it as two.
- A marker of a missing value is no id: `MISSING_VALUES`, or those that the user gives.
- If every id of a column is a whole number, `12` and `12.0` are the integer 12. A number with an exponent, such as
  `1.2E+12`, is refused there, because whoever wrote it may have cut its digits.
- In a column with other ids every id is text. If such a column has both `12` and `12.0`, it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from seqrec.errors import InputError

# Markers that databases, pandas, R, JavaScript and spreadsheets write. "na" alone may be an id.
_WORDS = ("null", "none", "nil", "nan", "-nan", "nat", "n/a", "<na>", "#n/a", "#n/a n/a", "#na", "undefined")
_NULLS = ("(null)", "<null>", "[null]", "{null}")
_WRITTEN = [case(word) for word in (*_WORDS, *_NULLS) for case in (str.lower, str.upper, str.title)]
MISSING_VALUES = tuple(dict.fromkeys(["\\N", "NA", "NaN", "-NaN", "NaT", *_WRITTEN]))
BLANKS = " \t\r\n\v\f\u00a0\u2007\u202f\ufeff\u200b"
WHOLE_NUMBER = r"^[+-]?\d{1,18}\.0*$"
EXPONENT = r"^[+-]?\d+(?:\.\d*)?[eE][+-]?\d+$"
_FRACTION = r"\.0*$"


def cleaned(text: pl.Expr, missing_values: Sequence[str] = MISSING_VALUES) -> pl.Expr:
    """Return text in normal form without the blanks around it; null if nothing is left or it is a marker."""
    stripped = text.str.strip_chars(BLANKS)
    is_ascii = stripped.str.len_bytes() == stripped.str.len_chars()
    one_form = pl.when(is_ascii).then(stripped).otherwise(stripped.str.normalize("NFC"))
    return pl.when((stripped.str.len_bytes() > 0) & ~stripped.is_in(list(missing_values))).then(one_form)


def whole_numbers(text: pl.Expr) -> pl.Expr:
    """Return `12` for `12`, `12.` and `12.0`, as Int64; null for any other text."""
    return text.str.replace(_FRACTION, "").cast(pl.Int64, strict=False)


def read_ids(values: pl.Series, origin: str) -> pl.Series:
    """Return the ids of a short list, text or integers, as Int64, if every one is a whole number, or as text, by the
    rule above. `origin` is what they are from, for messages.

    Raises:
        InputError: if an id has an exponent, or is in the list in two spellings.
    """
    if values.dtype.is_integer():
        return values
    name = values.name
    text = values.to_frame("text").select(cleaned(pl.col("text")))["text"].drop_nulls()
    numbers = text.to_frame().select(whole_numbers(pl.col("text")))["text"]
    canonical = (numbers.cast(pl.String) == text) | text.str.contains(WHOLE_NUMBER)
    exponents = text.str.contains(EXPONENT)
    if (canonical.fill_null(False) | exponents).all() and len(text):
        if exponents.any():
            raise InputError(f"{origin}: {exponent_refusal(text.filter(exponents)[0])}")
        return numbers.alias(name)
    refuse_two_spellings(text.unique(), origin)
    return text.alias(name)


def exponent_refusal(example: str) -> str:
    """Return the reason why a number such as 1.2E+12 is no id."""
    return f"the id {example!r} has an exponent, so digits may be lost; save the column as text or as whole numbers"


def refuse_two_spellings(distinct: pl.Series, origin: str) -> None:
    """Refuse distinct ids, as text, among which one whole number is written in two ways.

    Raises:
        InputError: with both spellings.
    """
    long = distinct.filter(distinct.str.contains(WHOLE_NUMBER))
    short = long.str.replace(_FRACTION, "")
    twice = short.is_in(distinct.implode())
    if twice.any():
        raise InputError(
            f"{origin} has the ids {short.filter(twice)[0]!r} and {long.filter(twice)[0]!r}, which are probably the "
            "same; as other ids of the column are no numbers, both would be text: write each id in one way"
        )
