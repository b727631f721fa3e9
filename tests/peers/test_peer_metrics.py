from __future__ import annotations

import numpy as np
import pytest
from compare_metrics import PROTOCOLS, all_cases, counterpart, peers_metrics, peers_python

from seqrec.data.sources import Synthetic

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
CASES = pytest.mark.parametrize("case", list(PROTOCOLS))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory):
    # Few events of many items, so that some items are held out alone and unknown in training.
    return all_cases(Synthetic(num_users=60, num_items=150, mean_events=20), tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def theirs(results, tmp_path_factory: pytest.TempPathFactory):
    python = peers_python()
    if python is None:
        pytest.skip("RecTools and RePlay are not here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    return peers_metrics(results[1], python, tmp_path_factory.mktemp("lists"))


@CASES
def test_metrics_equal_those_of_the_lists_counted_naively(case: str, results):
    ours, lists = results[0][case], results[1][case]
    protocol, _ = PROTOCOLS[case]
    totals = dict.fromkeys(ours, 0.0)
    users = np.unique(lists["users"])
    for user in users:
        items = lists["items"][lists["users"] == user].tolist()
        targets = set(lists["target_items"][lists["target_users"] == user].tolist())
        for name in ours:
            totals[name] += naive(name, items, targets, protocol.normaliser)
    assert ours == pytest.approx({name: total / len(users) for name, total in totals.items()}, abs=1e-9)
    assert 0 < ours["HR@10"] < 1


def naive(name: str, items: list[int], targets: set[int], normaliser: str) -> float:
    metric, k = name.split("@")[0], int(name.split("@")[1])
    hits = [item in targets for item in items[:k]]
    gains = 1 / np.log2(np.arange(2, k + 2))
    if metric == "NDCG":
        ideal = k if normaliser == "cutoff" else min(k, len(targets))
        return float((gains * hits).sum() / gains[:ideal].sum())
    return {
        "HR": float(any(hits)),
        "MRR": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "Precision": sum(hits) / k,
        "Recall": sum(hits) / len(targets),
    }[metric]


@CASES
def test_metrics_equal_those_of_rectools_and_replay(case: str, results, theirs):
    ours, normaliser = results[0][case], PROTOCOLS[case][0].normaliser
    assert set(theirs[case]) == {"RecTools", "RePlay"}
    for peer, values in theirs[case].items():
        names = {name: counterpart(name, peer, normaliser) for name in ours}
        missing = [name for name, theirs_name in names.items() if theirs_name is None]
        assert not missing or (peer == "RePlay" and normaliser == "cutoff")
        expected = {name: values[theirs_name] for name, theirs_name in names.items() if theirs_name}
        assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=0, abs=1e-9)
