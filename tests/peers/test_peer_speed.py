from __future__ import annotations

from pathlib import Path

import pytest
from compare_metrics import peers_python
from compare_recommend import compare, ours
from compare_training import LOSSES
from compare_training import compare as compare_training
from compare_training import ours as train

from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Synthetic

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
SOURCE = Synthetic(num_users=30, num_items=50, mean_events=10)


def test_both_of_our_ways_can_be_timed(tmp_path: Path):
    store = prepare(SOURCE, Filters(), tmp_path / "store")
    seconds = ours(store, tmp_path, top_k=5)
    assert set(seconds) == {"seqrec recommend", "model.recommend"}
    assert min(seconds.values()) > 0


@pytest.mark.parametrize("loss", list(LOSSES))
def test_our_training_counts_each_target_but_the_first_event_of_a_user(tmp_path: Path, loss: str):
    # Three batches, of which the last one is timed.
    source = Synthetic(num_users=300, num_items=50, mean_events=10)
    store = prepare(source, Filters(), tmp_path / "store")
    speed, targets = train(source, tmp_path, loss)
    assert speed > 0
    assert targets == len(store.item_ids) - store.num_users


def test_rectools_recommends_to_the_same_users():
    users = compare(SOURCE, rectools_python(), top_k=5, rounds=1)
    assert set(users) == {"RecTools", "seqrec recommend", "model.recommend"}


def test_rectools_trains_on_the_same_targets():
    source = Synthetic(num_users=300, num_items=50, mean_events=10)
    found, versions = compare_training(source, rectools_python(), rounds=1, steps=1, losses=("BCE",))
    assert min(found["BCE"].values()) > 0
    assert versions["RecTools"]


def rectools_python() -> str:
    python = peers_python()
    if python is None:
        pytest.skip("RecTools is not here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    return python
