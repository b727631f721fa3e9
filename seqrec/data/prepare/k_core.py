"""Filters by counts, over events on disk: k-core and minimum history. U users, N items."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from seqrec.data.prepare.ordering import Block, BlockSpool
from seqrec.data.prepare.partitions import take
from seqrec.data.prepare.spool import Workspace


@dataclass(frozen=True)
class Core:
    """The users and items that stay. An event stays if both do.

    Attributes:
        users: (U,) True for the user rows that stay.
        items: (N + 1,) True for the internal item ids that stay; padding, 0, never does.
        num_events: Number of events that stay.
        catalogue: (N + 1,) True for the items that the store numbers: `items`, and those that are listed anyway.
    """

    users: NDArray[np.bool_]
    items: NDArray[np.bool_]
    num_events: int
    catalogue: NDArray[np.bool_]

    @classmethod
    def of_all(cls, num_users: int, num_items: int, num_events: int) -> Core:
        """Return a core that keeps everything."""
        items = np.ones(num_items + 1, np.bool_)
        items[0] = False
        return cls(np.ones(num_users, np.bool_), items, num_events, catalogue=items)


def k_core(
    spooled: BlockSpool, num_users: int, num_items: int, work: Workspace, *, listed: NDArray[np.bool_] | None = None
) -> Core:
    """Return the users and items that k-core and minimum history keep; `listed` are as in `Numbering`.

    Memory: 10 bytes a user and item. Each pass reads all item ids, or the remaining ones once they are few.
    """
    everything, filters = Core.of_all(num_users, num_items, spooled.num_events), work.filters
    users, items = everything.users, everything.items
    events = _Shrinking(spooled, work)
    for number in count(1):
        user_counts, item_counts = events.count(users, items, f"k-core, pass {number}")
        few_users = users & (user_counts < filters.min_user_events)
        few_items = items & (item_counts < filters.min_item_events)
        users &= ~few_users & (user_counts > 0)
        items &= ~few_items & (item_counts > 0)
        if not user_counts[few_users].any() and not item_counts[few_items].any():
            break
    short = users & (user_counts < filters.min_history)
    if short.any():
        users &= ~short
        user_counts, item_counts = events.count(users, items, "minimum history")
        items &= item_counts > 0
    events.delete()
    return Core(users, items, int(user_counts.sum()), items if listed is None else items | listed)


def core_blocks(blocks: Iterable[Block], core: Core) -> Iterator[Block]:
    """Yield the events that the core keeps, with users and the catalogue numbered anew without gaps."""
    new_ids = np.cumsum(core.catalogue, dtype=np.min_scalar_type(np.count_nonzero(core.catalogue)))
    first = 0
    for block in blocks:
        kept = _kept(block, core.users, core.items)
        lengths = kept.lengths[core.users[block.first : block.first + len(block.lengths)]]
        yield Block(first, lengths, {**kept.events, "item_ids": new_ids[kept.events["item_ids"]]})
        first += len(lengths)


def _kept(block: Block, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> Block:
    # The events of a block that stay. The users are the same, some of them with no event.
    rows = block.user_rows()
    kept = users[rows] & items[block.events["item_ids"]]
    lengths = np.bincount(rows[kept] - block.first, minlength=len(block.lengths))
    return Block(block.first, lengths, take(block.events, kept))


class _Shrinking:
    # Item ids by user. When half of the events are gone, counting the others also copies them.

    def __init__(self, spooled: BlockSpool, work: Workspace) -> None:
        self._current = self._original = spooled
        self._work = work
        self._copies = 0
        self._alive = spooled.num_events

    def count(
        self, users: NDArray[np.bool_], items: NDArray[np.bool_], name: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        # Events of each user and item, among the events of `users` and `items`, as one stage of progress.
        user_counts, item_counts = np.zeros(len(users), np.int64), np.zeros(len(items), np.int64)
        copy, total = None, self._current.num_events
        if 2 * self._alive < total:
            self._copies += 1
            copy = BlockSpool(self._work.folder / f"core_{self._copies}")
        blocks = self._current.blocks(items_only=True)
        for block in self._work.progress.track(name, blocks, total=total):
            kept = _kept(block, users, items)
            user_counts[block.first : block.first + len(block.lengths)] += kept.lengths
            np.add.at(item_counts, kept.events["item_ids"], 1)
            if copy is not None:
                copy.append(kept)
        if copy is not None:
            self.delete()
            self._current = copy
        self._alive = int(user_counts.sum())
        return user_counts, item_counts

    def delete(self) -> None:
        if self._current is not self._original:
            shutil.rmtree(self._current.folder)
