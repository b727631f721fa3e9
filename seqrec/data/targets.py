"""Targets: the events of a log that models are trained for and judged by. E events, W words of 64 events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class LogTargets:
    """The events of a log that meet a condition, as bits: 1 GiB for four billion events, with their counts.

    Places are indexes into the store's events. All others are context: they are in histories, and models read them.

    Attributes:
        condition: The condition, as it was given.
        words: (W,) events 64 w, 64 w + 1, .., as bits from the lowest; the last word is 0.
        before: (W,) number of targets in earlier words.

    Example:
        >>> import numpy as np
        >>> targets = LogTargets.from_flags("event_type = 'buy'", [np.array([True, False, False, True])])
        >>> targets.at(np.array([0, 1, 3])).tolist(), targets.last(np.array([1]), np.array([3])).tolist()
        ([True, False, True], [0])
    """

    condition: str
    words: Words
    before: Int64

    @staticmethod
    def from_flags(condition: str, pieces: Iterable[NDArray[np.bool_]]) -> LogTargets:
        """Return the targets of a log, whose events come in pieces; all pieces but the last have a multiple of 64."""
        packed = [np.packbits(piece, bitorder="little") for piece in pieces]
        length = sum(map(len, packed))
        # One word more, because a range of places may end with the log.
        packed.append(np.zeros(-length % 8 + 8, np.uint8))
        words = np.concatenate(packed).view("<u8")
        counts = _ones(words)
        return LogTargets(condition, words, np.cumsum(counts) - counts)

    def flags(self, count: int) -> NDArray[np.bool_]:
        """Return (count,) which of the first events of the log are targets."""
        return np.unpackbits(self.words.view(np.uint8), count=count, bitorder="little").view(np.bool_)

    @property
    def total(self) -> int:
        """Number of targets of the whole log."""
        return int(self.before[-1])

    def at(self, places: Int64) -> NDArray[np.bool_]:
        """Return which of the events at `places`, an array of any shape, 0..E, are targets."""
        bits = self.words[places >> 6] >> (places & 63).astype(np.uint64)
        flags: NDArray[np.bool_] = (bits & np.uint64(1)).astype(np.bool_)
        return flags

    def rank(self, places: Int64) -> Int64:
        """Return (N,) the number of targets before each of the `places` (N,), 0..E."""
        below = (np.uint64(1) << (places & 63).astype(np.uint64)) - np.uint64(1)
        ranks: Int64 = self.before[places >> 6] + _ones(self.words[places >> 6] & below)
        return ranks

    def select(self, ranks: Int64) -> Int64:
        """Return (N,) the places of the targets with `ranks` (N,) targets before them, each below `total`."""
        word = np.searchsorted(self.before, ranks, side="right") - 1
        bits, left = self.words[word], ranks - self.before[word]
        places: Int64 = word * 64
        for width in (32, 16, 8, 4, 2, 1):
            # Either half of the remaining bits contains it.
            low = _ones(bits & np.uint64((1 << width) - 1))
            upper = left >= low
            left -= np.where(upper, low, 0)
            bits = np.where(upper, bits >> np.uint64(width), bits)
            places += np.where(upper, width, 0)
        return places

    def count(self, starts: Int64, stops: Int64) -> Int64:
        """Return (N,) the number of targets in [starts, stops); 0 if a range ends before it starts."""
        counts: Int64 = np.maximum(self.rank(stops) - self.rank(starts), 0)
        return counts

    def last(self, starts: Int64, stops: Int64) -> Int64:
        """Return (N,) the place of the last target in [starts, stops), `starts - 1` if there is none."""
        ranks = self.rank(stops)
        there = ranks > self.rank(starts)
        places: Int64 = (starts - 1).astype(np.int64)
        places[there] = self.select(ranks[there] - 1)
        return places

    def summary(self, num_events: int) -> str:
        """Return how many events of the log are targets, in a line."""
        return f"targets: {self.total:,} of {num_events:,} events ({self.condition})"


def _ones(words: Words) -> Int64:
    """Return the number of ones in each word (N,)."""
    # Sums of 2, 4 and 8 bits within each word, then of its bytes by a product, which wraps; `numpy.bitwise_count`
    # needs NumPy 2.
    pairs = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> np.uint64(2)) & np.uint64(0x3333333333333333))
    eights = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    counts: Int64 = ((eights * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
    return counts
