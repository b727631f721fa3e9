"""Conditions on items, such as `genres has 'jazz' and year > 1990`: a part of SQL's WHERE over columns of items.

    condition   = part (("and" | "or") part)*, "not" condition, "(" condition ")"      "not" before "and" before "or"
    comparison  = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
                | column "has" value
                | column ["not"] "in" "(" value ("," value)* ")"
                | column "is" ["not"] "null"
    column      = a name, or any text in double quotes
    value       = 'text' ('' is a quote in it), a number, true (1) or false (0)

Words are read in upper and lower case. No part of a condition is run as code. R rows of a column, row 0 is no item.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from seqrec.data.columns import Column
from seqrec.data.schema import CATEGORIES, NUMERIC, VECTOR
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

Mask = NDArray[np.bool_]
Value = str | int | float

# Longest condition in characters, most comparisons in it, and deepest nesting of brackets and "not". They bound the
# work of a condition that a stranger wrote.
MAX_LENGTH, MAX_COMPARISONS, MAX_DEPTH = 2000, 64, 16
# Values of a column that are searched for one like a misspelt value.
HINTED_VALUES = 1 << 14

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<number>[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(?![\w.])
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|<>|[=<>(),])""",
    re.VERBOSE,
)
_SIGNS = ("=", "!=", "<>", "<", "<=", ">", ">=")
_RESERVED = {"and", "or", "not", "in", "is", "has", "null", "true", "false"}


class Comparison(NamedTuple):
    """A column next to values: `=`, `<`, `<=`, `>`, `>=` or `has` one value, `in` several, or `is null`."""

    column: str
    operator: str
    values: tuple[Value, ...] = ()


class Not(NamedTuple):
    """The opposite of a condition."""

    part: Condition


class Joined(NamedTuple):
    """Several conditions between `and` or `or`."""

    word: str
    parts: tuple[Condition, ...]


Condition = Comparison | Not | Joined


class Truth(NamedTuple):
    """Rows (R,) for which a condition is true, and for which it is false; for a missing value it is neither."""

    true: Mask
    false: Mask


class _Token(NamedTuple):
    kind: str
    value: Any
    place: int  # of the first character, from 1
    text: str


def parse(text: str) -> Condition:
    """Return the tree of a condition.

    Raises:
        InputError: if it is no condition, or longer or deeper than the limits above; with the place.

    Example:
        >>> parse("year > 1990 and not genre in ('pop', 'rock')").word
        'and'
    """
    if len(text) > MAX_LENGTH:
        raise InputError(f"it has {len(text):,} characters, and at most {MAX_LENGTH:,} are allowed")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("it has half a character of two (a surrogate), which no text has")
    parser = _Parser(text)
    found = parser.either(0)
    if parser.next.kind != "end":
        parser.refuse("'and', 'or' or the end")
    return found


def columns_of(condition: Condition) -> list[str]:
    """Return the names of the columns that a condition reads, each once, in its order."""
    return list(dict.fromkeys(each.column for each in _comparisons(condition)))


def rows_where(condition: Condition, columns: Mapping[str, Column]) -> Mask:
    """Return whether a condition is true (R,) for each row; row 0 is no item, so it is False.

    A comparison with a missing value is neither true nor false, as in SQL, so neither it nor its opposite holds. One
    with several values is true if it is for any of them, and its opposite if it is for none.

    Raises:
        InputError: if a value is of another kind than its column, or the column is a vector.

    Example:
        >>> import numpy as np
        >>> from seqrec.data.columns import Column
        >>> year = Column("numeric", np.array([np.nan, 1950, 1999, np.nan], np.float32))
        >>> rows_where(parse("not year < 1990"), {"year": year}).tolist()
        [False, False, True, False]
    """
    found = _truth(condition, columns).true
    found[0] = False
    return found


def unknown_values(condition: Condition, columns: Mapping[str, Column]) -> str:
    """Return a hint with a value that a column does not have, and with one like it; empty if it has all of them."""
    for each in _comparisons(condition):
        vocabulary = columns[each.column].vocabulary
        if vocabulary is None or each.operator not in ("=", "has", "in"):
            continue
        for value, code in zip(each.values, _codes(vocabulary, each), strict=True):
            if not code:
                known = vocabulary.external_ids(np.arange(1, min(len(vocabulary), HINTED_VALUES) + 1))
                return f"; {each.column} is never {value!r}{did_you_mean(str(value), map(str, known))}"
    return ""


