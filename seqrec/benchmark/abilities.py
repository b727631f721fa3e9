"""Histories that tell abilities of encoders apart. B rows, L events.

Every history has `lag` events of filler between what must be kept and where it is asked for. All items and all places
are drawn anew for each row, so that nothing can be learned but the ability. With all of the pairs from the start,
attention does not learn recall in 800 updates; with a random number of them in each batch, it has found it after 600.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NUM_ITEMS = 1000
# Pairs that recall keeps, and marked events of selection and of count.
PAIRS, SELECTED, COUNTED = 32, 4, 24
# Items between which count decides, and how often it asks.
CANDIDATES, QUESTIONS = 4, 8
# Items with a fixed meaning: markers of selection and of count, and the question of count.
MARKERS = np.arange(1, SELECTED + 1)
MARKER, QUESTION = SELECTED + 1, SELECTED + 2
_FIRST_FREE = SELECTED + 3

Draw = Callable[[int, int, np.random.Generator], "History"]


class Asked(NamedTuple):
    """A batch of histories.

    Attributes:
        items: (B, L) int64 items 1 to `NUM_ITEMS`.
        targets: (B, L) int64 item that is the answer at an event; 0 where nothing is asked.
        places: (B, L) int64 event that is the answer, the newest of several; -1 where nothing is asked.
    """

    items: Tensor
    targets: Tensor
    places: Tensor


class History(NamedTuple):
    """One row of `Asked`, as arrays (L,)."""

    items: np.ndarray
    targets: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Ability:
    """One ability.

    Attributes:
        asks: What is asked, in a few words.
        row: Draws a history, given `lag`, `kept` and a generator.
        most: Things that must be kept at once in validation and test.
        names_lag: Whether `lag` is a part of the question, so that training cannot mix several.
    """

    asks: str
    row: Draw
    most: int = 1
    names_lag: bool = False

    def draw(self, rows: int, lag: int, generator: np.random.Generator, kept: int | None = None) -> Asked:
        """Draw a batch.

        Args:
            rows: B.
            lag: Events of filler, at least 1. They decide L.
            generator: Source of randomness.
            kept: Things that must be kept at once, from 1 to `most`; None is `most`.

        Example:
            >>> asked = ABILITIES["recall"].draw(2, 100, np.random.default_rng(0))
            >>> asked.items.shape, (asked.targets > 0).sum(1).tolist()
            (torch.Size([2, 228]), [32, 32])
        """
        histories = [self.row(lag, self.most if kept is None else kept, generator) for _ in range(rows)]
        return Asked(*(torch.from_numpy(np.stack(part)) for part in zip(*histories, strict=True)))


def _delay(lag: int, kept: int, generator: np.random.Generator) -> History:
    """Random events, at each of which from the `lag`-th on the one `lag` events back is asked for."""
    items = generator.integers(_FIRST_FREE, NUM_ITEMS + 1, 2 * lag)
    places = np.arange(2 * lag) - lag
    return _asked(items, np.where(places >= 0, places, -1))


def _recall(lag: int, kept: int, generator: np.random.Generator) -> History:
    """Pairs of items in random order, filler, and the pairs in another order: what followed the present item?"""
    drawn = generator.permutation(np.arange(_FIRST_FREE, NUM_ITEMS + 1))
    pairs, others = drawn[: 2 * kept].reshape(kept, 2), drawn[2 * kept :]
    first, second = generator.permutation(kept), generator.permutation(kept)
    items = np.concatenate([pairs[first].ravel(), generator.choice(others, lag), pairs[second].ravel()])
    places = np.full(len(items), -1)
    # Second item of each pair in the first order.
    places[2 * kept + lag :: 2] = 2 * np.argsort(first)[second] + 1
    return _asked(items, places)


def _selection(lag: int, kept: int, generator: np.random.Generator) -> History:
    """Marked items anywhere in the filler, and the markers in random order: what followed this marker?"""
    drawn = generator.integers(_FIRST_FREE, NUM_ITEMS + 1, 2 * kept + lag)
    begins = _apart(kept, len(drawn), generator)
    markers = generator.permutation(MARKERS)[:kept]
    drawn[begins] = markers
    order = generator.permutation(kept)
    questions = np.stack([markers[order], drawn[begins + 1][order]], 1)
    items = np.concatenate([drawn, questions.ravel()])
    places = np.full(len(items), -1)
    places[len(drawn) :: 2] = begins[order] + 1
    return _asked(items, places)


def _count(lag: int, kept: int, generator: np.random.Generator) -> History:
    """Marked items and questions anywhere in the filler: which item has been marked most often so far?"""
    length = 2 * (kept + QUESTIONS) + lag
    items = generator.integers(_FIRST_FREE, NUM_ITEMS + 1, length)
    candidates = generator.choice(np.arange(_FIRST_FREE, NUM_ITEMS + 1), CANDIDATES, replace=False)
    # Filler follows a question.
    begins = _apart(kept + QUESTIONS, length, generator)
    asks = np.zeros(len(begins), dtype=bool)
    asks[generator.choice(np.arange(1, len(begins)), QUESTIONS, replace=False)] = True
    chosen = generator.integers(0, CANDIDATES, len(begins))
    places = np.full(length, -1)
    counts, newest = np.zeros(CANDIDATES, dtype=np.int64), np.zeros(CANDIDATES, dtype=np.int64)
    for begin, asked, choice in zip(begins, asks, chosen, strict=True):
        if not asked:
            items[begin], items[begin + 1] = MARKER, candidates[choice]
            counts[choice] += 1
            newest[choice] = begin + 1
            continue
        items[begin] = QUESTION
        most = np.flatnonzero(counts == counts.max())
        # Of several that are marked as often, none is asked for.
        places[begin] = newest[most[0]] if len(most) == 1 else -1
    return _asked(items, places)


def _apart(count: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` ascending places of two events each, which do not overlap, among `length`."""
    begins = generator.choice(length - count, count, replace=False)
    begins.sort()
    return begins + np.arange(count)


def _asked(items: np.ndarray, places: np.ndarray) -> History:
    return History(items, np.where(places >= 0, items[places], 0), places)


ABILITIES = {
    "delay": Ability("the item so many events back", _delay, names_lag=True),
    "recall": Ability(f"what followed the present item, of {PAIRS} pairs", _recall, PAIRS),
    "selection": Ability(f"what followed a marker, of {SELECTED}", _selection, SELECTED),
    "count": Ability(f"the item that was marked most often, of {CANDIDATES}", _count, COUNTED),
}
