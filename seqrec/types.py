"""Typed objects that packages exchange. Shapes: B batch, L events, S items of all rows together, K top-k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound="TensorRecord")

# Row and item as one sortable number: more than any catalogue, and 2^23 rows still fit 63 bits. It is a constant,
# because reading the largest item from a GPU would make Python wait.
ROW_STRIDE = 1 << 40

# The time of the event before a user's first one, which has none.
NO_TIME = -(1 << 63)


class TensorRecord:
    """Base of frozen dataclasses of tensors, with `to` and `pin_memory` as Lightning calls them."""

    def to(self: Batch, *args: object, **kwargs: object) -> Batch:
        """Return a copy with every tensor moved or cast by `Tensor.to`; None fields stay None.

        Python does not wait for a copy to a GPU, as in Lightning with plain tensors.
        """
        if args and isinstance(args[0], str | torch.device) and torch.device(args[0]).type == "cuda":
            kwargs = {"non_blocking": True, **kwargs}
        return self._map("to", *args, **kwargs)

    def pin_memory(self: Batch) -> Batch:
        """Return a copy with every tensor in page-locked memory."""
        return self._map("pin_memory")

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors, in the order of fields and names."""
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, TensorRecord):
                yield from value.tensors()
            elif isinstance(value, dict):
                yield from (value[name] for name in sorted(value))

    def _map(self: Batch, method: str, *args: object, **kwargs: object) -> Batch:
        moved: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, each.name)
            if isinstance(value, dict):
                moved[each.name] = {key: getattr(one, method)(*args, **kwargs) for key, one in value.items()}
            else:
                moved[each.name] = value if value is None else getattr(value, method)(*args, **kwargs)
        return type(self)(**moved)


@dataclass(frozen=True)
class History(TensorRecord):
    """Past events, which are all that the model may know: oldest first, padded on the right.

    Attributes:
        item_ids: (B, L) int64; 0 is padding, only after the last event. At an event it is a masked item, which only
            bidirectional encoders are given.
        lengths: (B,) int64, number of events of each row, 1..L.
        timestamps: (B, L) int64 in the log's unit, or None if the log has none.
        time_before: (B,) int64, time of the event before the first one here, as in a stream; `NO_TIME` without one.
            None is without one in each row.
        features: Columns of the events by name, as `Schema.events` declares them, 0 at padding: codes (B, L) int64 of a
            categorical column, 0 if missing; (B, L) float32 of a numeric one, standardised, 0 if missing; (B, L, W)
            float32 of vectors. None if the store has none.

    Example:
        >>> import torch
        >>> from seqrec import History
        >>> History(torch.tensor([[3, 7, 9], [5, 0, 0]]), torch.tensor([3, 1])).valid.tolist()
        [[True, True, True], [True, False, False]]
    """

    item_ids: Tensor
    lengths: Tensor
    timestamps: Tensor | None = None
    time_before: Tensor | None = None
    features: dict[str, Tensor] | None = None

    @property
    def times_before(self) -> Tensor:
        """(B, L) int64, time of the event before each event, `NO_TIME` without one; the history must have times."""
        assert self.timestamps is not None
        before = self.time_before
        if before is None:
            before = self.timestamps.new_full(self.timestamps.shape[:1], NO_TIME)
        return torch.cat([before.unsqueeze(1), self.timestamps], 1)[:, :-1]

    @property
    def valid(self) -> Tensor:
        """(B, L) bool, True at events, False at padding."""
        positions = torch.arange(self.item_ids.shape[1], device=self.item_ids.device)
        return positions < self.lengths.unsqueeze(1)


@dataclass(frozen=True)
class RaggedItems(TensorRecord):
    """Items of each row, rows of different length, as one flat array; repeats are allowed.

    Attributes:
        item_ids: (S,) int32 or int64, real items.
        offsets: (B + 1,) int64; row b is `item_ids[offsets[b]:offsets[b + 1]]`.
    """

    item_ids: Tensor
    offsets: Tensor

    @property
    def counts(self) -> Tensor:
        """(B,) number of entries of each row."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rows(self) -> Tensor:
        """(S,) row of each entry of `item_ids`."""
        index = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(index, self.counts, output_size=len(self.item_ids))

    def places_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return places in `item_ids` (.., C) of the entries of rows (..), and which are entries; others are 0."""
        counts = self.counts[rows]
        steps = torch.arange(int(counts.max()), device=counts.device)
        is_entry = steps < counts.unsqueeze(-1)
        return (self.offsets[rows].unsqueeze(-1) + steps).where(is_entry, 0), is_entry

    @staticmethod
    def from_rows(rows: Sequence[Tensor]) -> RaggedItems:
        """Concatenate rows of item ids, at least one row."""
        return RaggedItems(torch.cat(list(rows)), torch.tensor([0, *map(len, rows)]).cumsum(0))


