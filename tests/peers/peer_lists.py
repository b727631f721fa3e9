"""Metrics of random lists by RecTools and RePlay themselves, for a Python environment that has these packages.

`python peer_lists.py` prints them as JSON by package; `test_peer_lists.py` says which is which. Imports nothing of
seqrec.
"""

from __future__ import annotations

import json
import random
import warnings
from typing import NamedTuple

USERS, ITEMS, K = 40, 25, 6


class Problem(NamedTuple):
    """Lists of K items of each user, the distinct items of its history, and categories and vectors of the items."""

    lists: list[list[int]]
    histories: list[list[int]]
    categories: list[int]
    vectors: list[list[float]]


def problem() -> Problem:
    """Random lists. Some items are in no history."""
    draw = random.Random(0).random  # the same in all versions of Python
    known = range(1, ITEMS - 2)
    lists = [sorted(range(1, ITEMS + 1), key=lambda item: draw() * item**2)[:K] for _ in range(USERS)]
    histories = [sorted(known, key=lambda _: draw())[: 3 + int(9 * draw())] for _ in range(USERS)]
    categories = [0, *(1 + int(4 * draw()) for _ in range(ITEMS))]
    # Exact in float32.
    vectors = [[0.25, int(8 * draw()) / 4 - 1, int(8 * draw()) / 4 - 1] for _ in range(ITEMS + 1)]
    return Problem(lists, histories, categories, vectors)


def rectools_metrics(given: Problem) -> dict[str, float]:
    """Return RecTools' metrics by its names; the diversity is of one-hot categories."""
    import pandas as pd
    from rectools import metrics
    from rectools.metrics.distances import PairwiseHammingDistanceCalculator

    rows = [(user, item, rank + 1) for user, row in enumerate(given.lists) for rank, item in enumerate(row)]
    recommended = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
    events = [(user, item) for user, row in enumerate(given.histories) for item in row]
    before = pd.DataFrame(events, columns=["user_id", "item_id"])
    one_hot = pd.get_dummies(pd.Series(given.categories[1:], index=range(1, ITEMS + 1))).astype(float)
    diversity = metrics.IntraListDiversity(K, distance_calculator=PairwiseHammingDistanceCalculator(one_hot))
    return {
        "CatalogCoverage": float(metrics.CatalogCoverage(K, normalize=True).calc(recommended, range(1, ITEMS + 1))),
        "AvgRecPopularity": float(metrics.AvgRecPopularity(K).calc(recommended, before)),
        "MeanInvUserFreq": float(metrics.MeanInvUserFreq(K).calc(recommended, before)),
        "IntraListDiversity": float(diversity.calc(recommended)),
    }


def replay_metrics(given: Problem) -> dict[str, float]:
    """Return RePlay's metrics by its names."""
    from replay import metrics

    recommended = {user: [(item, -rank) for rank, item in enumerate(row)] for user, row in enumerate(given.lists)}
    before = dict(enumerate(given.histories))
    found = {}
    for name in ("Novelty", "Surprisal"):
        values = getattr(metrics, name)([K])(recommended, before)
        found[name] = float(values[f"{name}@{K}"])
    return found


def main() -> None:
    """Print both packages' metrics."""
    # Both speak of their optional parts when they are imported.
    warnings.simplefilter("ignore")
    given = problem()
    print(json.dumps({"RecTools": rectools_metrics(given), "RePlay": replay_metrics(given)}))


if __name__ == "__main__":
    main()
