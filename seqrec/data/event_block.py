"""Events of some users in memory, in the layout of a store. U users, E events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.data.collate import WindowDataset
from seqrec.data.columns import Column
from seqrec.data.sampler import BatchSampler
from seqrec.data.targets import LogTargets
from seqrec.data.windows import newest_windows
from seqrec.errors import InputError
from seqrec.types import SequenceBatch

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class EventBlock:
    """Histories of users, who need not be in a store, oldest event first.

    Attributes:
        item_ids: (E,) internal item ids, user after user.
        offsets: (U + 1,) int64; user u has the events [offsets[u], offsets[u + 1]), possibly none.
        user_ids: (U,) int64 internal user ids; 0 is a user that the model does not know.
        num_items: Items of the catalogue.
        timestamps: (E,) int64; None without times.
        request_times: (U,) int64, when each user is asked for; None if that is not known.
        event_columns: Further columns with E rows, by name.
        targets: The events that are targets in training; None is all, and in prediction.
    """

    item_ids: NDArray[np.integer[Any]]
    offsets: Int64
    user_ids: Int64
    num_items: int
    timestamps: Int64 | None = None
    request_times: Int64 | None = None
    event_columns: Mapping[str, Column] = field(default_factory=dict)
    targets: LogTargets | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def check_in_use(self) -> None:
        """Do nothing: events in memory can always be read."""

    def asked_at(self, times: Sequence[int | None]) -> EventBlock:
        """Return the block with the time (U,) of each user's request.

        Raises:
            InputError: if their number is not that of the users.
        """
        if len(times) != len(self):
            raise InputError(f"at has {len(times)} times for {len(self)} users; give one, or one for each")
        return replace(self, request_times=np.array(times, np.int64))

    def batches(
        self, max_length: int, *, batch_size: int | None = None, max_tokens: int | None = None
    ) -> Iterator[tuple[Int64, SequenceBatch]]:
        """Yield users in batches of similar length, the longest first. Users without events are left out.

        Each has at most `max_length` events, the newest. A batch has `batch_size` users, or `max_tokens` events,
        padding included, but at least one user.

        Yields:
            (B,) places of the batch's users in this block, and the batch.
        """
        stops = self.offsets[1:]
        windows = newest_windows(self.offsets[:-1], stops, max_length)
        if not len(windows):
            return
        if max_tokens is not None:
            max_tokens = max(max_tokens, int(windows.lengths.max()))
        dataset = WindowDataset(self, stops, with_targets=False)
        plans = BatchSampler(lambda _: windows, batch_size=batch_size, max_tokens=max_tokens, shuffle=False)
        for plan in plans:
            rows = plan.windows.user_rows
            batch = replace(dataset[plan], user_ids=torch.from_numpy(self.user_ids[rows]))
            if self.request_times is not None:
                batch = batch.asked_at(torch.from_numpy(self.request_times[rows]))
            yield rows, batch
