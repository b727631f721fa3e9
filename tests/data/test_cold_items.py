"""Hidden items occur in no training batch, and evaluation is that of the other split."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from seqrec import ColdItems, EventStore, Filters, GlobalTime, InputError, LastN, Protocol, Synthetic, prepare
from seqrec.data.cold_items import without_items
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.item_counts import training_item_counts
from seqrec.data.windows import StridedWindows
from seqrec.models import TrainingEvents
from seqrec.models.baselines.pair_counts import pair_counts

LOG = Synthetic(num_users=60, num_items=50, mean_events=30, seed=4)


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    return prepare(LOG, Filters(min_user_events=5), tmp_path / "store")


def data_of(store: EventStore, **arguments: object) -> SequenceDataModule:
    return SequenceDataModule(
        LOG, store=str(store.directory), filters=Filters(min_user_events=5), max_length=12, batch_size=8, **arguments
    )


def test_no_training_batch_contains_a_hidden_item_and_all_other_events_stay(store: EventStore):
    split = ColdItems(0.2, seed=1)
    hidden = split.hidden_items(store)
    assert hidden.sum() == round(0.2 * np.count_nonzero(training_item_counts(store, split.split)))
    stops = split.history_stops(store, "train")
    expected = []
    for first, stop in zip(np.asarray(store.offsets)[:-1], stops, strict=True):
        kept = [int(item) for item in store.item_ids[first:stop] if not hidden[item]]
        expected += list(pairwise(kept))
    pairs = []
    for batch in data_of(store, split=split, train_windows=StridedWindows()).train_dataloader():
        valid = batch.history.valid
        pairs += list(zip(batch.history.item_ids[valid].tolist(), batch.targets[valid].tolist(), strict=True))
        assert not hidden[batch.history.item_ids].any()
        assert not hidden[batch.seen_events.item_ids].any()
        times = batch.history.timestamps
        assert (times[:, 1:] >= times[:, :-1])[valid[:, 1:]].all()
    assert sorted(pairs) == sorted(expected)


def test_users_keep_their_rows_and_times(store: EventStore):
    hidden = ColdItems(0.3).hidden_items(store)
    block, stops = without_items(store, hidden, np.asarray(store.offsets)[1:] - 2)
    assert len(block.offsets) == store.num_users + 1
    for user in range(store.num_users):
        first, last = store.offsets[user], store.offsets[user + 1]
        kept = ~hidden[store.item_ids[first:last]]
        own = slice(block.offsets[user], block.offsets[user + 1])
        assert np.array_equal(block.item_ids[own], store.item_ids[first:last][kept])
        assert np.array_equal(block.timestamps[own], store.timestamps[first:last][kept])
        assert stops[user] == block.offsets[user] + kept[:-2].sum()


def test_targets_of_a_filter_stay_targets(store: EventStore):
    split = ColdItems(0.3)
    data = data_of(store, split=split, targets="item_id % 2 = 0")
    hidden = split.hidden_items(store)
    batches = list(data.train_dataloader())
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    external = np.asarray(store.item_vocabulary.external_ids(targets[targets > 0].numpy()))
    assert len(external)
    assert not (external % 2).any()
    for batch in batches:
        assert not hidden[batch.history.item_ids].any()
    # Items that are only context occur in training, too.
    assert np.array_equal(data.trained_items(), training_item_counts(store, split) > 0)
    assert not (data.train_item_counts() > 0)[1:][
        np.asarray(store.item_vocabulary.external_ids(np.arange(1, store.num_items + 1))) % 2 == 1
    ].any()


def test_the_choice_depends_on_seed_and_log_alone(store: EventStore):
    hidden = ColdItems(0.1, seed=2).hidden_items(store)
    assert np.array_equal(hidden, ColdItems(0.1, seed=2).hidden_items(store))
    assert not np.array_equal(hidden, ColdItems(0.1, seed=3).hidden_items(store))
    assert np.array_equal(data_of(store, split=ColdItems(0.1, seed=2), seed=9).hidden_items, hidden)


def test_evaluation_is_that_of_the_other_split(store: EventStore):
    plain, cold = data_of(store, split=LastN(2)), data_of(store, split=ColdItems(0.2, split=LastN(2)))
    for one, other in (
        (plain.val_dataloader(), cold.val_dataloader()),
        (plain.test_dataloader(), cold.test_dataloader()),
    ):
        for a, b in zip(one, other, strict=True):
            assert a.history.item_ids.equal(b.history.item_ids)
            assert a.held_out.item_ids.equal(b.held_out.item_ids)
    assert cold.split.several_targets
    assert not cold.split.prequential
    assert ColdItems(split=GlobalTime(prequential=True)).prequential


def test_counts_and_baselines_leave_hidden_items_out(store: EventStore):
    split = ColdItems(0.2)
    hidden = split.hidden_items(store)
    counts = training_item_counts(store, split)
    assert np.array_equal(counts, np.where(hidden, 0, training_item_counts(store, split.split)))
    events = TrainingEvents.of(store, split)
    assert np.array_equal(events.item_counts(), counts)
    assert np.array_equal(data_of(store, split=split).train_item_counts(), counts)
    # Items around a hidden one are each other's neighbours, as they are in training windows.
    found = {
        (int(anchor), int(other)): int(count)
        for pairs in pair_counts(events, np.ones(1, np.int64), once_a_user=False)
        for anchor, other, count in zip(*pairs, strict=True)
    }
    expected: Counter[tuple[int, int]] = Counter()
    for begin, stop in zip(store.offsets[:-1], split.history_stops(store, "train"), strict=True):
        expected.update(pairwise(item for item in store.item_ids[begin:stop].tolist() if not hidden[item]))
    assert found == expected


def test_the_protocol_states_the_hidden_items():
    split = ColdItems(0.05, seed=7)
    protocol = Protocol().on(split, "by time")
    assert protocol.id == "full-seenout-tiemean-loo-cold0.05seed7"
    assert protocol.describe()["split"]["share"] == 0.05
    with pytest.raises(InputError, match=r"judges by the split loo-cold0\.05seed7, but the data is divided by loo"):
        protocol.on(ColdItems(0.1).split, "by time")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, r"share=0\.0 must be above 0 and below 1"),
        ({"share": 1.0}, r"share=1\.0 must be above 0"),
        ({"split": ColdItems()}, r"split of ColdItems hides items itself"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        ColdItems(**arguments)


def test_a_share_that_leaves_nothing_is_refused(store: EventStore):
    with pytest.raises(InputError, match=r"share=0\.999 would hide all"):
        ColdItems(0.999).hidden_items(store)
