"""The objects that rooms hand each other. Shapes: B batch, L events, S seen items of the whole batch, K top-k."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound="TensorRecord")


class TensorRecord:
    """Base of frozen dataclasses of tensors: moves and pins as one object, which is what Lightning calls."""

    def to(self: Batch, *args: object, **kwargs: object) -> Batch:
        """Copy with every tensor moved or cast by `Tensor.to`; None fields stay None."""
        return self._map("to", *args, **kwargs)

    def pin_memory(self: Batch) -> Batch:
        """Copy with every tensor in page-locked memory."""
        return self._map("pin_memory")

    def _map(self: Batch, method: str, *args: object, **kwargs: object) -> Batch:
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            moved[field.name] = value if value is None else getattr(value, method)(*args, **kwargs)
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
class SeenItems(TensorRecord):
    """Sets of items, one a row, as one ragged array: what each user of a batch has met already.

    Attributes:
        item_ids: (S,) int64, real items, ascending and distinct within a row.
        offsets: (B + 1,) int64; row b is `item_ids[offsets[b]:offsets[b + 1]]`.
    """

    item_ids: Tensor
    offsets: Tensor

    @property
    def counts(self) -> Tensor:
        """(B,) number of distinct items a row."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rows(self) -> Tensor:
        """(S,) row of each entry of `item_ids`."""
        index = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return torch.repeat_interleave(index, self.counts, output_size=len(self.item_ids))

    @staticmethod
    def from_events(rows: Tensor, item_ids: Tensor, num_rows: int) -> SeenItems:
        """Distinct items a row from (row, item) pairs in any order; padding (item 0) is left out."""
        real = item_ids > 0
        rows, item_ids = rows[real], item_ids[real]
        base = int(item_ids.max()) + 1 if len(item_ids) else 1
        keys = torch.unique(rows * base + item_ids)
        offsets = torch.searchsorted(keys, torch.arange(num_rows + 1, device=keys.device) * base)
        return SeenItems(keys % base, offsets)

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
            judge by (prediction). In evaluation only the last one of a row is judged: `last_targets`.
        user_ids: (B,) int64, 1..num_users; 0 is a user that training does not know.
        seen: Items that the user met before the split's target (training: in its whole training history).
    """

    history: History
    targets: Tensor | None
    user_ids: Tensor
    seen: SeenItems

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
