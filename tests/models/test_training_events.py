from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_events import NUM_ITEMS, logs, training_events, training_histories

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import Synthetic
from seqrec.models.baselines.training_events import TrainingEvents


@settings(max_examples=40, deadline=None)
@given(users=logs, piece=st.integers(1, 9))
def test_pieces_hold_each_training_event_once_in_the_log_s_order(users, piece):
    events = training_events(users, piece_events=piece)
    pieces = list(events.pieces())
    assert all(len(some.places) <= piece for some in pieces)
    found = [pair for some in pieces for pair in zip(some.user_rows.tolist(), some.item_ids.tolist(), strict=True)]
    assert found == [(row, item) for row, history in enumerate(training_histories(users)) for item in history]


@settings(max_examples=40, deadline=None)
@given(users=logs, piece=st.integers(1, 9))
def test_by_item_orders_all_training_events_and_tears_no_item_apart(users, piece):
    events = training_events(users, piece_events=piece)
    parts = list(events.by_item())
    items = [item for part in parts for item in np.unique(part.item_ids).tolist()]
    assert items == sorted(set(items))
    assert all(len(part.item_ids) <= piece or len(set(part.item_ids.tolist())) == 1 for part in parts)
    found = [
        (item, row, place)
        for part in parts
        for item, row, place in zip(part.item_ids.tolist(), part.user_rows.tolist(), part.places.tolist(), strict=True)
    ]
    assert found == sorted(found)
    assert [events.item_ids[place] for _, _, place in found] == [item for item, _, _ in found]
    assert events.item_counts().tolist() == [
        sum(history.count(item) for history in training_histories(users)) for item in range(NUM_ITEMS + 1)
    ]
    assert len(found) == sum(map(len, training_histories(users)))


def test_the_training_part_of_a_store_ends_where_the_split_says(tmp_path: Path):
    data = SequenceDataModule(Synthetic(num_users=9, num_items=12, mean_events=8), store=str(tmp_path / "store"))
    events = TrainingEvents.of(data.store, data.split)
    assert events.stops.tolist() == (data.store.offsets[1:] - 2).tolist()
    assert events.num_items == data.num_items
    np.testing.assert_array_equal(events.item_counts(), data.train_item_counts())
    assert (events.timestamps is None) == (data.store.timestamps is None)


def test_users_without_training_events_are_passed_over():
    events = training_events([([], 0), ([3], 2), ([], 1), ([1, 2, 2], 1), ([], 0)])
    (some,) = events.by_item()
    assert some.user_rows.tolist() == [3, 3]
    assert some.item_ids.tolist() == [1, 2]
