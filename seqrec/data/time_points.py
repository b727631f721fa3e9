"""Points in a log's time, found by reading the memory-mapped times in pieces. U users, E events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

# Events read at a time: 128 MiB of times.
PIECE_EVENTS = 1 << 24
# Parts that a range of times is divided into at each reading.
PARTS = 1 << 16


def time_quantile(times: NDArray[np.integer[Any]], quantile: float) -> int:
    """Earliest time such that at least the share `quantile` of all events lie before it or at it.

    Counts in ever narrower ranges of time, so that memory does not grow with the events: three or four readings.

    Args:
        times: (E,) integers, in any order, E >= 1.
        quantile: Above 0 and below 1.
    """
    wanted = int(np.ceil(quantile * len(times)))
    low = min(int(piece.min()) for piece in _pieces(times))
    high = max(int(piece.max()) for piece in _pieces(times))
    before = 0
    while low < high:
        # Equal parts of whole time units; the last one may be shorter.
        step = (high - low) // PARTS + 1
        counts = np.zeros(PARTS + 1, dtype=np.int64)
        for piece in _pieces(times):
            inside = piece[(piece >= low) & (piece <= high)].astype(np.int64)
            counts += np.bincount((inside - low) // step, minlength=len(counts))
        reached = before + np.cumsum(counts)
        part = int(np.searchsorted(reached, wanted))
        before = int(reached[part] - counts[part])
        low, high = low + part * step, min(low + (part + 1) * step - 1, high)
    return low


def events_before(times: NDArray[np.integer[Any]], offsets: Int64, time: float) -> Int64:
    """(U,) how many of each user's events lie before a time.

    Args:
        times: (E,) each user's events in order of time, one user behind the other.
        offsets: (U + 1,) where each user's events start.
        time: In the unit of `times`.
    """
    counts = np.zeros(len(offsets) - 1, dtype=np.int64)
    first = 0
    while first < len(counts):
        # As many users as fit into a piece, but one at least.
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + PIECE_EVENTS, side="right")) - 1)
        passed = np.zeros(int(offsets[end] - offsets[first]) + 1, dtype=np.int64)
        np.cumsum(times[offsets[first] : offsets[end]] < time, out=passed[1:])
        counts[first:end] = np.diff(passed[offsets[first : end + 1] - offsets[first]])
        first = end
    return counts


def _pieces(times: NDArray[np.integer[Any]]) -> Iterator[NDArray[np.integer[Any]]]:
    for begin in range(0, len(times), PIECE_EVENTS):
        yield times[begin : begin + PIECE_EVENTS]