def _comparisons(condition: Condition) -> Iterator[Comparison]:
    if isinstance(condition, Comparison):
        yield condition
        return
    for part in (condition.part,) if isinstance(condition, Not) else condition.parts:
        yield from _comparisons(part)


class _Parser:
    """Reads a condition from left to right; each method reads one kind of part, `depth` levels deep."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._comparisons = 0
        self.next = next(self._tokens)

    def either(self, depth: int) -> Condition:
        return self._joined("or", depth)

    def _joined(self, word: str, depth: int) -> Condition:
        def part() -> Condition:
            return self._joined("and", depth) if word == "or" else self._not(depth)

        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _not(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise InputError(
                f"it has brackets or 'not' more than {MAX_DEPTH} levels deep, at character {self.next.place}"
            )
        if self._take("not"):
            return Not(self._not(depth + 1))
        if self._take("("):
            found = self.either(depth + 1)
            self._expect(")")
            return found
        return self._comparison()

    def _comparison(self) -> Condition:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise InputError(f"it has more than {MAX_COMPARISONS} comparisons")
        if self.next.kind != "column":
            self.refuse("a column")
        column = self._advance().value
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return _maybe_not(negated, Comparison(column, "is null"))
        negated = self._take("not")
        if negated or self.next.value == "in":
            self._expect("in")
            self._expect("(")
            values = [self._value()]
            while self._take(","):
                values.append(self._value())
            self._expect(")")
            return _maybe_not(negated, Comparison(column, "in", tuple(values)))
        if self.next.kind != "word" or self.next.value not in (*_SIGNS, "has"):
            self.refuse("a comparison: =, !=, <, <=, >, >=, has, in or is null")
        operator = self._advance().value
        negated = operator in ("!=", "<>")
        return _maybe_not(negated, Comparison(column, "=" if negated else operator, (self._value(),)))

    def _value(self) -> Value:
        if self.next.kind == "column":
            self.refuse(f"a value, such as '{self.next.value}' in quotes")
        if self.next.kind != "value":
            self.refuse("a value: 'text' in quotes, or a number")
        value: Value = self._advance().value
        return value

    def _take(self, word: str) -> bool:
        found = self.next.kind == "word" and self.next.value == word
        if found:
            self._advance()
        return found

    def _expect(self, word: str) -> None:
        if not self._take(word):
            self.refuse(repr(word))

    def _advance(self) -> _Token:
        token = self.next
        self.next = next(self._tokens)
        return token

    def refuse(self, expected: str) -> NoReturn:
        """Raise an `InputError` with what is expected at the next token, and what is there."""
        found = "it ends" if self.next.kind == "end" else f"it has {self.next.text:.40}"
        raise InputError(f"at character {self.next.place} {found}, where it needs {expected}")


def _maybe_not(negated: bool, condition: Condition) -> Condition:
    return Not(condition) if negated else condition


def _tokens(text: str) -> Iterator[_Token]:
    """Yield columns, values and words with their places, and an end."""
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            raise InputError(f"at character {place + 1} it has {text[place : place + 20]!r}, which no condition has")
        kind, word = found.lastgroup, found[0]
        place = found.end()
        yield _Token(*_meaning(kind, word), found.start() + 1, word)
    while True:
        yield _Token("end", None, len(text) + 1, "")


def _meaning(kind: str | None, word: str) -> tuple[str, Any]:
    """Return what a token is, and its value."""
    if kind == "text":
        # The values of a store are in this form too; see `seqrec.data.ids`.
        return "value", unicodedata.normalize("NFC", word[1:-1].replace("''", "'"))
    if kind == "quoted":
        return "column", word[1:-1].replace('""', '"')
    if kind == "number":
        number = float(word)
        if not math.isfinite(number):
            raise InputError(f"the number {word:.40} is too large")
        return "value", int(word) if re.fullmatch(r"[-+]?[0-9]{1,18}", word) else number
    lower = word.lower()
    if lower in ("true", "false"):
        return "value", int(lower == "true")
    return ("word", lower) if kind == "sign" or lower in _RESERVED else ("column", word)


def _truth(condition: Condition, columns: Mapping[str, Column]) -> Truth:
    if isinstance(condition, Comparison):
        return _compared(condition, columns[condition.column])
    if isinstance(condition, Not):
        true, false = _truth(condition.part, columns)
        return Truth(false, true)
    found = _truth(condition.parts[0], columns)
    both = condition.word == "and"
    for part in condition.parts[1:]:
        other = _truth(part, columns)
        (np.logical_and if both else np.logical_or)(found.true, other.true, out=found.true)
        (np.logical_or if both else np.logical_and)(found.false, other.false, out=found.false)
    return found


def _compared(comparison: Comparison, column: Column) -> Truth:
    name, operator, _ = comparison
    if column.kind == VECTOR:
        raise InputError(f"column {name!r} has vectors, which cannot be compared")
    if operator == "has" and column.kind != CATEGORIES:
        raise InputError(f"column {name!r} has one value a row: write {name} = .., as has is for several values")
    stored = np.asarray(column.values)
    missing: Mask
    if column.kind == NUMERIC:
        missing = np.isnan(stored)
        true = np.zeros_like(missing) if operator == "is null" else _numbers(comparison, stored)
    elif operator == "is null":
        missing = stored == 0 if column.offsets is None else np.diff(np.asarray(column.offsets)) == 0
        true = missing
    else:
        holds = _holds(comparison, column)
        if column.offsets is None:
            missing, true = stored == 0, holds[stored]
        else:
            offsets = np.asarray(column.offsets)
            missing, true = np.diff(offsets) == 0, np.zeros(len(offsets) - 1, bool)
            true[np.searchsorted(offsets, np.flatnonzero(holds[stored]), side="right") - 1] = True
    if operator == "is null":
        return Truth(missing.copy(), ~missing)
    return Truth(true, ~(true | missing))


def _numbers(comparison: Comparison, stored: NDArray[Any]) -> Mask:
    """Return whether a comparison with numbers holds (R,); not for NaN. They are rounded as the store's are."""
    name, operator, values = comparison
    for value in values:
        if isinstance(value, str):
            raise InputError(f"column {name!r} has numbers: write {value!r} as a number, without quotes")
    with np.errstate(over="ignore"):
        wanted = np.array(values, np.float64).astype(stored.dtype)
    if operator in ("=", "in"):
        return np.isin(stored, wanted)
    compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}[operator]
    found: Mask = compare(stored, wanted[0])
    return found


