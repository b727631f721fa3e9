"""Counts of items that are near each other in the training part, in memory that does not depend on the log's size.

P pairs, N events of a piece, S steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqrec.models.baselines.training_events import LogEvents, TrainingEvents

Int64 = NDArray[np.int64]

# Pairs of events in memory at a time: 2^22 keys are 32 MiB, and about five arrays of them exist at once.
PIECE_PAIRS = 1 << 22


class PairCounts(NamedTuple):
    """Counts of pairs; all pairs of an anchor are together.

    Attributes:
        anchors: (P,) int64 item ids, ascending.
        others: (P,) int64 item ids, ascending within an anchor.
        counts: (P,) int64, at least 1.
    """

    anchors: Int64
    others: Int64
    counts: Int64


def user_counts(events: TrainingEvents) -> Int64:
    """Return (num_items + 1,) the number of users with each item among the targets of their training part."""
    counts = np.zeros(events.num_items + 1, dtype=np.int64)
    for some in events.by_item():
        visits = np.flatnonzero(_starts_visit(some))
        counts += np.bincount(some.item_ids[visits], minlength=len(counts))
    return counts


def pair_counts(
    events: TrainingEvents, steps: Int64, *, once_a_user: bool, piece_pairs: int = PIECE_PAIRS
) -> Iterator[PairCounts]:
    """Count for each item (the anchor) the targets at some steps from it in a user's training part.

    An anchor is any event: models look up the items of histories.

    Anchors are counted one after another, without a table of all pairs: memory is that of `piece_pairs` pairs, of the
    anchor's own pairs and of `TrainingEvents.piece_events` events. One user's pairs of one anchor stay together. A pair
    counts `once_a_user`, or once per pair of events. `steps` (S,) are places of the other event relative to the
    anchor's: 1 is the next event, -1 the previous one.

    Yields:
        Some anchors with all their counts; items without a pair are left out.
    """
    for some in events.with_context.by_item():
        carried = PairCounts(*(np.empty(0, dtype=np.int64) for _ in range(3)))
        bounds = _piece_bounds(some, max(1, piece_pairs // len(steps)))
        for begin, end in itertools.pairwise(bounds):
            piece = LogEvents(*(column[begin:end] for column in some))
            found = _merge(carried, _count(events, piece, steps, once_a_user))
            # The last anchor of a piece may continue in the next one.
            continues = end < len(some.item_ids) and some.item_ids[end] == some.item_ids[end - 1]
            cut = np.searchsorted(found.anchors, some.item_ids[end - 1]) if continues else len(found.anchors)
            carried = PairCounts(*(column[cut:] for column in found))
            yield PairCounts(*(column[:cut] for column in found))


def _starts_visit(events: LogEvents) -> NDArray[np.bool_]:
    """Return (N,) True at events with another item or user than the previous event."""
    first = np.ones(len(events.item_ids), dtype=np.bool_)
    first[1:] = (np.diff(events.item_ids) != 0) | (np.diff(events.user_rows) != 0)
    return first


def _piece_bounds(events: LogEvents, size: int) -> list[int]:
    """Return ends of pieces of at most `size` events, or of one user's events with one item if these are more."""
    visits = np.append(np.flatnonzero(_starts_visit(events)), len(events.item_ids))
    bounds = [0]
    while bounds[-1] < visits[-1]:
        fits = int(visits[np.searchsorted(visits, bounds[-1] + size, side="right") - 1])
        one = int(visits[np.searchsorted(visits, bounds[-1], side="right")])
        bounds.append(max(fits, one))
    return bounds


def _count(events: TrainingEvents, piece: LogEvents, steps: Int64, once_a_user: bool) -> PairCounts:
    """Count the pairs of a piece."""
    near = piece.places[:, None] + steps
    first, end = events.starts[piece.user_rows], events.stops[piece.user_rows]
    inside = (near >= first[:, None]) & (near < end[:, None])
    if events.targets is not None:
        inside &= events.is_target(near.clip(0, len(events.item_ids)))
    others = events.item_ids[near[inside]].astype(np.int64)
    starts = _starts_visit(piece)
    pairs = np.broadcast_to((np.cumsum(starts) - 1)[:, None], near.shape)[inside]
    width = events.num_items + 1
    if once_a_user:
        keys = np.sort(pairs * width + others)
        pairs, others = np.divmod(keys[np.diff(keys, prepend=-1) != 0], width)
    keys = np.sort(piece.item_ids[starts][pairs] * width + others)
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    return PairCounts(*np.divmod(keys[begins], width), np.diff(begins, append=len(keys)))


def _merge(a: PairCounts, b: PairCounts) -> PairCounts:
    """Return the sum of both counts; `a` has at most one anchor."""
    if len(a.anchors) == 0:
        return b
    anchors, others, counts = (np.concatenate(columns) for columns in zip(a, b, strict=True))
    order = np.lexsort((others, anchors))
    anchors, others, counts = anchors[order], others[order], counts[order]
    begins = np.flatnonzero((np.diff(anchors, prepend=-1) != 0) | (np.diff(others, prepend=-1) != 0))
    return PairCounts(anchors[begins], others[begins], np.add.reduceat(counts, begins))
