"""Batches padded to a few shapes, for recorded training steps. B batch, L events, S seen events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from seqrec.types import ROW_STRIDE, RaggedItems, SeenItems, SequenceBatch

# Shorter rows are padded to so many events: their steps take as long.
LEAST_EVENTS = 32


def padded_size(size: int, *, most: int | None = None) -> int:
    """Return the smallest of 32, 48, 64, 96, 128, .. and `most` that is at least `size`; `size` if it is above `most`.

    Example:
        >>> from seqrec.data.padding import padded_size
        >>> [padded_size(size, most=1000) for size in (3, 33, 65, 700, 800, 1200)]
        [32, 48, 96, 768, 1000, 1200]
    """
    power = 1 << max(size - 1, LEAST_EVENTS - 1).bit_length()
    rounded = power * 3 // 4 if power > LEAST_EVENTS and size <= power * 3 // 4 else power
    return rounded if most is None else max(size, min(rounded, most))


@dataclass(frozen=True)
class PaddedBatch(SequenceBatch):
    """A batch with memory of its own, of fixed size, into which batches of its shape or a smaller one are copied.

    Rows have L events and `seen_events` S, most of them padding if the batch was smaller. Sizes of all tensors of a
    step follow from these, and no size depends on values, as in `seen` of other batches.

    Example:
        >>> import torch
        >>> from seqrec import History, SequenceBatch
        >>> from seqrec.data.padding import PaddedBatch
        >>> from seqrec.types import RaggedItems
        >>> seen = RaggedItems(torch.tensor([3, 3, 7]), torch.tensor([0, 3]))
        >>> batch = SequenceBatch(
        ...     History(torch.tensor([[3, 3]]), torch.tensor([2])), torch.tensor([[3, 7]]), torch.tensor([1]), seen
        ... )
        >>> padded = PaddedBatch.like(batch, num_events=4, num_seen=5)
        >>> padded.fill(batch)
        >>> padded.targets.tolist(), padded.seen.counts.tolist()
        ([[3, 7, 0, 0]], [2])
    """

    @classmethod
    def like(cls, batch: SequenceBatch, *, num_events: int, num_seen: int) -> PaddedBatch:
        """Allocate a batch of zeros with the rows, fields, types and device of another, L events and S seen ones."""

        def zeros(x: Tensor) -> Tensor:
            wide = x.dim() > 1 and x.shape[1] == batch.history.item_ids.shape[1]
            return x.new_zeros((x.shape[0], num_events, *x.shape[2:]) if wide else x.shape)

        def zeros_or_none(x: Tensor | None) -> Tensor | None:
            return None if x is None else zeros(x)

        history, seen = batch.history, batch.seen_events
        features = history.features
        return cls(
            replace(
                history,
                item_ids=zeros(history.item_ids),
                lengths=zeros(history.lengths),
                timestamps=zeros_or_none(history.timestamps),
                time_before=zeros_or_none(history.time_before),
                features=None if features is None else {name: zeros(x) for name, x in features.items()},
            ),
            zeros_or_none(batch.targets),
            zeros(batch.user_ids),
            RaggedItems(seen.item_ids.new_zeros(num_seen), zeros(seen.offsets)),
            zeros(batch.weight),
            request_times=zeros_or_none(batch.request_times),
        )

    def fill(self, batch: SequenceBatch) -> None:
        """Copy a batch of at most this size, and set everything else to 0; with S = 0 no seen events are copied."""
        if not len(self.seen_events.item_ids):
            batch = replace(batch, seen_events=self.seen_events)
        for own, new in zip(self.tensors(), replace(batch, held_out=None).tensors(), strict=True):
            if own.shape != new.shape:
                own.zero_()
            own[tuple(map(slice, new.shape))].copy_(new, non_blocking=True)

    @property
    def seen(self) -> PaddedSeen:
        """Distinct items of `seen_events`, followed by padding; computed anew at each access."""
        return PaddedSeen.of_events(self.seen_events)


class PaddedSeen(SeenItems):
    """`SeenItems` with padding after the last row, of a row B of its own. No size depends on values."""

    @staticmethod
    def of_events(events: RaggedItems) -> PaddedSeen:
        """Return the distinct items of each row, as `SeenItems.from_events` does, in tensors of the events' size."""
        places = torch.arange(len(events.item_ids), device=events.item_ids.device)
        rows = torch.searchsorted(events.offsets[1:], places, right=True)
        keys = (rows * ROW_STRIDE + events.item_ids).sort().values
        unwanted = keys % ROW_STRIDE == 0
        unwanted[1:] |= keys[1:] == keys[:-1]
        # Keys of the padding ascend too, because samplers search in these tensors.
        last = (len(events.offsets) - 1) * ROW_STRIDE
        keys = torch.where(unwanted | (keys >= last), last + places, keys).sort().values
        starts = torch.arange(len(events.offsets), device=keys.device) * ROW_STRIDE
        return PaddedSeen(keys % ROW_STRIDE, torch.searchsorted(keys, starts))

    @cached_property
    def rows(self) -> Tensor:
        """(S,) row of each entry of `item_ids`; B at padding."""
        places = torch.arange(len(self.item_ids), device=self.item_ids.device)
        return torch.searchsorted(self.offsets[1:], places, right=True)
