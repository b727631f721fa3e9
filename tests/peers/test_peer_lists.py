"""Metrics of lists equal those of packages that we did not write, on random lists."""

from __future__ import annotations

import json
import math
import subprocess
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import peer_lists
import pytest
import torch
from compare_metrics import peers_python
from peer_lists import ITEMS, USERS, K
from torch.nn.functional import kl_div

from seqrec.data.columns import Column
from seqrec.data.vocabulary import Vocabulary
from seqrec.evaluation.metrics import (
    Calibration,
    Coverage,
    Diversity,
    Gini,
    MeanPopularity,
    RepeatShare,
    UserNovelty,
    column_distance,
    item_codes,
)
from seqrec.types import RaggedItems, Recommendations

# Printed by peer_lists.py with RecTools 0.19.0 and RePlay 0.22.0.
PRINTED = {
    "RecTools": {
        "CatalogCoverage": 0.84,
        "AvgRecPopularity": 12.291666666666666,
        "MeanInvUserFreq": 1.7670709065468966,
        "IntraListDiversity": 1.5133333333333332,
    },
    "RePlay": {"Novelty": 0.7083333333333334, "Surprisal": 0.3320358477305388},
}
# Of the same lists by `GiniIndex.get_gini` and `ItemCoverage.get_coverage` of RecBole 1.2.1, `novelty` and
# `intra_list_similarity` (of the vectors) of recmetrics 0.1.5, which cannot be installed next to the others; and by the
# functions of E. Liu's "Calibrated Recommendations" (ethen8181), without their rounding to three digits.
OTHERS = {
    "RecBole": {"GiniIndex": 0.6506666666666666, "ItemCoverage": 0.84},
    "recmetrics": {"novelty": 1.7670709065468966, "intra_list_similarity": 0.10606246803302395},
    "ethen8181": {"KL": 1.4814463639480844},
}


@pytest.fixture(scope="module")
def given() -> peer_lists.Problem:
    return peer_lists.problem()


@pytest.fixture(scope="module")
def ours(given: peer_lists.Problem) -> dict[str, float]:
    words = Vocabulary(["a", "b", "c", "d"])
    category = Column("categorical", np.array(given.categories, np.uint8), vocabulary=words)
    vectors = Column("vector", np.array(given.vectors, np.float32))
    counts = torch.bincount(torch.tensor([*chain(*given.histories)]), minlength=ITEMS + 1)
    item_ids = torch.tensor(given.lists)
    lists = Recommendations(item_ids, -torch.arange(K).expand(USERS, K).float(), torch.arange(USERS))
    metrics = {
        "Coverage": Coverage(counts, K),
        "Gini": Gini(counts, K),
        "Popularity": MeanPopularity(counts, K),
        "Novelty": UserNovelty(counts, K),
        "Repeats": RepeatShare(K),
        "Diversity": Diversity(column_distance(category, ""), K),
        "Diversity of vectors": Diversity(column_distance(vectors, ""), K),
        "Calibration": Calibration(item_codes(category, ""), K),
    }
    seen = RaggedItems.from_rows([torch.tensor(row) for row in given.histories])
    for name, metric in metrics.items():
        metric.update(lists, **({} if name in ("Coverage", "Gini", "Popularity") else {"seen": seen}))
    return {name: float(metric.compute()) for name, metric in metrics.items()}


@pytest.fixture(scope="module")
def in_our_terms(given: peer_lists.Problem):
    """Return peers' values as ours are defined; the docstrings of our metrics state the differences."""
    events = sum(map(len, given.histories))
    more_bits = math.log2(events / USERS)

    def convert(peers: dict[str, dict[str, float]]) -> dict[tuple[str, str], float]:
        terms = {
            ("RecTools", "CatalogCoverage"): ("Coverage", 1, 0),
            ("RecTools", "AvgRecPopularity"): ("Popularity", 1, 0),
            ("RecTools", "MeanInvUserFreq"): ("Novelty", 1, more_bits),
            # Two different one-hot rows differ in two places.
            ("RecTools", "IntraListDiversity"): ("Diversity", 1 / 2, 0),
            ("RePlay", "Novelty"): ("Repeats", -1, 1),
            ("RePlay", "Surprisal"): ("Novelty", math.log2(USERS), more_bits),
            ("RecBole", "GiniIndex"): ("Gini", ITEMS / (ITEMS - 1), 0),
            ("RecBole", "ItemCoverage"): ("Coverage", 1, 0),
            ("recmetrics", "novelty"): ("Novelty", 1, more_bits),
            ("recmetrics", "intra_list_similarity"): ("Diversity of vectors", -1, 1),
            ("ethen8181", "KL"): ("Calibration", math.log(2), 0),
        }
        pairs = [(peer, name, value) for peer, values in peers.items() for name, value in values.items()]
        found = {}
        for peer, name, value in pairs:
            metric, factor, constant = terms[peer, name]
            found[f"{peer} {name}", metric] = factor * value + constant
        return found

    return convert


@pytest.mark.parametrize("printed", [PRINTED, OTHERS], ids=["RecTools and RePlay", "others"])
def test_metrics_of_lists_equal_what_peers_printed(ours, in_our_terms, printed: dict[str, dict[str, float]]):
    for (peer, metric), value in in_our_terms(printed).items():
        assert ours[metric] == pytest.approx(value, abs=1e-9), peer


def test_gini_and_popularity_equal_the_formulas_of_two_more_peers(given: peer_lists.Problem, ours: dict[str, float]):
    # Elliot 0.3.1, `GiniIndex`, is 1 minus this sum over the items that are recommended, ascending.
    times = sorted(Counter(chain(*given.lists)).values())
    first = 1 + ITEMS - len(times)
    shares = [(2 * place - ITEMS - 1) * number / (USERS * K) for place, number in enumerate(times, start=first)]
    assert ours["Gini"] == pytest.approx(sum(shares) / (ITEMS - 1), abs=1e-9)
    # RecBole 1.2.1, `AveragePopularity`: the mean of the means of the lists.
    events = Counter(chain(*given.histories))
    means = [sum(events[item] for item in row) / K for row in given.lists]
    assert ours["Popularity"] == pytest.approx(sum(means) / USERS, abs=1e-9)


def test_peers_still_print_the_same():
    python = peers_python()
    if python is None:
        pytest.skip("RecTools and RePlay are not here; tests/peers/requirements.txt, then set SEQREC_PEERS_PYTHON")
    script = Path(peer_lists.__file__)
    done = subprocess.run([python, str(script)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == PRINTED.keys()
    for peer, values in PRINTED.items():
        assert found[peer] == pytest.approx(values, abs=1e-12)


def test_calibration_is_the_divergence_of_torch(given: peer_lists.Problem, ours: dict[str, float]):
    codes = torch.tensor(given.categories)

    def shares(items: list[int]) -> torch.Tensor:
        return torch.bincount(codes[items], minlength=5)[1:].double() / len(items)

    values = []
    for history, items in zip(given.histories, given.lists, strict=True):
        wanted = shares(history)
        mixed = 0.99 * shares(items) + 0.01 * wanted
        values.append(float(kl_div(mixed.log(), wanted, reduction="none").nan_to_num().sum()))
    assert ours["Calibration"] == pytest.approx(sum(values) / USERS, abs=1e-9)
