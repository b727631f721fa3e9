"""Logs read one row after another with Python's own means: slow, and what the sources are checked against."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
DATE_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d")
MILLION = 1_000_000
WHOLE = re.compile(r"[+-]?[0-9]{1,18}\.0*")
EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")
# What a table's ids may have around them, and text that is no id.
BLANK = " \t\r\n\v\f\u00a0\u2007\u202f\ufeff\u200b"
MISSING = {"NULL", "Null", "null", "\\N", "None", "none", "nan", "NaN", "NAN", "-nan", "-NaN", "NaT"}
MISSING |= {"NA", "N/A", "n/a", "<NA>", "<na>", "#N/A", "#NA", "#N/A N/A"}
# White space as Unicode has it, which is not all that Python's `\s` and `strip` take for it.
SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
# Fields beyond the header's that a table looks at.
NUM_EXTRA = 8


@dataclass
class Reading:
    """What a log holds: `events` are (user, item, time or None) in log order."""

    events: list[tuple[Any, Any, int | None]]
    num_malformed: int
    is_table: bool = True

    def is_refused(self, max_bad_share: float) -> bool:
        rows = len(self.events) + self.num_malformed
        return self.num_malformed > max_bad_share * rows or not self.events or any(map(self._is_unclear, (0, 1)))

    def _is_unclear(self, column: int) -> bool:
        """Whether one id may be written in two ways, or without its last digits."""
        ids = {event[column] for event in self.events}
        if self.is_table and all(is_whole(text) or EXPONENT.fullmatch(text) for text in ids):
            return not all(map(is_whole, ids))
        return any(WHOLE.fullmatch(text) and text.rstrip("0").rstrip(".") in ids for text in ids)

    def histories(self) -> dict[Any, list[Any]]:
        """Each user's items, with ids as integers where the whole log's are."""
        is_number = is_whole if self.is_table else is_integer
        integers = [all(is_number(event[k]) for event in self.events) for k in (0, 1)]
        found: dict[Any, list[tuple[int | None, Any]]] = {}
        for user, item, time in self.events:
            pair = zip((user, item), integers, strict=True)
            user, item = (int(value.partition(".")[0]) if whole else value for value, whole in pair)
            found.setdefault(user, []).append((time, item))
        return {
            user: [item for _, item in sorted(events, key=lambda event: event[0] or 0)]
            for user, events in found.items()
        }


def fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def is_integer(text: str) -> bool:
    return INTEGER.fullmatch(text) is not None and fits(int(text)) and str(int(text)) == text


def is_whole(text: str) -> bool:
    return is_integer(text) or WHOLE.fullmatch(text) is not None


def cleaned(text: str) -> str:
    """The id in a field of a table; empty if it has none."""
    text = text.strip(BLANK)
    return "" if text in MISSING else text


def records(data: bytes, separator: str, quote: str | None) -> list[list[str]]:
    text = data.decode(errors="surrogateescape").removeprefix("\ufeff")
    # A lone carriage return ends a line to the csv module; to the sources it is dropped at the end of a field that
    # is not quoted (no test has one in a quoted field before a separator), and a character like others elsewhere.
    text = re.sub(f"\r(?={re.escape(separator)})", "", text)
    text = re.sub("\r(?!\n|\\Z)", "\ue000", text)
    lines = [line + "\n" for line in text.split("\n")]
    quoting = csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL
    rows = csv.reader(lines, delimiter=separator, quotechar=quote or '"', quoting=quoting)
    return [[value.replace("\ue000", "\r") for value in row] for row in rows]


def read_table(
    data: bytes,
    columns: tuple[str, str, str | None],
    *,
    separator: str = ",",
    quote: str | None = '"',
    header: list[str] | None = None,
) -> Reading | None:
    """The log in a CSV file; None where it has not these columns, or no times."""
    rows = [row for row in records(data, separator, quote) if any(row)]
    if header is None:
        if not rows:
            return None
        header = rows.pop(0)
    if not {name for name in columns if name is not None} <= set(header):
        return None
    return read_rows(rows, header, columns)


def read_rows(rows: list[list[str]], header: list[str], columns: tuple[str, str, str | None]) -> Reading | None:
    padded = [row + [""] * (len(header) - len(row)) for row in rows]
    places = [header.index(name) for name in columns if name is not None]
    chosen = [[*map(cleaned, (row[k] for k in places[:2])), *(row[k] for k in places[2:])] for row in padded]
    is_long = [any(row[len(header) : len(header) + NUM_EXTRA]) for row in padded]
    if columns[2] is None:
        fit = [bool(user and item) and not long for (user, item), long in zip(chosen, is_long, strict=True)]
        events = [(row[0], row[1], None) for row, good in zip(chosen, fit, strict=True) if good]
        return Reading(events, len(rows) - len(events))
    times = parsed_times([row[2] for row in chosen])
    if times is None:
        return None

    def read(unit: int) -> list[tuple[str, str, int | None]]:
        return [
            (user, item, time[unit])
            for (user, item, _), time, long in zip(chosen, times, is_long, strict=True)
            if user and item and not long and time[unit] is not None
        ]

    has_fraction = any(
        user and item and not long and time[0] is not None and time[2]
        for (user, item, _), time, long in zip(chosen, times, is_long, strict=True)
    )
    events = read(1 if has_fraction else 0)
    return Reading(events, len(rows) - len(events))


def parsed_times(texts: list[str]) -> list[tuple[int | None, int | None, bool]] | None:
    """Of each time, the whole one, its millionths, and whether it is a fraction; None where none can be read."""
    sample = [text for text in texts if text][:1000]
    if any(text != text.strip(BLANK) for text in sample):
        texts, sample = ([text.strip(BLANK) for text in some] for some in (texts, sample))
    forms = {None: sum(number_of(text) is not None for text in sample)}
    forms |= {form: sum(date_of(text, form) is not None for text in sample) for form in DATE_FORMATS}
    best = max(forms, key=lambda form: forms[form])
    if sample and forms[best] == 0:
        return None
    if best is None:
        return [number_time(text) for text in texts]
    dates = [date_of(text, best) for text in texts]
    return [(None, None, False) if date is None else (date, date * MILLION, False) for date in dates]


def date_of(text: str, form: str) -> int | None:
    try:
        return int(datetime.strptime(text, form).replace(tzinfo=timezone.utc).timestamp())
    except ValueError:
        return None


def number_of(text: str) -> float | None:
    words = r"[+-]?(nan|inf|infinity)"
    if NUMBER.fullmatch(text) or re.fullmatch(words, text, re.IGNORECASE):
        return float(text)
    return None


def number_time(text: str) -> tuple[int | None, int | None, bool]:
    if INTEGER.fullmatch(text) and fits(int(text)):
        whole, rest = int(text), 0.0
    else:
        number = number_of(text)
        if number is None or number != number or not abs(number) < 2**63:
            return None, None, False
        if "e" in text.lower() and abs(number) >= 1e8:
            return None, None, False  # a spreadsheet cut its digits
        whole = round(number)
        rest = number - whole
    is_fraction = abs(rest) >= 0.5e-6
    far = abs(whole) > (2**63 - 1) // MILLION - 1
    millionths = None if far else whole * MILLION + (round(rest * MILLION) if is_fraction else 0)
    return (None if is_fraction and far else whole), millionths, is_fraction


def read_lines(data: bytes, is_event: re.Pattern[str], places: Iterable[int]) -> Reading:
    """The log in lines that match a pattern, whose groups at `places` are user, item and perhaps time."""
    text = data.decode(errors="surrogateescape")
    lines = [line.removeprefix("\ufeff").strip(SPACE) for line in text.split("\n")]
    found = [is_event.fullmatch(line) for line in lines if line]
    events = [tuple(match.group(place) for place in places) for match in found if match]
    return Reading(
        [(user, item, int(*time) if time else None) for user, item, *time in events],
        len(found) - len(events),
        is_table=False,
    )
