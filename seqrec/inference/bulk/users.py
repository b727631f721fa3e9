"""Users of an event store in parts, in the ids of a model, which may come from another log. U users."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import polars
from numpy.typing import NDArray

from seqrec.catalogue.recommend import item_ids_of
from seqrec.data.event_block import EventBlock
from seqrec.data.segments import plain
from seqrec.data.store import EventStore
from seqrec.data.windows import ranges
from seqrec.errors import InputError
from seqrec.models import Recommender

Int64 = NDArray[np.int64]

# Most events of a part, unless a single user has more. 2^23 with times take about 200 MiB while they are read.
PART_EVENTS = 1 << 23


class BulkUsers:
    """All users of a store, each with its whole history.

    Args:
        store: Their events.
        model: Gives the item and user ids.
        own: Whether the model was trained on this store, and so has the same ids.
        part_users: Most users of a part, which is written at a time.

    Attributes:
        bounds: (parts + 1,) user row at which each part starts; the last one is U.
        unknown_items: Items of the store that the model does not know.

    Raises:
        InputError: if `part_users` is below 1, the model knows no item of the store, or the store lacks a column that
            the model reads.
    """

    def __init__(self, store: EventStore, model: Recommender, *, own: bool, part_users: int) -> None:
        if part_users < 1:
            raise InputError(f"part_users={part_users} must be at least 1")
        self.store = store
        self._columns = model.event_columns
        for column in self._columns:
            column.check_column(store.event_columns.get(column.name), store.directory)
        self._item_map: Int64 | None = None
        self._user_map: Int64 | None = None
        self._num_items = len(item_ids_of(model))
        if not own:
            self._item_map = item_ids_of(model).translation(store.item_vocabulary)
            self._user_map = np.zeros(store.num_users + 1, np.int64)
            # Other models ignore the user.
            if model.hparams.get("user_embedding") and model.user_vocabulary is not None:
                self._user_map = model.user_vocabulary.translation(store.user_vocabulary)
        self.unknown_items = 0 if self._item_map is None else int((self._item_map[1:] == 0).sum())
        if self.unknown_items and self.unknown_items == store.num_items:
            theirs, ours = (
                each.external_series(np.array([1]))[0] for each in (store.item_vocabulary, item_ids_of(model))
            )
            raise InputError(
                f"the model knows none of the {store.num_items:,} items of the input, such as {theirs!r}; it knows "
                f"{ours!r} and the like: are the columns of users and items exchanged, or is it another log?"
            )
        self.bounds = _bounds(np.asarray(store.offsets), part_users)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, part: int) -> Int64:
        """Return the user rows of a part."""
        return np.arange(self.bounds[part], self.bounds[part + 1])

    def block(self, rows: Int64, counts: Int64 | None = None) -> tuple[EventBlock, int]:
        """Return the known events of the users in rows (U,) of the store, and the number of dropped ones.

        With `counts` (U,), only so many of each user's events, the oldest.
        """
        offsets = np.asarray(self.store.offsets)
        starts, counts = offsets[rows], offsets[rows + 1] - offsets[rows] if counts is None else counts
        places = ranges(starts, counts)
        item_ids: NDArray[np.integer[Any]] = plain(self.store.item_ids)[places]
        times = None if self.store.timestamps is None else plain(self.store.timestamps)[places]
        columns = {each.name: self.store.event_columns[each.name].taken(places) for each in self._columns}
        user_ids, events = rows + 1, len(places)
        if self._item_map is not None and self._user_map is not None:
            item_ids, user_ids = self._item_map[item_ids], self._user_map[user_ids]
            known = item_ids > 0
            counts = np.bincount(np.repeat(np.arange(len(rows)), counts)[known], minlength=len(rows))
            item_ids, times = item_ids[known], None if times is None else times[known]
            columns = {name: column.taken(known) for name, column in columns.items()}
        block_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        read = {each.name: each.column(each.of_column(columns[each.name])) for each in self._columns}
        block = EventBlock(item_ids, block_offsets, user_ids, self._num_items, times, event_columns=read)
        return block, events - len(item_ids)

    def names(self, rows: Int64) -> polars.Series:
        """Return the log's ids of users."""
        return self.store.user_vocabulary.external_series(rows + 1)

    def sample(self, size: int) -> EventBlock:
        """Return the known events of at most `size` users, evenly spread over the store."""
        rows = np.unique(np.linspace(0, self.store.num_users - 1, size).astype(np.int64))
        return self.block(rows)[0]


def store_digest(store: EventStore) -> str:
    """Return a digest of a store's events; equal for stores with the same content."""
    text = json.dumps(store.manifest["files"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bounds(offsets: Int64, part_users: int) -> list[int]:
    bounds, num_users = [0], len(offsets) - 1
    while (first := bounds[-1]) < num_users:
        by_events = int(np.searchsorted(offsets, offsets[first] + PART_EVENTS, side="right")) - 1
        bounds.append(min(num_users, first + part_users, max(by_events, first + 1)))
    return bounds
