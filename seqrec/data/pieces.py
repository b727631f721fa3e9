"""Arrays of a log that are read in pieces, so that memory does not grow with them. U users, E events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

# Events to read at a time, which bounds the memory: 128 MiB of times.
PIECE_EVENTS = 1 << 24
# Parts of a range of times in the search for a quantile.
PARTS = 1 << 16


def time_quantile(times: NDArray[np.integer[Any]], quantile: float) -> int:
    """Return the earliest time with at least the share `quantile`, above 0 and below 1, of all events before it or at
    it.

    `times` (E,) are integers in any order, E >= 1.
    """
    return nth_smallest(lambda: pieces_of(times), int(np.ceil(quantile * len(times))))


def first_at_least(values_at: Callable[[Int64], NDArray[Any]], keys: NDArray[Any], begins: Int64, ends: Int64) -> Int64:
    """Return for each key (N,) the first place in [begins, ends) (N,) with at least its value; `ends` if none has it.

    All are found at once, by bisection. `values_at` returns the values at some places; they rise from begin to end.

    Example:
        >>> import numpy as np
        >>> values = np.array([2, 4, 8, 1, 3])
        >>> first_at_least(values.__getitem__, np.array([5, 4]), np.array([0, 3]), np.array([3, 5])).tolist()
        [2, 5]
    """
    low, high = begins.copy(), ends.copy()
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        before = values_at(middle) < keys[open_]
        low[open_[before]] = middle[before] + 1
        high[open_[~before]] = middle[~before]
    return low


def nth_smallest(pieces: Callable[[], Iterable[NDArray[np.integer[Any]]]], n: int) -> int:
    """Return the n-th smallest number, from 1, of all in some arrays, which `pieces` returns each time that it is
    called.

    It counts numbers in ever narrower ranges, reading them three or four times. Memory does not grow with them.
    """
    low, high = ends_of(pieces())
    before = 0
    while low < high:
        # Equal parts of whole numbers; the last one may be shorter.
        step = (high - low) // PARTS + 1
        counts = np.zeros(PARTS + 1, dtype=np.int64)
        for piece in pieces():
            inside = piece[(piece >= low) & (piece <= high)].astype(np.int64)
            counts += np.bincount((inside - low) // step, minlength=len(counts))
        reached = before + np.cumsum(counts)
        part = int(np.searchsorted(reached, n))
        before = int(reached[part] - counts[part])
        low, high = low + part * step, min(low + (part + 1) * step - 1, high)
    return low


def ends_of(pieces: Iterable[NDArray[np.integer[Any]]]) -> tuple[int, int]:
    """Return the smallest and the largest number of some arrays, at least one number in all."""
    ends = [(int(piece.min()), int(piece.max())) for piece in pieces if len(piece)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def events_before(times: NDArray[np.integer[Any]], offsets: Int64, time: float) -> Int64:
    """Return the number (U,) of each user's events before a time.

    `times` (E,) are in ascending order for each user, user after user; `offsets` (U + 1,) are the starts of users'
    events.
    """
    counts = np.zeros(len(offsets) - 1, dtype=np.int64)
    for first, end in user_blocks(offsets, PIECE_EVENTS):
        passed = np.zeros(int(offsets[end] - offsets[first]) + 1, dtype=np.int64)
        np.cumsum(times[offsets[first] : offsets[end]] < time, out=passed[1:])
        counts[first:end] = np.diff(passed[offsets[first : end + 1] - offsets[first]])
    return counts


def user_blocks(offsets: Int64, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows with at most `size` events each, or one row; `offsets` (U + 1,) are the starts of events."""
    first = 0
    while first < len(offsets) - 1:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1)
        yield first, end
        first = end


def pieces_of(values: NDArray[Any], size: int | None = None) -> Iterator[NDArray[Any]]:
    """Yield an array, most often memory-mapped, in pieces of at most `size` numbers; None is `PIECE_EVENTS`."""
    size = size or PIECE_EVENTS
    for begin in range(0, len(values), size):
        yield np.asarray(values[begin : begin + size])
