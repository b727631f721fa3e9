"""Small logs for tests of baselines, and the same things counted naively."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import strategies as st

from seqrec.models.baselines.training_events import TrainingEvents
from seqrec.types import History, RaggedItems, SequenceBatch

NUM_ITEMS = 7

histories = st.lists(st.integers(1, NUM_ITEMS), max_size=12)
logs = st.lists(st.tuples(histories, st.integers(0, 2)), min_size=1, max_size=6).filter(
    lambda users: any(history for history, _ in users)
)


def training_events(
    users: list[tuple[list[int], int]], *, piece_events: int = 1 << 20, timestamps: list[int] | None = None
) -> TrainingEvents:
    """Histories of users, each with how many of its newest events are held out (all, where it has fewer)."""
    lengths = np.array([len(history) for history, _ in users])
    starts = np.cumsum(lengths) - lengths
    stops = np.maximum(starts, starts + lengths - [held_out for _, held_out in users])
    return TrainingEvents(
        np.array([item for history, _ in users for item in history], dtype=np.uint8),
        None if timestamps is None else np.array(timestamps),
        starts,
        stops,
        NUM_ITEMS,
        piece_events,
    )


def training_histories(users: list[tuple[list[int], int]]) -> list[list[int]]:
    return [history[: max(0, len(history) - held_out)] for history, held_out in users]


def naive_pairs(users: list[tuple[list[int], int]], steps: list[int], *, once_a_user: bool) -> Counter[tuple[int, int]]:
    """Counts of (anchor, other) by plain loops."""
    counts: Counter[tuple[int, int]] = Counter()
    for history in training_histories(users):
        pairs = [
            (item, history[place + step])
            for place, item in enumerate(history)
            for step in steps
            if 0 <= place + step < len(history)
        ]
        counts.update(set(pairs) if once_a_user else pairs)
    return counts


def batch_of(histories: list[list[int]]) -> SequenceBatch:
    """A batch to score; only the histories are read."""
    lengths = torch.tensor([len(history) for history in histories])
    item_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(h) for h in histories], batch_first=True)
    seen = RaggedItems.from_rows([torch.tensor(history) for history in histories])
    return SequenceBatch(History(item_ids, lengths), None, torch.arange(1, len(histories) + 1), seen)
