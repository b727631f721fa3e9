"""How often items occur in the training part of a log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqrec.data.ragged import ranges
from seqrec.data.splits import Split
from seqrec.data.store import EventStore

# Events counted at a time, so that counting a billion events takes little memory.
COUNT_EVENTS = 1 << 24


def training_item_counts(store: EventStore, split: Split) -> NDArray[np.int64]:
    """(num_items + 1,) how often each item occurs in the training part; item 0 never does."""
    stops = split.history_stops(store, "train")
    counts = np.zeros(store.num_items + 1, dtype=np.int64)
    for begin in range(0, store.num_events, COUNT_EVENTS):
        counts += np.bincount(store.item_ids[begin : begin + COUNT_EVENTS], minlength=len(counts))
    held_out = store.item_ids[ranges(stops, np.asarray(store.offsets)[1:] - stops)]
    return counts - np.bincount(held_out, minlength=len(counts))
