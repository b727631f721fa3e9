from __future__ import annotations

from pathlib import Path

import pytest
from compare_metrics import peers_python
from compare_recommend import compare, ours

from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Synthetic

SOURCE = Synthetic(num_users=30, num_items=50, mean_events=10)


def test_both_of_our_ways_can_be_timed(tmp_path: Path):
    store = prepare(SOURCE, Filters(), tmp_path / "store")
    seconds = ours(store, tmp_path, top_k=5)
    assert set(seconds) == {"seqrec recommend", "model.recommend"}
    assert min(seconds.values()) > 0


def test_rectools_recommends_to_the_same_users():
    python = peers_python()
    if python is None:
        pytest.skip("RecTools is not here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    users = compare(SOURCE, python, top_k=5, rounds=1)
    assert set(users) == {"RecTools", "seqrec recommend", "model.recommend"}
