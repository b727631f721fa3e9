from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.types import History, RaggedItems, SeenItems, SequenceBatch


def batch(targets: torch.Tensor | None) -> SequenceBatch:
    history = History(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]))
    seen_events = RaggedItems(torch.tensor([3, 1, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 4, 5]))
    return SequenceBatch(history, targets, torch.tensor([1, 2]), seen_events)


def test_valid_is_true_at_events_and_false_at_padding():
    assert batch(None).history.valid.tolist() == [[True, True, True], [True, False, False]]


def test_last_targets_stand_behind_the_newest_event_of_each_row():
    assert batch(torch.tensor([[2, 3, 9], [8, 0, 0]])).last_targets.tolist() == [9, 8]


def test_length_of_a_batch_is_its_number_of_rows():
    assert len(batch(None)) == 2


def test_moving_and_pinning_reach_every_feature(monkeypatch):
    features = {"rating": torch.zeros(1, 2), "kind": torch.zeros(1, 2, dtype=torch.int64)}
    history = History(torch.tensor([[1, 2]]), torch.tensor([2]), features=features)
    moved = history.to("meta")
    assert moved.features is not None
    assert {name: (one.device.type, one.dtype) for name, one in moved.features.items()} == {
        "rating": ("meta", torch.float32),
        "kind": ("meta", torch.int64),
    }
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 7)
    pinned = history.pin_memory()
    assert pinned.features is not None
    assert pinned.features["kind"].tolist() == [[7, 7]]
    assert history.features is features


def test_moving_reaches_every_tensor_and_keeps_none():
    moved = batch(torch.ones(2, 3, dtype=torch.int64)).to("meta")
    assert moved.targets.device.type == "meta"
    assert moved.history.item_ids.device.type == "meta"
    assert moved.seen_events.offsets.device.type == "meta"
    assert moved.weight.device.type == "meta"
    assert moved.user_ids.device.type == "meta"
    assert moved.history.timestamps is None
    assert batch(None).to("cpu").targets is None


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("cuda",), {"non_blocking": True}),
        ((torch.device("cuda", 1),), {"non_blocking": True}),
        (("cpu",), {}),
        ((torch.float64,), {}),
    ],
    ids=str,
)
def test_nobody_waits_for_a_record_that_moves_to_a_gpu(arguments, asked, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(RaggedItems, "_map", lambda self, *args, **kwargs: calls.append((args, kwargs)))
    RaggedItems.from_rows([torch.tensor([1])]).to(*arguments)
    assert calls == [(("to", *arguments), asked)]


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError, match="item_ids"):
        batch(None).history.item_ids = torch.zeros(1)


def test_seen_are_the_distinct_items_of_the_seen_events():
    seen = batch(None).seen
    assert (seen.item_ids.tolist(), seen.offsets.tolist()) == ([1, 2, 3, 4], [0, 3, 4])
    assert seen.item_ids.dtype == torch.int64


def test_seen_is_made_once_and_anew_where_the_batch_is_moved():
    here = batch(None)
    assert here.seen is here.seen
    moved = here.to("cpu")
    assert moved.seen is not here.seen
    assert torch.equal(moved.seen.item_ids, here.seen.item_ids)


def test_a_row_that_has_seen_nothing_stays_empty():
    history = History(torch.tensor([[1], [2]]), torch.tensor([1, 1]))
    nothing = RaggedItems.from_rows([torch.tensor([], dtype=torch.int64), torch.tensor([5, 5])])
    seen = SequenceBatch(history, None, torch.tensor([1, 2]), nothing).seen
    assert (seen.item_ids.tolist(), seen.offsets.tolist()) == ([5], [0, 0, 1])


def test_a_batch_survives_pickling():
    before = batch(None)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is SequenceBatch
    assert after.seen.item_ids.tolist() == before.seen.item_ids.tolist()


def test_a_batch_weighs_one_unless_told_otherwise():
    weight = batch(None).weight
    assert (weight.shape, weight.dtype, weight.item()) == ((), torch.float32, 1.0)


def test_ragged_rows_lie_behind_each_other():
    rows = [[4, 4], [], [1]]
    ragged = RaggedItems.from_rows([torch.tensor(row, dtype=torch.int64) for row in rows])
    assert (ragged.item_ids.tolist(), ragged.offsets.tolist()) == ([4, 4, 1], [0, 2, 2, 3])
    assert (ragged.counts.tolist(), ragged.rows.tolist()) == ([2, 0, 1], [0, 0, 2])


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=40)


def sets(seen: SeenItems) -> list[list[int]]:
    bounds = seen.offsets.tolist()
    return [seen.item_ids[a:b].tolist() for a, b in pairwise(bounds)]


def from_pairs(events: list[tuple[int, int]], num_rows: int = 5) -> SeenItems:
    rows, item_ids = torch.tensor(events, dtype=torch.int64).reshape(-1, 2).T
    return SeenItems.from_events(rows, item_ids, num_rows)


@settings(deadline=None)
@given(pairs)
def test_seen_items_are_the_distinct_items_of_each_row_in_order(events: list[tuple[int, int]]):
    seen = from_pairs(events)
    expected = [sorted({item for row, item in events if row == r and item > 0}) for r in range(5)]
    assert sets(seen) == expected
    assert seen.counts.tolist() == [len(items) for items in expected]
    assert seen.rows.tolist() == [r for r, items in enumerate(expected) for _ in items]


def test_counts_and_rows_of_seen_items_are_computed_once_and_not_copied_to_a_batch_of_its_own():
    seen = from_pairs([(0, 3), (2, 5)])
    assert seen.counts is seen.counts
    assert seen.rows is seen.rows
    assert vars(seen.to(torch.float64)).keys() == {"item_ids", "offsets"}


def test_items_of_the_largest_catalogues_keep_their_rows():
    largest = 2**40 - 1
    rows, items = torch.tensor([0, 0, 2, 9]), torch.tensor([largest, 1, largest, 2])
    seen = SeenItems.from_events(rows, items, 10)
    assert sets(seen) == [[1, largest], [], [largest], *[[]] * 6, [2]]
