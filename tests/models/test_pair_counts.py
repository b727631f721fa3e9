from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_events import NUM_ITEMS, logs, naive_pairs, training_events, training_histories

from seqrec.models.baselines.pair_counts import pair_counts, user_counts
from seqrec.models.baselines.training_events import TrainingEvents

steps = st.lists(st.integers(-4, 4).filter(bool), min_size=1, max_size=6, unique=True)


@settings(max_examples=40, deadline=None)
@given(users=logs, steps=steps, once=st.booleans(), piece=st.integers(1, 9), pairs=st.integers(1, 30))
def test_pairs_equal_plain_loops_however_small_the_pieces(users, steps, once, piece, pairs):
    events = training_events(users, piece_events=piece)
    parts = list(pair_counts(events, np.array(steps), once_a_user=once, piece_pairs=pairs))
    keys = [(i, j) for part in parts for i, j in zip(part.anchors.tolist(), part.others.tolist(), strict=True)]
    assert keys == sorted(set(keys))
    counts = [count for part in parts for count in part.counts.tolist()]
    assert Counter(dict(zip(keys, counts, strict=True))) == naive_pairs(users, steps, once_a_user=once)


@settings(max_examples=40, deadline=None)
@given(users=logs, steps=steps, piece=st.integers(1, 9), pairs=st.integers(1, 30))
def test_an_anchor_is_never_torn_apart(users, steps, piece, pairs):
    events = training_events(users, piece_events=piece)
    anchors = [
        anchor
        for part in pair_counts(events, np.array(steps), once_a_user=True, piece_pairs=pairs)
        for anchor in np.unique(part.anchors).tolist()
    ]
    assert len(anchors) == len(set(anchors))


@settings(max_examples=40, deadline=None)
@given(users=logs, piece=st.integers(1, 9))
def test_users_of_an_item_are_counted_once_each(users, piece):
    found = user_counts(training_events(users, piece_events=piece))
    expected = Counter(item for history in training_histories(users) for item in set(history))
    assert found.tolist() == [expected[item] for item in range(NUM_ITEMS + 1)]


@pytest.mark.parametrize("num_users", [1, 10])
def test_long_histories_take_no_more_memory_than_the_pieces(num_users: int):
    length, num_items = 10_000, 2_000
    item_ids = np.random.default_rng(0).integers(1, num_items + 1, num_users * length).astype(np.uint16)
    starts = np.arange(num_users) * length
    events = TrainingEvents(item_ids, None, starts, starts + length, num_items, piece_events=1 << 14)
    steps = np.concatenate([np.arange(-20, 0), np.arange(1, 21)])
    tracemalloc.start()
    total = sum(int(p.counts.sum()) for p in pair_counts(events, steps, once_a_user=False, piece_pairs=1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == num_users * 2 * sum(length - step for step in range(1, 21))
    # All pairs at once would be 400,000 keys of 8 bytes a user, some times over.
    assert peak < 8 << 20
