"""How often each item occurs in a log and in the training part of it, and since when."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqrec.data.pieces import pieces_of
from seqrec.data.splits import Split
from seqrec.data.store import EventStore
from seqrec.data.windows import ranges
from seqrec.errors import InputError


def training_item_counts(store: EventStore, split: Split, *, all_events: bool = False) -> NDArray[np.int64]:
    """Return the number of events (num_items + 1,) of each item in the training part; item 0 has none.

    With a target filter, the number of targets, unless `all_events`: it is how often each item is what a model is
    trained to predict. Items that the split hides from training have none.
    """
    targets = None if all_events else store.targets
    stops = split.history_stops(store, "train")
    places = ranges(stops, np.asarray(store.offsets)[1:] - stops)
    if targets is not None:
        places = places[targets.at(places)]
    held_out = np.bincount(store.item_ids[places], minlength=store.num_items + 1)
    counts, hidden = item_counts(store, all_events=all_events) - held_out, split.hidden_items(store)
    return counts if hidden is None else np.where(hidden, 0, counts)


def item_counts(store: EventStore, *, all_events: bool = False) -> NDArray[np.int64]:
    """Return the number of events (num_items + 1,) of each item in the whole log; item 0 has none.

    With a target filter, the number of targets, unless `all_events`.
    """
    targets = None if all_events else store.targets
    counts = np.zeros(store.num_items + 1, dtype=np.int64)
    begin = 0
    for piece in pieces_of(store.item_ids):
        here = piece if targets is None else piece[targets.at(np.arange(begin, begin + len(piece)))]
        counts += np.bincount(here, minlength=len(counts))
        begin += len(piece)
    return counts


def first_event_times(store: EventStore) -> NDArray[np.int64]:
    """Return the time (num_items + 1,) of each item's first event in the whole log, in the log's unit.

    Events of all users and kinds count, targets or not. Item 0 and items without events have the largest int64.

    Raises:
        InputError: if the log has no timestamps.
    """
    if store.timestamps is None:
        raise InputError(
            f"{store.directory}: the log has no timestamps, so it is unknown which items had been met (alive_only): "
            "name the column of times in data.source, or leave alive_only out"
        )
    first = np.full(store.num_items + 1, np.iinfo(np.int64).max)
    for items, times in zip(pieces_of(store.item_ids), pieces_of(store.timestamps), strict=True):
        np.minimum.at(first, items, times)
    return first
