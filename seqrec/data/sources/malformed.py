"""Rows of a log that are no events: how many may be left out, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence

from seqrec.data.sources.base import Malformed
from seqrec.data.sources.tally import PLACES
from seqrec.errors import InputError


def check_max_bad_share(max_bad_share: float) -> float:
    """Return `max_bad_share` if it is a share.

    Raises:
        InputError: it is not in 0..1.
    """
    # A NaN is refused too.
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share={max_bad_share} must be a share of the rows, from 0 to 1")
    return max_bad_share


def leave_out(found: Sequence[Malformed], rows: int, max_bad_share: float) -> tuple[Malformed, ...]:
    """Return the malformed rows to leave out, of the files that have any.

    Args:
        found: Those of each file, files without any included.
        rows: Rows of all files.
        max_bad_share: Largest share of malformed rows among `rows` that may be left out, 0..1.

    Raises:
        InputError: they are more, or there is no other row; the message names the first few.
    """
    found = [malformed for malformed in found if malformed.count]
    count = sum(malformed.count for malformed in found)
    if count > max_bad_share * rows:
        told = "; ".join(_told(malformed) for malformed in _first(found))
        if len(found) > 1:
            told = f"{_share(count, rows)} of {len(found)} files are malformed: {told}"
        raise InputError(
            f"{told}; max_bad_share={max_bad_share} allows {_percent(max_bad_share)}: mend them, or raise it"
        )
    if count == rows:
        raise InputError(f"{_told(found[0])}; no event is left")
    return tuple(found)


def _first(found: Sequence[Malformed]) -> list[Malformed]:
    # As many files as show the first few places.
    shown: list[Malformed] = []
    for malformed in found:
        if sum(len(before.places) for before in shown) < PLACES:
            shown.append(malformed)
    return shown


def _told(malformed: Malformed) -> str:
    verb = "is" if malformed.count == 1 else "are"
    more = "; ..." if malformed.count > len(malformed.places) else ""
    places = "; ".join(malformed.places)
    return f"{malformed.file}: {_share(malformed.count, malformed.rows)} {verb} malformed: {places}{more}"


def _share(count: int, rows: int) -> str:
    return f"{count:,} of {rows:,} row{'s' if rows != 1 else ''} ({_percent(count / rows)})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
