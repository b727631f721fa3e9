"""The objects that rooms hand each other. Shapes: B batch, L events, S items of all rows together, K top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound="TensorRecord")

# Row and item as one sortable number: more than any catalogue, and 2^23 rows still fit 63 bits. A constant, where
# the largest item would do, because asking a GPU for that makes Python wait.
ROW_STRIDE = 1 << 40


class TensorRecord:
    """Base of frozen dataclasses of tensors: moves and pins as one object, which is what Lightning calls."""

    def to(self: Batch, *args: object, **kwargs: object) -> Batch:
        """Copy with every tensor moved or cast by `Tensor.to`; None fields stay None.

        To a GPU, Python does not wait for it, as Lightning does not with plain tensors.
        """
        if args and isinstance(args[0], str | torch.device) and torch.device(args[0]).type == "cuda":
            kwargs = {"non_blocking": True, **kwargs}
        return self._map("to", *args, **kwargs)

    def pin_memory(self: Batch) -> Batch:
        """Copy with every tensor in page-locked memory."""
        return self._map("pin_memory")

    def _map(self: Batch, method: str, *args: object, **kwargs: object) -> Batch:
        moved = {}
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, each.name)
            moved[each.name] = value if value is None else getattr(value, method)(*args, **kwargs)
        return type(self)(**moved)


@dataclass(frozen=True)
class History(TensorRecord):
    """What the model may know: past events, oldest first, padded on the right.

    Attributes:
        item_ids: (B, L) int64; 0 is padding and stands only behind the last event.
        lengths: (B,) int64, number of events a row, 1..L.
        timestamps: (B, L) int64 in the log's unit, or None where the log has none.
    """

    item_ids: Tensor
    lengths: Tensor
    timestamps: Tensor | None = None

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
        """(B,) number of entries a row."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rows(self) -> Tensor:
        """(S,) row of each entry of `item_ids`."""
        index = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(index, self.counts, output_size=len(self.item_ids))

    @staticmethod
    def from_rows(rows: Sequence[Tensor]) -> RaggedItems:
        """Rows of item ids, at least one row, one behind the other."""
        return RaggedItems(torch.cat(list(rows)), torch.tensor([0, *map(len, rows)]).cumsum(0))


@dataclass(frozen=True)
class HeldOutItems(RaggedItems):
    """What each user is judged by: the items of its held-out events, an item once.

    Attributes:
        item_ids: (S,) int64, real items, distinct within a row, in the order of their first held-out event.
        offsets: (B + 1,) int64, as in `RaggedItems`; every row has an item.
        timestamps: (S,) int64 of the first held-out event of each, in the log's unit; None where the log has none.
    """

    timestamps: Tensor | None = None


@dataclass(frozen=True)
class SeenItems(RaggedItems):
    """Sets of items, one a row: what each user of a batch has met already.

    Attributes:
        item_ids: (S,) int64, real items, ascending and distinct within a row.
        offsets: (B + 1,) int64, as in `RaggedItems`.
    """

    @staticmethod
    def from_events(rows: Tensor, item_ids: Tensor, num_rows: int) -> SeenItems:
        """Distinct items a row from (row, item) pairs in any order; padding (item 0) is left out."""
        keys = torch.unique(rows * ROW_STRIDE + item_ids)
        keys = keys[keys % ROW_STRIDE > 0]
        offsets = torch.searchsorted(keys, torch.arange(num_rows + 1, device=keys.device) * ROW_STRIDE)
        return SeenItems(keys % ROW_STRIDE, offsets)

    def of_rows(self, rows: Tensor) -> SeenItems:
        """The sets of some rows (N,), in their order."""
        begins, ends = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        sets = [self.item_ids[begin:end] for begin, end in zip(begins, ends, strict=True)]
        flat = RaggedItems.from_rows(sets)
        return SeenItems(flat.item_ids, flat.offsets.to(self.offsets.device))

    def with_items(self, item_ids: Tensor) -> SeenItems:
        """Copy with `item_ids` (B,) added, one to each row."""
        rows = torch.arange(len(item_ids), device=item_ids.device)
        return SeenItems.from_events(
            torch.cat([self.rows, rows]), torch.cat([self.item_ids, item_ids]), len(item_ids)
        )


@dataclass(frozen=True)
class SequenceBatch(TensorRecord):
    """A batch of windows with what they are trained or judged by. Encoders get `history` alone.

    Attributes:
        history: The windows' events.
        targets: (B, L) int64, the event that follows each event, 0 at padding; None when there is none to
            judge by (prediction).
        user_ids: (B,) int64, 1..num_users; 0 is a user that training does not know.
        seen_events: Items of all events that the user had before the split's target, also of those before the
            window (training: of its whole training history), oldest first; `seen` is the set of them.
        weight: () float32, what the mean over this batch's targets counts in an average over steps and ranks.
            Where batches differ in targets it is their number by the epoch's mean of it, so that all
            targets of an epoch count the same; otherwise 1.
        held_out: What users are judged by in evaluation; None judges each row by its last target, the event behind
            its newest event.
    """

    history: History
    targets: Tensor | None
    user_ids: Tensor
    seen_events: RaggedItems
    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    held_out: HeldOutItems | None = None

    @cached_property
    def seen(self) -> SeenItems:
        """Distinct items of `seen_events`, sorted when first asked for, on the device where the batch is then."""
        events = self.seen_events
        return SeenItems.from_events(events.rows, events.item_ids, len(self))

    @property
    def last_targets(self) -> Tensor:
        """(B,) the target behind each row's newest event."""
        assert self.targets is not None
        return self.targets.gather(1, (self.history.lengths - 1).unsqueeze(1)).squeeze(1)

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class TargetRanks(TensorRecord):
    """Where each target stands among its candidates, ties kept apart so that each tie rule is exact.

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
        ranks: (T,) where each target stands; ties are as the protocol's tie rule leaves them. Other targets of the
            same user are candidates like all others.
        repeated: (T,) bool, whether the target is among the items of the user's history.
        timestamps: (T,) int64 in the log's unit, or None where the log has none.
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
        """(B,) number of targets a user."""
        return torch.bincount(self.rows, minlength=len(self.user_ids))


@dataclass(frozen=True)
class Recommendations(TensorRecord):
    """The best items for each user, best first.

    Attributes:
        item_ids: (B, K) int64 internal ids; 0 where fewer than K items could be recommended.
        scores: (B, K) float, descending; -inf where the item is 0.
        user_ids: (B,) int64.
    """

    item_ids: Tensor
    scores: Tensor
    user_ids: Tensor
