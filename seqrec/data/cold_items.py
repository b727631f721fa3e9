"""A split that also hides items from training, to evaluate cold items. V = num_items + 1, U users, E events."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqrec.data.event_block import EventBlock
from seqrec.data.item_counts import training_item_counts
from seqrec.data.pieces import pieces_of
from seqrec.data.splits import LeaveOneOut, Split
from seqrec.data.store import EventStore
from seqrec.data.targets import LogTargets
from seqrec.errors import InputError

Int64 = NDArray[np.int64]


class ColdItems(Split):
    """Another split, with a share of the items hidden from training, as if they were new (Schein et al. 2002).

    No training batch contains the hidden items, neither as targets nor in histories; each user's training history is
    the rest of it. Item counts and baselines leave them out too. Evaluation is that of the other split: hidden items
    are candidates, are targets if the log says so, and stay in the histories that are known when one asks. Metrics are
    also reported for the targets with hidden items, as `cold_HR@10` and so on, and for all others, as `warm_HR@10`.

    The training part is copied into memory without the hidden items: 1 to 4 bytes an event, 8 more with times, and the
    event columns of the schema.

    Args:
        share: Share of the items with training events that are hidden, above 0 and below 1.
        seed: Seed of their choice, which depends on nothing but it and the log.
        split: The other split; None is `LeaveOneOut`.

    Raises:
        InputError: if `share` is out of range.

    Example:
        >>> from seqrec import ColdItems, LastN
        >>> ColdItems(0.05).id, ColdItems(0.1, seed=3, split=LastN(5)).id
        ('loo-cold0.05seed0', 'last5-cold0.1seed3')
    """

    def __init__(self, share: float = 0.05, *, seed: int = 0, split: Split | None = None) -> None:
        if not 0 < share < 1:
            raise InputError(f"share={share} must be above 0 and below 1")
        if isinstance(split, ColdItems):
            raise InputError("split of ColdItems hides items itself; give the split inside it")
        self.share = share
        self.seed = seed
        self.split = split or LeaveOneOut()
        self.several_targets = self.split.several_targets
        self.prequential = self.split.prequential
        self.train_on_validation = self.split.train_on_validation

    @property
    def id(self) -> str:
        """That of the other split, followed by `cold`, the share and the seed."""
        return f"{self.split.id}-cold{self.share}seed{self.seed}"

    def history_stops(self, store: EventStore, stage: str) -> Int64:
        """Return those of the other split."""
        return self.split.history_stops(store, stage)

    def target_stops(self, store: EventStore, stage: str) -> Int64:
        """Return those of the other split."""
        return self.split.target_stops(store, stage)

    def left_out(self, store: EventStore, stage: str) -> dict[str, int]:
        """Return those of the other split."""
        return self.split.left_out(store, stage)

    def hidden_items(self, store: EventStore) -> NDArray[np.bool_]:
        """Return (V,) True for the hidden items, at least one.

        Raises:
            InputError: if all items with training events would be hidden.
        """
        trained = np.flatnonzero(training_item_counts(store, self.split, all_events=True))
        count = max(1, round(self.share * len(trained)))
        if count >= len(trained):
            raise InputError(f"share={self.share} would hide all {len(trained)} items that have training events")
        hidden = np.zeros(store.num_items + 1, np.bool_)
        hidden[np.random.default_rng(self.seed).permutation(trained)[:count]] = True
        return hidden


def without_items(store: EventStore, hidden: NDArray[np.bool_], stops: Int64) -> tuple[EventBlock, Int64]:
    """Return a store's events in memory without some items, `hidden` (V,) True, and the places of `stops` (U,) there.

    `stops` are places between events of the store. Users keep their rows.
    """
    kept = np.concatenate([~hidden[piece] for piece in pieces_of(store.item_ids)])
    before = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    columns = {name: column.taken(kept) for name, column in store.event_columns.items()}
    targets = store.targets
    if targets is not None:
        targets = LogTargets.from_flags(targets.condition, [targets.at(np.arange(len(kept)))[kept]])
    block = EventBlock(
        item_ids=np.asarray(store.item_ids)[kept],
        offsets=before[np.asarray(store.offsets)],
        user_ids=np.arange(1, store.num_users + 1),
        num_items=store.num_items,
        timestamps=None if store.timestamps is None else np.asarray(store.timestamps)[kept],
        event_columns=columns,
        targets=targets,
    )
    return block, before[stops]