def _holds(comparison: Comparison, column: Column) -> Mask:
    """Return whether a comparison holds for each code of a column; not for code 0."""
    vocabulary, operator = column.vocabulary, comparison.operator
    assert vocabulary is not None
    holds, codes = np.zeros(len(vocabulary) + 1, bool), _codes(vocabulary, comparison)
    if operator in ("=", "has", "in"):
        holds[codes] = True
    else:
        # Codes are in the order of the values.
        every = range(1, len(vocabulary) + 1)
        side = bisect_left if operator in ("<", ">=") else bisect_right
        bound = 1 + side(every, comparison.values[0], key=lambda code: vocabulary.external_ids([code])[0])
        holds[slice(None, bound) if operator in ("<", "<=") else slice(bound, None)] = True
    holds[0] = False
    return holds


def _codes(vocabulary: Vocabulary, comparison: Comparison) -> NDArray[np.int64]:
    """Return the code of each value of a comparison, 0 if the column never has it."""
    name, _, values = comparison
    for value in values:
        if isinstance(value, str) == vocabulary.is_integer:
            kind, fix = ("whole numbers", "without quotes") if vocabulary.is_integer else ("text", "in quotes")
            raise InputError(f"column {name!r} has {kind}: write {value!r} {fix}")
    # An integer column has no number with a fraction, so it is looked up as one that is never there.
    whole = [value if isinstance(value, str) else int(value) if value == int(value) else -(2**63) for value in values]
    return vocabulary.lookup(whole)