@dataclass(frozen=True)
class HeldOutItems(RaggedItems):
    """The items of each user's held-out events, which evaluation ranks; each item once.

    Attributes:
        item_ids: (S,) int64, real items, distinct within a row, in the order of their first held-out event.
        offsets: (B + 1,) int64, as in `RaggedItems`; every row has an item.
        timestamps: (S,) int64 of the first held-out event of each, in the log's unit; None if the log has none.
        positions: (S,) int64, number of the row's events before each, if each held-out event is judged by itself from
            those events; then items may repeat, and the history reaches up to the event before the last of them. None
            if all of a row are judged from the whole history.
    """

    timestamps: Tensor | None = None
    positions: Tensor | None = None


@dataclass(frozen=True)
class SeenItems(RaggedItems):
    """Sets of items, one for each row: the items that each user of a batch has seen.

    Attributes:
        item_ids: (S,) int64, real items, ascending and distinct within a row.
        offsets: (B + 1,) int64, as in `RaggedItems`.
    """

    # Computed once, because a step reads them several times, and each operation is a launch on a GPU.
    @cached_property
    def counts(self) -> Tensor:
        """(B,) number of items of each row."""
        return super().counts

    @cached_property
    def rows(self) -> Tensor:
        """(S,) row of each entry of `item_ids`."""
        return super().rows

    @staticmethod
    def from_events(rows: Tensor, item_ids: Tensor, num_rows: int) -> SeenItems:
        """Return the distinct items of each row from (row, item) pairs in any order, without padding (item 0)."""
        keys = torch.unique(rows * ROW_STRIDE + item_ids)
        keys = keys[keys % ROW_STRIDE > 0]
        offsets = torch.searchsorted(keys, torch.arange(num_rows + 1, device=keys.device) * ROW_STRIDE)
        return SeenItems(keys % ROW_STRIDE, offsets)

    def of_rows(self, rows: Tensor) -> SeenItems:
        """Return the sets of some rows (N,), in their order."""
        begins, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        sets = [self.item_ids[begin:end] for begin, end in zip(begins, ends, strict=True)]
        flat = RaggedItems.from_rows(sets)
        return SeenItems(flat.item_ids, flat.offsets.to(self.offsets.device))

    def places_in(self, chosen: Tensor) -> SeenItems:
        """Return the sets as places in `chosen` (N,) int64, ascending items, without the items that it lacks."""
        if not len(chosen):
            return SeenItems(self.item_ids[:0], torch.zeros_like(self.offsets))
        places = torch.searchsorted(chosen, self.item_ids.to(torch.int64))
        found = chosen[places.clamp_max(len(chosen) - 1)] == self.item_ids
        return SeenItems(places[found], torch.cat([self.offsets[:1], found.cumsum(0)])[self.offsets])


