"""Our metrics of random lists equal those of packages that we did not write; each metric has two such peers."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import peer_lists
import pytest
import torch
from compare_metrics import peers_python
from peer_lists import CATEGORIES, CUTOFFS, ITEMS, PEERS, SEEDS, USERS, K, Problem

from seqrec.data.columns import Column
from seqrec.data.vocabulary import Vocabulary
from seqrec.evaluation.metrics import (
    Calibration,
    Coverage,
    Diversity,
    Gini,
    MeanPopularity,
    Novelty,
    RepeatShare,
    UserListMetric,
    UserNovelty,
    auc,
    column_distance,
    item_codes,
    metric_named,
)
from seqrec.types import JudgedTargets, RaggedItems, Recommendations, TargetRanks

RECORDED = Path(__file__).with_name("peer_lists.json")
TOLERANCE = 1e-9
# What each peer calls our metrics. A number is a factor, and a pair a factor and a constant, that give ours from
# theirs where definitions differ; the docstrings of our metrics state the differences.
MORE_BITS = "log2 of the mean number of events"
SAME = (1.0, 0.0)
LIST_METRICS = {
    "Coverage": {
        "RecTools CatalogCoverage": SAME,
        "RecBole ItemCoverage": SAME,
        "rs_metrics coverage": SAME,
    },
    "Gini": {
        "RecBole GiniIndex": (ITEMS / (ITEMS - 1), 0),
        "LensKit ListGini": (ITEMS / (ITEMS - 1), 0),
    },
    "Popularity": {
        "RecTools AvgRecPopularity": SAME,
        "RecBole AveragePopularity": SAME,
        "rs_metrics popularity": (USERS, 0),
    },
    "Novelty": {
        "Recommenders novelty": SAME,
        "RecTools MeanInvUserFreq": (1, MORE_BITS),
        "recmetrics novelty": (1, MORE_BITS),
        "rs_metrics surprisal": (1, MORE_BITS),
        "RePlay Surprisal": (math.log2(USERS), MORE_BITS),
    },
    "Diversity of categories": {"RecTools IntraListDiversity": SAME, "RecPack IntraListDiversityK": SAME},
    "Diversity of vectors": {"recmetrics intra_list_similarity": (-1, 1), "Recommenders diversity": SAME},
    "Repeats": {"RePlay Novelty": (-1, 1), "RecTools Intersection": SAME, "Li 2023 repeat_ratio": SAME},
    "Calibration": {"ethen8181 kl": (math.log(2), 0), "SciPy entropy": SAME},
    "AUC": {"Cornac AUC": SAME},
    "AUC, ties": {"scikit-learn roc_auc_score, ties": SAME, "SciPy mannwhitneyu, ties": SAME},
}
RANK_METRICS = {
    "HR": ["RecTools HitRate", "RePlay HitRate", "RecBole Hit", "ranx hit_rate", "rs_metrics hitrate"],
    "MRR": ["RecTools MRR", "RePlay MRR", "RecBole MRR", "ranx mrr", "rs_metrics mrr"],
    "Precision": ["RecTools Precision", "RePlay Precision", "RecBole Precision", "ranx precision"],
    "Recall": ["RecTools Recall", "RePlay Recall", "RecBole Recall", "ranx recall", "rs_metrics recall"],
    "NDCG achievable": [
        "RecTools NDCG, divide_by_achievable",
        "RePlay NDCG",
        "RecBole NDCG",
        "ranx ndcg",
        "rs_metrics ndcg",
        "scikit-learn ndcg_score",
    ],
    "NDCG cutoff": [
        "RecTools NDCG",
        "ranx dcg of dcg of the best list",
        "scikit-learn dcg_score of dcg_score of the best list",
    ],
    "NDCG none": ["ranx dcg", "scikit-learn dcg_score"],
}
# Expectations over the orders of tied items; only NDCG has a peer with them.
TIED_METRICS = {"NDCG achievable": ["scikit-learn ndcg_score, ties"], "NDCG none": ["scikit-learn dcg_score, ties"]}


def theirs(seed: int) -> dict[str, float]:
    recorded = json.loads(RECORDED.read_text())
    return {f"{peer} {name}": values[seed] for peer, own in recorded.items() for name, values in own["values"].items()}


def ranked(given: Problem, scores: list[list[int]]) -> JudgedTargets:
    """The targets among all items, by their scores."""
    pairs = [(row, item) for row, items in enumerate(given.targets) for item in items]
    own = [scores[row][item - 1] for row, item in pairs]
    better = [sum(score > mine for score in scores[row]) for (row, _), mine in zip(pairs, own, strict=True)]
    tied = [scores[row].count(mine) - 1 for (row, _), mine in zip(pairs, own, strict=True)]
    return JudgedTargets(
        user_ids=torch.arange(1, USERS + 1),
        history_lengths=torch.tensor([len(row) for row in given.histories]),
        rows=torch.tensor([row for row, _ in pairs]),
        item_ids=torch.tensor([item for _, item in pairs]),
        ranks=TargetRanks(torch.tensor(better), torch.tensor(tied)),
        repeated=torch.tensor([item in given.histories[row] for row, item in pairs]),
    )


def without_ties(given: Problem) -> JudgedTargets:
    return ranked(given, [[-row.index(item) for item in range(1, ITEMS + 1)] for row in given.rankings])


def list_values(given: Problem) -> Iterator[tuple[str, float]]:
    words = Vocabulary([str(word) for word in range(1, CATEGORIES + 1)])
    offsets = np.cumsum([0, 0, *map(len, given.categories)])
    codes = np.array([*chain(*given.categories)], np.uint8)
    categories = Column("categories", codes, 1, words, offsets)
    vectors = Column("vector", np.array([[0, 0, 0], *given.vectors], np.float32))
    counts = torch.bincount(torch.tensor([*chain(*given.histories)]), minlength=ITEMS + 1)
    item_ids = torch.tensor(given.lists)
    lists = Recommendations(item_ids, -torch.arange(K).expand(USERS, K).float(), torch.arange(USERS))
    seen = RaggedItems.from_rows([torch.tensor(row) for row in given.histories])
    for name, metric in [
        ("Coverage", Coverage(counts, K)),
        ("Gini", Gini(counts, K)),
        ("Popularity", MeanPopularity(counts, K)),
        ("Novelty", Novelty(counts, K)),
        ("Novelty", UserNovelty(counts, K)),
        ("Repeats", RepeatShare(K)),
        ("Diversity of categories", Diversity(column_distance(categories, ""), K)),
        ("Diversity of vectors", Diversity(column_distance(vectors, ""), K)),
        ("Calibration", Calibration(item_codes(categories, ""), K)),
    ]:
        metric.update(lists, **({"seen": seen} if isinstance(metric, UserListMetric) else {}))
        yield name, float(metric.compute())
    for name, judged in ("AUC", without_ties(given)), ("AUC, ties", ranked(given, given.scores)):
        yield name, float(auc(judged, ITEMS - judged.counts).mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_of_lists_equal_those_of_two_peers(seed: int):
    given, found = peer_lists.problem(seed), theirs(seed)
    more_bits = math.log2(sum(map(len, given.histories)) / USERS)
    ours = [*list_values(given)]
    assert {name for name, _ in ours} == set(LIST_METRICS)
    for name, value in ours:
        for peer, (factor, constant) in LIST_METRICS[name].items():
            expected = factor * found[peer] + (more_bits if constant == MORE_BITS else constant)
            assert value == pytest.approx(expected, rel=0, abs=TOLERANCE), f"{name}, {peer}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", CUTOFFS)
def test_metrics_of_targets_equal_those_of_two_peers(seed: int, k: int):
    given, found = peer_lists.problem(seed), theirs(seed)
    cases = [(RANK_METRICS, without_ties(given)), (TIED_METRICS, ranked(given, given.scores))]
    for metrics, judged in cases:
        for name, peers in metrics.items():
            title, *normaliser = name.split()
            metric = metric_named(f"{title}@{k}", *normaliser)
            metric.update(judged)
            for peer in peers:
                expected = pytest.approx(found[f"{peer}@{k}"], rel=0, abs=TOLERANCE)
                assert float(metric.compute()) == expected, f"{name}, {peer}"


def test_each_metric_has_two_peers():
    compared = {**RANK_METRICS, **LIST_METRICS}
    compared["AUC"] = [*compared["AUC"], *compared.pop("AUC, ties")]
    for name, metrics in compared.items():
        assert len({next(peer for peer in PEERS if each.startswith(peer)) for each in metrics}) >= 2, name


def test_peers_that_are_here_still_return_the_same(tmp_path: Path):
    python = peers_python()
    if python is None:
        pytest.skip("no peer is here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    file = tmp_path / "found.json"
    script = Path(peer_lists.__file__)
    subprocess.run([python, str(script), str(file)], capture_output=True, text=True, check=True)
    found, recorded = json.loads(file.read_text()), json.loads(RECORDED.read_text())
    assert {"RecTools", "RePlay", "SciPy"} <= found.keys()
    for peer, own in found.items():
        for name, values in own["values"].items():
            assert values == pytest.approx(recorded[peer]["values"][name], rel=0, abs=1e-12), f"{peer} {name}"
