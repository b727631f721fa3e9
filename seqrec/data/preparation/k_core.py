"""The filters by counts, over events on disk: k-core, and a minimum history. U users, N items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqrec.data.filters import Filters
from seqrec.data.preparation.ordering import Block, BlockSpool
from seqrec.data.progress import Progress, Stage


@dataclass(frozen=True)
class Core:
    """Which users and items stay. An event stays where both do.

    Attributes:
        users: (U,) by user row.
        items: (N + 1,) by internal item id; padding, 0, never stays.
        num_events: Events that stay.
    """

    users: NDArray[np.bool_]
    items: NDArray[np.bool_]
    num_events: int

    @classmethod
    def of_all(cls, num_users: int, num_items: int, num_events: int) -> Core:
        """Return a core that keeps everything."""
        items = np.ones(num_items + 1, np.bool_)
        items[0] = False
        return cls(np.ones(num_users, np.bool_), items, num_events)


def k_core(
    spooled: BlockSpool, num_users: int, num_items: int, filters: Filters, folder: Path, progress: Progress
) -> Core:
    """Return what k-core and minimum history keep.

    Memory: 10 bytes a user and item. Each pass reads all item ids, or those that are left once they are few.

    Args:
        spooled: The events.
        num_users: Users, some of which may have no event.
        num_items: Items, likewise.
        filters: The thresholds.
        folder: For copies of the events that are left.
        progress: Told passes.
    """
    users, items = np.ones(num_users, np.bool_), np.ones(num_items + 1, np.bool_)
    items[0] = False
    events = _Shrinking(spooled, folder)
    number = 0
    while True:
        number += 1
        with progress.stage(f"k-core, pass {number}", events.num_events) as stage:
            user_counts, item_counts = _count(events, users, items, stage)
        before = int(user_counts.sum())
        few_users = users & (user_counts < filters.min_user_events)
        few_items = items & (item_counts < filters.min_item_events)
        users &= ~few_users & (user_counts > 0)
        items &= ~few_items & (item_counts > 0)
        if not user_counts[few_users].any() and not item_counts[few_items].any():
            break
    short = users & (user_counts < filters.min_history)
    if short.any():
        users &= ~short
        with progress.stage("minimum history", events.num_events) as stage:
            user_counts, item_counts = _count(events, users, items, stage)
        items &= item_counts > 0
        before = int(user_counts.sum())
    events.delete()
    return Core(users, items, before)


def core_blocks(spooled: BlockSpool, core: Core, stage: Stage) -> Iterator[Block]:
    """Yield the blocks with what the core keeps alone, users and items numbered anew without gaps.

    Args:
        spooled: The events.
        core: What stays.
        stage: Told rows.
    """
    new_ids = np.cumsum(core.items, dtype=np.min_scalar_type(np.count_nonzero(core.items)))
    first = 0
    for block in spooled.blocks():
        rows = block.user_rows()
        kept = core.users[rows] & core.items[block.events.item_ids]
        stays = core.users[block.first : block.first + len(block.lengths)]
        lengths = np.bincount(rows[kept] - block.first, minlength=len(stays))[stays]
        events = block.events.take(kept)
        events = type(events)(new_ids[events.item_ids], events.timestamps, events.features)
        yield Block(first, lengths, events)
        first += len(lengths)
        stage.advance(len(rows))


class _Shrinking:
    # Item ids by user, copied anew without those that are gone whenever half of them are.

    def __init__(self, spooled: BlockSpool, folder: Path) -> None:
        self._current = self._original = spooled
        self._folder = folder
        self._copies = 0
        self.num_events = spooled.num_events
        self._alive = self.num_events

    def read(
        self, users: NDArray[np.bool_], items: NDArray[np.bool_]
    ) -> Iterator[tuple[Block, NDArray[np.bool_]]]:
        # Blocks, and which of their events are of `users` and `items`.
        copy = None
        if 2 * self._alive < self.num_events:
            self._copies += 1
            copy = BlockSpool(self._folder, f"core_{self._copies}")
        alive = 0
        for block in self._current.blocks(items_only=True):
            rows = block.user_rows()
            kept = users[rows] & items[block.events.item_ids]
            alive += int(np.count_nonzero(kept))
            if copy is not None:
                lengths = np.bincount(rows[kept] - block.first, minlength=len(block.lengths))
                copy.append(Block(block.first, lengths, block.events.take(kept)))
            yield block, kept
        if copy is not None:
            self.delete()
            self._current, self.num_events = copy, alive
        self._alive = alive

    def delete(self) -> None:
        if self._current is not self._original:
            self._current.delete()


def _count(
    events: _Shrinking, users: NDArray[np.bool_], items: NDArray[np.bool_], stage: Stage
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Events of each user and item, of those whose user and item both stay.
    user_counts, item_counts = np.zeros(len(users), np.int64), np.zeros(len(items), np.int64)
    for block, kept in events.read(users, items):
        local = block.user_rows()[kept] - block.first
        span = slice(block.first, block.first + len(block.lengths))
        user_counts[span] += np.bincount(local, minlength=len(block.lengths))
        np.add.at(item_counts, block.events.item_ids[kept], 1)
        stage.advance(len(kept))
    return user_counts, item_counts
