"""Further events of several users as one array. B users, E events of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.collate import padded_features, padded_rows
from seqrec.data.columns import Column
from seqrec.types import History, RaggedItems, SequenceBatch

Int64Array = NDArray[np.int64]


class ItemRows:
    """Items of each of B users, at least one each, as one array, and times and columns of their events.

    Args:
        flat: (E,) int64 internal item ids, those of the first user first.
        lengths: The number of each user's items.
        times: (E,) int64, for models that read the time of events; None for others.
        columns: Columns with E rows that the model reads, by name.

    Attributes:
        offsets: The items of user b are `flat[offsets[b]:offsets[b + 1]]`.

    Example:
        >>> import numpy as np
        >>> from seqrec.inference.sessions import ItemRows
        >>> rows = ItemRows(np.array([7, 8, 9]), [1, 2])
        >>> len(rows), rows[1].tolist()
        (2, [8, 9])
    """

    def __init__(
        self,
        flat: Int64Array,
        lengths: Iterable[int],
        times: Int64Array | None = None,
        columns: Mapping[str, Column] | None = None,
    ) -> None:
        self.flat, self.lengths, self.times, self.columns = flat, list(lengths), times, columns or {}
        self.offsets = list(accumulate(self.lengths, initial=0))

    @staticmethod
    def of(
        rows: Sequence[Int64Array],
        times: Sequence[Int64Array] | None = None,
        columns: Sequence[Mapping[str, Column]] = (),
    ) -> ItemRows:
        """Return rows as one array."""
        every = {name: joined_columns([own[name] for own in columns]) for name in (columns[0] if columns else ())}
        all_times = None if times is None else np.concatenate(times)
        return ItemRows(np.concatenate(rows), map(len, rows), all_times, every)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> Int64Array:
        return self.flat[self.offsets[place] : self.offsets[place + 1]]

    def newest(self, most: int) -> ItemRows:
        """Return the last items of each user, at most this many."""
        if max(self.lengths) <= most:
            return self
        return self._parts([slice(max(begin, end - most), end) for begin, end in pairwise(self.offsets)])

    def of_users(self, places: Sequence[int]) -> ItemRows:
        """Return the items of the users at some places."""
        return self._parts([slice(self.offsets[place], self.offsets[place + 1]) for place in places])

    def _parts(self, parts: Sequence[slice]) -> ItemRows:
        times = None if self.times is None else [self.times[part] for part in parts]
        columns = [{name: column.taken(part) for name, column in self.columns.items()} for part in parts]
        return ItemRows.of([self.flat[part] for part in parts], times, columns)

    def padded(self) -> History:
        """Return the items as a history on the CPU."""
        lengths, starts = np.array(self.lengths), np.array(self.offsets[:-1])
        times = None if self.times is None else padded_rows(self.times, starts, lengths)
        features = padded_features(self.columns, starts, lengths) if self.columns else None
        items = padded_rows(self.flat, starts, lengths)
        return History(items, torch.from_numpy(lengths), times, features=features)

    def batch(self, user_ids: Tensor, at: Tensor | None) -> SequenceBatch:
        """Return a batch on the CPU of users (B,) who ask at times (B,), without targets; None is without times."""
        seen = RaggedItems(torch.from_numpy(self.flat), torch.tensor(self.offsets))
        batch = SequenceBatch(self.padded(), None, user_ids, seen)
        return batch if at is None else batch.asked_at(at)

    def int32_bytes(self) -> list[bytes]:
        """Return each user's items as the bytes of int32."""
        items = self.flat.astype(np.int32)
        if len(items) == len(self):
            # Much faster for the most common case.
            found: list[bytes] = items.view("V4").tolist()
            return found
        content = items.tobytes()
        return [content[4 * begin : 4 * end] for begin, end in pairwise(self.offsets)]

    def of_one_event(self) -> dict[str, Tensor] | None:
        """Return the columns of users who have one event each, (B,) or (B, W) on the CPU."""
        padded = padded_features(self.columns, np.arange(len(self)), np.ones(len(self), np.int64))
        return None if padded is None else {name: x.squeeze(1) for name, x in padded.items()}


def joined_columns(parts: Sequence[Column]) -> Column:
    """Return the same column of several parts of the events as one."""
    values = np.concatenate([part.values for part in parts])
    return replace(parts[0], values=values, missing=sum(part.missing for part in parts))