@dataclass(frozen=True)
class SequenceBatch(TensorRecord):
    """A batch of windows with their targets. Encoders get only `history`.

    Attributes:
        history: The windows' events.
        targets: (B, L) int64, the event that follows each event; 0 at padding, and where that event is no target, as a
            filter of targets decides. None in prediction.
        user_ids: (B,) int64, 1..num_users; 0 is a user without training events.
        seen_events: Items of all of the user's events before the split's target, targets or not, also of those before
            the window (in training: of its whole training history), oldest first; `seen` is the set of them.
        weight: () float32, weight of the mean over this batch's targets in an average over steps and processes. If
            batches differ in targets it is their number divided by the epoch's mean number, with which all targets
            of an epoch count the same; otherwise 1.
        held_out: The items that evaluation ranks; None ranks each row's last target, the event after its newest.
        request_times: (B, L) int64, when the item after each event is asked for: its target's own time, or the time of
            a request. None if the log has no times, and in prediction without such a time.
        target_features: Columns of the event after each event, those that a model predicts, by name: as in
            `History.features`, but a missing number is NaN. None if none are predicted.
        continues: (B,) bool, True if the row is the window that follows the one in the same row of the batch before,
            whose state it may continue from. None if batches are in no such order.

    Example:
        >>> import torch
        >>> from seqrec import History, SequenceBatch
        >>> from seqrec.types import RaggedItems
        >>> history = History(torch.tensor([[3, 7], [5, 0]]), torch.tensor([2, 1]))
        >>> seen = RaggedItems(torch.tensor([3, 7, 5]), torch.tensor([0, 2, 3]))
        >>> batch = SequenceBatch(history, torch.tensor([[7, 9], [6, 0]]), torch.tensor([1, 2]), seen)
        >>> len(batch), batch.last_targets.tolist()
        (2, [9, 6])
    """

    history: History
    targets: Tensor | None
    user_ids: Tensor
    seen_events: RaggedItems
    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    held_out: HeldOutItems | None = None
    request_times: Tensor | None = None
    target_features: dict[str, Tensor] | None = None
    continues: Tensor | None = None

    @cached_property
    def seen(self) -> SeenItems:
        """Distinct items of `seen_events`, sorted at the first access, on the batch's device at that time."""
        events = self.seen_events
        return SeenItems.from_events(events.rows, events.item_ids, len(self))

    def asked_at(self, times: Tensor) -> SequenceBatch:
        """Return the batch with the time (B,) int64 of each row's request."""
        # Contiguous, as numbers that are kept once and read repeatedly cannot be copied into page-locked memory.
        return replace(self, request_times=times.unsqueeze(1).expand_as(self.history.item_ids).contiguous())

    @property
    def is_target(self) -> Tensor:
        """(B, L) bool, True at events with a target, at which losses are computed."""
        assert self.targets is not None
        return self.targets > 0

    @property
    def last_targets(self) -> Tensor:
        """(B,) the target after each row's newest event."""
        assert self.targets is not None
        return self.targets.gather(1, (self.history.lengths - 1).unsqueeze(1)).squeeze(1)

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class TargetRanks(TensorRecord):
    """The rank of each target among its candidates, with ties kept apart because each tie rule must be exact.

    Attributes:
        better: (B,) int64, candidates that score above the target (NaN counts as above).
        tied: (B,) int64, other candidates with the same score.
    """

    better: Tensor
    tied: Tensor


@dataclass(frozen=True)
class JudgedTargets(TensorRecord):
    """The held-out items of a batch's users with their ranks. B users, T targets of all of them.

    Attributes:
        user_ids: (B,) int64.
        history_lengths: (B,) int64, events that the user had before its first target, also those before the window.
        rows: (T,) int64, row of each target, ascending; every user has at least one target.
        item_ids: (T,) int64, the targets.
        ranks: (T,) rank of each target under the protocol's tie rule. Other targets of the same user are candidates
            like all others.
        repeated: (T,) bool, whether the target is among the items of the user's history.
        timestamps: (T,) int64 in the log's unit, or None if the log has none.
    """

    user_ids: Tensor
    history_lengths: Tensor
    rows: Tensor
    item_ids: Tensor
    ranks: TargetRanks
    repeated: Tensor
    timestamps: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """(B,) number of targets of each user."""
        return torch.bincount(self.rows, minlength=len(self.user_ids))

    def only(self, kept: Tensor) -> JudgedTargets:
        """Return only the targets with `kept` (T,) True; users without any are left out."""
        users, rows = torch.unique(self.rows[kept], return_inverse=True)
        return JudgedTargets(
            user_ids=self.user_ids[users],
            history_lengths=self.history_lengths[users],
            rows=rows,
            item_ids=self.item_ids[kept],
            ranks=TargetRanks(self.ranks.better[kept], self.ranks.tied[kept]),
            repeated=self.repeated[kept],
            timestamps=None if self.timestamps is None else self.timestamps[kept],
        )


@dataclass(frozen=True)
class Recommendations(TensorRecord):
    """The best items for each user, best first.

    Attributes:
        item_ids: (B, K) int64 internal ids, followed by zeros if fewer than K items could be recommended.
        scores: (B, K) float, descending; -inf for item 0.
        user_ids: (B,) int64.

    Example:
        >>> import torch
        >>> from seqrec import Recommendations
        >>> best = Recommendations(torch.tensor([[8, 2]]), torch.tensor([[0.9, 0.4]]), torch.tensor([1]))
        >>> best.item_ids[0].tolist()
        [8, 2]
    """

    item_ids: Tensor
    scores: Tensor
    user_ids: Tensor
