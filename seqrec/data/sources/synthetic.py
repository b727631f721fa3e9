"""Generated logs with a known answer: skewed, repetitive, in sessions, with a signal some events back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.sources.source import Source
from seqrec.errors import InputError, check_at_least

if TYPE_CHECKING:
    import polars as pl

MIN_EVENTS = 5
REPEAT_WINDOW = 10
_LENGTH_SIGMA = 0.6
_MAX_LENGTH_RATIO = 20
_EVENTS_IN_BLOCK = 2_000_000
_START = 1_600_000_000
_YEAR = 365 * 86_400

Int64Array = NDArray[np.int64]


class Synthetic(Source):
    """A generated log in which the event `lag` places back predicts the next one.

    Users are 0..num_users - 1, items 0..num_items - 1, times seconds. This is how a user's history is drawn:

    - its length is log-normal with sigma 0.6 and mean `mean_events`, rounded, cut to 5..20 * mean_events;
    - event t is, with probability `signal` and if t >= lag, `successor[item of event t - lag]`;
    - with probability `repeat` and if t >= 1, the item of one of the last 10 events, each as likely;
    - otherwise a fresh draw: the k-th most popular item has probability proportional to
      k ** -popularity_exponent;
    - the event opens a new session with probability 1 / session_events, after 6 hours plus an exponential
      time with a mean of one day; within a session the gap is 1 second plus an exponential time with a mean
      of 3 minutes. Users start at a uniform time within one year.

    `successor` and the order of popularity are random permutations of the items. They follow from `seed`, like all
    else. The best possible first guess is `successor[item of event t - lag]`: it is right with probability `signal`,
    plus a little by chance. A model that sees fewer than `lag` events cannot make it, nor can popularity.

    Args:
        num_users: Number of users.
        num_items: Size of the catalogue. In a small log some items may not occur.
        mean_events: Mean number of events a user.
        lag: Number of events back to the signal; 1 is the newest event of the history.
        signal: Probability that an event follows the signal.
        repeat: Probability that an event repeats a recent item; signal + repeat <= 1.
        popularity_exponent: Skew of the fresh draws; 0 makes all items equally likely, 1 is Zipf's law.
        session_events: Mean number of events a session.
        seed: Seed of everything; the same arguments make the same log.

    Raises:
        InputError: if an argument is out of range.

    Example:
        >>> from seqrec import Synthetic
        >>> source = Synthetic(num_users=2, num_items=50, mean_events=10, lag=1, signal=1.0, repeat=0.0)
        >>> items = source.scan().collect().filter(user_id=0)["item_id"].to_list()
        >>> int(source.successor[items[0]]) == items[1]
        True
    """

    name = "synthetic"
    licence = "none, because it is generated"

    def __init__(
        self,
        num_users: int = 1000,
        num_items: int = 2000,
        mean_events: float = 200,
        lag: int = 4,
        signal: float = 0.5,
        repeat: float = 0.2,
        popularity_exponent: float = 1.0,
        session_events: float = 20,
        seed: int = 0,
    ) -> None:
        check_at_least(1, num_users=num_users, lag=lag, session_events=session_events)
        check_at_least(2, num_items=num_items)
        check_at_least(MIN_EVENTS, mean_events=mean_events)
        check_at_least(0, signal=signal, repeat=repeat, popularity_exponent=popularity_exponent, seed=seed)
        if signal + repeat > 1:
            raise InputError(f"signal={signal} and repeat={repeat} are probabilities; their sum must be at most 1")
        self.num_users = num_users
        self.num_items = num_items
        self.mean_events = mean_events
        self.lag = lag
        self.signal = signal
        self.repeat = repeat
        self.popularity_exponent = popularity_exponent
        self.session_events = session_events
        self.seed = seed

    def files(self) -> list[Path]:
        """Return no files."""
        return []

    @cached_property
    def successor(self) -> Int64Array:
        """The known answer (num_items,): item i, seen `lag` events ago, is followed by `successor[i]`."""
        return np.random.default_rng([self.seed, 0]).permutation(self.num_items)

    @cached_property
    def popularity(self) -> NDArray[np.float64]:
        """Probability of each item in a fresh draw, (num_items,)."""
        weights = np.arange(1, self.num_items + 1, dtype=np.float64) ** -self.popularity_exponent
        shuffled = np.random.default_rng([self.seed, 1]).permutation(weights)
        return np.asarray(shuffled / shuffled.sum())

    def scan(self, progress: Progress | None = None) -> pl.LazyFrame:
        """Return the interaction frame, user after user. Blocks of users are generated when they are collected."""
        import polars as pl
        from polars.io.plugins import register_io_source

        lengths = self._lengths()
        self.num_rows = int(lengths.sum())

        def generate(
            columns: list[str] | None, condition: pl.Expr | None, num_rows: int | None, _: int | None
        ) -> Iterator[pl.DataFrame]:
            for arrays in self._blocks(lengths):
                block = pl.DataFrame(arrays)
                chosen = block if condition is None else block.filter(condition)
                chosen = (chosen if columns is None else chosen.select(columns)).slice(0, num_rows)
                yield chosen
                if num_rows is not None:
                    num_rows -= len(chosen)
                    if num_rows == 0:
                        return

        return register_io_source(generate, schema=dict.fromkeys((USER_ID, ITEM_ID, TIMESTAMP), pl.Int64))

    def _blocks(self, lengths: Int64Array) -> Iterator[dict[str, Int64Array]]:
        users_in_block = max(1, int(_EVENTS_IN_BLOCK / self.mean_events))
        # From 4, because the other draws have seeds 0 to 2.
        for block, first in enumerate(range(0, self.num_users, users_in_block), start=4):
            rng = np.random.default_rng([self.seed, block])
            block_lengths = lengths[first : first + users_in_block]
            users = np.arange(first, first + len(block_lengths))
            yield {
                USER_ID: np.repeat(users, block_lengths),
                ITEM_ID: self._items(rng, block_lengths),
                TIMESTAMP: self._timestamps(rng, block_lengths),
            }

    def _lengths(self) -> Int64Array:
        rng = np.random.default_rng([self.seed, 2])
        mu = np.log(self.mean_events) - _LENGTH_SIGMA**2 / 2
        lengths = np.rint(rng.lognormal(mu, _LENGTH_SIGMA, self.num_users))
        return lengths.clip(MIN_EVENTS, _MAX_LENGTH_RATIO * self.mean_events).astype(np.int64)

    def _items(self, rng: np.random.Generator, lengths: Int64Array) -> Int64Array:
        # An event is fresh, or it repeats or follows the item of an earlier event, its parent. Its item is that of
        # the fresh event at the head of its chain, after one step of `successor` for each signal in the chain.
        # Chains are walked for all events at once, by doubling.
        total = int(lengths.sum())
        position = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kind = rng.random(total)
        follows = (kind < self.signal) & (position >= self.lag)
        repeats = (kind >= self.signal) & (kind < self.signal + self.repeat) & (position >= 1)
        back = 1 + (rng.random(total) * np.minimum(position, REPEAT_WINDOW)).astype(np.int64)
        parent = np.arange(total) - np.where(follows, self.lag, np.where(repeats, back, 0))
        steps = follows.astype(np.int64)
        while True:
            grandparent = parent[parent]
            if np.array_equal(grandparent, parent):
                break
            steps += steps[parent]
            parent = grandparent
        cumulative = np.cumsum(self.popularity)
        fresh = np.searchsorted(cumulative, rng.random(total) * cumulative[-1], side="right")
        return self._advance(np.minimum(fresh, self.num_items - 1)[parent], steps)

    def _advance(self, items: Int64Array, steps: Int64Array) -> Int64Array:
        # `successor` applied `steps` times, by the binary digits of `steps`.
        power = self.successor
        while steps.any():
            items = np.where(steps & 1, power[items], items)
            steps = steps >> 1
            power = power[power]
        return items

    def _timestamps(self, rng: np.random.Generator, lengths: Int64Array) -> Int64Array:
        total = int(lengths.sum())
        opens = rng.random(total) < 1 / self.session_events
        gaps = np.where(opens, 6 * 3600 + rng.exponential(86_400, total), 1 + rng.exponential(180, total))
        elapsed = np.cumsum(gaps.astype(np.int64))
        firsts = np.cumsum(lengths) - lengths
        start = _START + rng.integers(0, _YEAR, len(lengths))
        timestamps: Int64Array = elapsed + np.repeat(start - elapsed[firsts], lengths)
        return timestamps
