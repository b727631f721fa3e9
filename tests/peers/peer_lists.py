"""Metrics of random lists by packages that we did not write, in float64; `peer_lists.json` has what they return.

    python -m venv peers && peers/bin/pip install -r tests/peers/requirements.txt
    peers/bin/pip install --no-deps ranx rs-metrics recbole cornac lenskit recommenders recmetrics recpack
    PYTHONPATH=code peers/bin/python tests/peers/peer_lists.py tests/peers/peer_lists.json

The file has each package's version. What a package needs besides is printed, as their requirements exclude each other;
packages that cannot be imported keep the values that the file has. `code` has two modules that no package contains:
`li2023` is `evaluation/metrics.py` of liming-7/A-Next-Basket-Recommendation-Reality-Check, and `calibrated_reco` has
the functions of recsys/calibration in ethen8181/machine-learning. Imports nothing of seqrec.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

USERS, ITEMS, K, CATEGORIES = 40, 25, 6, 5
CUTOFFS = (1, 3, K)
SEEDS = range(5)
Values = dict[str, float]


class Problem(NamedTuple):
    """Random lists, each a row of a user.

    Attributes:
        rankings: All items, the best first; the first K are the list.
        scores: The score of each item, from item 1; many are equal.
        histories: Distinct items.
        targets: One to five distinct items.
        categories: One to three categories of each item, from item 1.
        vectors: A vector of each item, from item 1; exact in float32.
    """

    rankings: list[list[int]]
    scores: list[list[int]]
    histories: list[list[int]]
    targets: list[list[int]]
    categories: list[list[int]]
    vectors: list[list[float]]

    @property
    def lists(self) -> list[list[int]]:
        """The first K items of each ranking."""
        return [row[:K] for row in self.rankings]


def problem(seed: int) -> Problem:
    """Return random lists; each of the 25 items is in a history, as some packages refuse unknown items."""
    draw = random.Random(seed).random  # the same in all versions of Python
    items = range(1, ITEMS + 1)

    def some(least: int, most: int, population: range = items) -> list[int]:
        return sorted(population, key=lambda _: draw())[: least + int((most - least + 1) * draw())]

    histories = [sorted({*some(3, 11), 1 + user % ITEMS}) for user in range(USERS)]
    return Problem(
        rankings=[sorted(items, key=lambda item: draw() * item**2) for _ in range(USERS)],
        scores=[[int(8 * draw()) for _ in items] for _ in range(USERS)],
        histories=histories,
        targets=[some(1, 5) for _ in range(USERS)],
        categories=[some(1, 3, range(1, CATEGORIES + 1)) for _ in items],
        vectors=[[0.25, int(8 * draw()) / 4 - 1, int(8 * draw()) / 4 - 1] for _ in items],
    )


def mean(values: Any) -> float:
    """Return the mean over users."""
    values = [float(value) for value in values]
    return math.fsum(values) / len(values)


def frame_of(rows: list[list[int]], user: str = "user_id", item: str = "item_id") -> Any:
    """Return a row for each item of each user, with its place from 1 as `rank`."""
    import pandas as pd

    events = [(number, each, place) for number, row in enumerate(rows) for place, each in enumerate(row, start=1)]
    return pd.DataFrame(events, columns=[user, item, "rank"])


def indicators(given: Problem) -> Any:
    """Return (ITEMS, CATEGORIES) 0 or 1."""
    import numpy as np

    return np.array([[float(word in own) for word in range(1, CATEGORIES + 1)] for own in given.categories])


def rectools(given: Problem) -> Values:
    """RecTools."""
    from rectools import metrics
    from rectools.metrics.distances import PairwiseDistanceCalculator
    from scipy.spatial.distance import jaccard

    class Jaccard(PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> Any:
            return [jaccard(sets[a - 1], sets[b - 1]) for a, b in zip(items_0, items_1, strict=True)]

    sets = indicators(given) > 0
    recommended, before, held_out = map(frame_of, (given.lists, given.histories, given.targets))
    found = {
        "CatalogCoverage": metrics.CatalogCoverage(K, normalize=True).calc(recommended, range(1, ITEMS + 1)),
        "AvgRecPopularity": metrics.AvgRecPopularity(K).calc(recommended, before),
        "MeanInvUserFreq": metrics.MeanInvUserFreq(K).calc(recommended, before),
        "IntraListDiversity": metrics.IntraListDiversity(K, distance_calculator=Jaccard()).calc(recommended),
        "Intersection": metrics.Intersection(K, ref_k=ITEMS).calc(recommended, before),
    }
    for k in CUTOFFS:
        for name in ("HitRate", "MRR", "NDCG", "Precision", "Recall"):
            found[f"{name}@{k}"] = getattr(metrics, name)(k).calc(recommended, held_out)
        achievable = metrics.NDCG(k, divide_by_achievable=True)
        found[f"NDCG, divide_by_achievable@{k}"] = achievable.calc(recommended, held_out)
    return found


def replay(given: Problem) -> Values:
    """RePlay."""
    from replay import metrics

    recommended = {user: [(item, -rank) for rank, item in enumerate(row)] for user, row in enumerate(given.lists)}
    before, held_out = dict(enumerate(given.histories)), dict(enumerate(given.targets))
    found = {}
    for name in ("Novelty", "Surprisal"):
        found[name] = getattr(metrics, name)([K])(recommended, before)[f"{name}@{K}"]
    for name in ("HitRate", "MRR", "NDCG", "Precision", "Recall"):
        found |= getattr(metrics, name)([*CUTOFFS])(recommended, held_out)
    return found


def ranx(given: Problem) -> Values:
    """ranx."""
    from ranx import Qrels, Run, evaluate

    def texts(rows: list[list[int]], value: Callable[[int], float]) -> dict[str, dict[str, float]]:
        return {str(user): {str(item): value(place) for place, item in enumerate(row)} for user, row in enumerate(rows)}

    names = [f"{name}@{k}" for name in ("hit_rate", "mrr", "ndcg", "dcg", "precision", "recall") for k in CUTOFFS]
    run = Run(texts(given.lists, lambda place: float(K - place)))
    found = evaluate(Qrels(texts(given.targets, lambda _: 1)), run, names)
    # The gain of lists of targets alone.
    best = evaluate(Qrels(texts(given.lists, lambda _: 1)), run, names)
    return found | {f"dcg of dcg of the best list@{k}": found[f"dcg@{k}"] / best[f"dcg@{k}"] for k in CUTOFFS}


def rs_metrics(given: Problem) -> Values:
    """rs_metrics."""
    import rs_metrics as metrics

    names = ("hitrate", "mrr", "ndcg", "precision", "recall")
    held_out, recommended = dict(enumerate(given.targets)), dict(enumerate(given.lists))
    found = {f"{name}@{k}": getattr(metrics, name)(held_out, recommended, k=k) for name in names for k in CUTOFFS}
    log = frame_of(given.histories)
    return found | {
        "coverage": metrics.coverage([*range(1, ITEMS + 1)], recommended, k=K),
        "popularity": metrics.popularity(log, recommended, k=K),
        "surprisal": metrics.surprisal(log, recommended, k=K),
    }


def sklearn(given: Problem) -> Values:
    """scikit-learn; scores tie."""
    import numpy as np
    from sklearn.metrics import dcg_score, ndcg_score, roc_auc_score

    is_target = np.zeros((USERS, ITEMS))
    for row, items in zip(is_target, given.targets, strict=True):
        row[[item - 1 for item in items]] = 1
    scores = np.array(given.scores, float)
    places = -np.array([[row.index(item) for item in range(1, ITEMS + 1)] for row in given.rankings], float)
    found = {"roc_auc_score, ties": mean(map(roc_auc_score, is_target, scores))}
    for k in CUTOFFS:
        best = dcg_score(np.ones((1, ITEMS)), np.ones((1, ITEMS)), k=k)
        found |= {
            f"ndcg_score@{k}": ndcg_score(is_target, places, k=k),
            f"ndcg_score, ties@{k}": ndcg_score(is_target, scores, k=k),
            f"dcg_score@{k}": dcg_score(is_target, places, k=k),
            f"dcg_score, ties@{k}": dcg_score(is_target, scores, k=k),
            f"dcg_score of dcg_score of the best list@{k}": dcg_score(is_target, places, k=k) / best,
        }
    return found


def scipy(given: Problem) -> Values:
    """SciPy's statistics: the U test, whose statistic is AUC times pairs, and the divergence."""
    import numpy as np
    from scipy.stats import entropy, mannwhitneyu

    words = indicators(given)
    parts = words / words.sum(1, keepdims=True)
    areas, divergences = [], []
    for scores, items, listed, history in zip(given.scores, given.targets, given.lists, given.histories, strict=True):
        own = [scores[item - 1] for item in items]
        others = [score for item, score in enumerate(scores, start=1) if item not in items]
        areas.append(mannwhitneyu(own, others).statistic / (len(own) * len(others)))
        wanted, reached = (parts[np.array(row) - 1].mean(0) for row in (history, listed))
        divergences.append(entropy(wanted, 0.99 * reached + 0.01 * wanted))
    return {"mannwhitneyu, ties": mean(areas), "entropy": mean(divergences)}


def recbole(given: Problem) -> Values:
    """RecBole, before it rounds."""
    import numpy as np
    from recbole.evaluator import metrics

    np.float = float  # type: ignore[attr-defined]  # NumPy 1.20 took this name out
    config = {"topk": [*CUTOFFS], "metric_decimal_place": 16}
    lists = np.array(given.lists)
    held_out = [set(row) for row in given.targets]
    hits = np.array([[item in own for item in row] for row, own in zip(given.lists, held_out, strict=True)])
    lengths = np.array([len(own) for own in held_out])
    found = {
        "GiniIndex": metrics.GiniIndex(config).get_gini(lists, ITEMS),
        "ItemCoverage": metrics.ItemCoverage(config).get_coverage(lists, ITEMS),
    }
    popularity = metrics.AveragePopularity(config)
    # Sums of whole numbers, cast before they are divided.
    values = popularity.get_pop(lists.astype(float), Counter(chain(*given.histories)))
    found["AveragePopularity"] = popularity.metric_info(values).mean(0)[K - 1]
    for name, needed in (("Hit", 1), ("MRR", 1), ("NDCG", 2), ("Recall", 2), ("Precision", 1)):
        users = getattr(metrics, name)(config).metric_info(*(hits, lengths)[:needed])
        found |= {f"{name}@{k}": users[:, k - 1].mean() for k in CUTOFFS}
    return found


def cornac(given: Problem) -> Values:
    """Cornac."""
    import numpy as np
    from cornac.metrics import AUC

    items = np.arange(1, ITEMS + 1)
    places = [-np.array([row.index(item) for item in items]) for row in given.rankings]
    users = zip(places, given.targets, strict=True)
    return {"AUC": mean(AUC().compute(items, scores, np.array(own)) for scores, own in users)}


def lenskit(given: Problem) -> Values:
    """LensKit."""
    from lenskit.data import ItemList
    from lenskit.metrics.ranking import ListGini

    gini = ListGini(K, items=ITEMS)
    lists = [gini.compute_list_data(ItemList(item_ids=row, ordered=True), None) for row in given.lists]
    return {"ListGini": gini.global_aggregate(lists)}


def recommenders(given: Problem) -> Values:
    """Microsoft's Recommenders."""
    import numpy as np
    import pandas as pd
    from recommenders.evaluation import python_evaluation as evaluation

    before, recommended = (
        frame_of(rows, "userID", "itemID")[["userID", "itemID"]] for rows in (given.histories, given.lists)
    )
    # It refuses items that the user knows, and asks of histories only how often an item is in one.
    before["userID"] += USERS
    vectors = pd.DataFrame({"itemID": range(1, ITEMS + 1), "features": [np.array(row) for row in given.vectors]})
    by_vectors = {"item_feature_df": vectors, "item_sim_measure": "item_feature_vector"}
    return {
        "catalog_coverage": evaluation.catalog_coverage(before, recommended),
        "novelty": evaluation.novelty(before, recommended),
        "diversity": evaluation.diversity(before, recommended, **by_vectors),
    }


def recmetrics(given: Problem) -> Values:
    """recmetrics."""
    import pandas as pd
    from recmetrics import metrics

    vectors = pd.DataFrame(given.vectors, index=range(1, ITEMS + 1))
    return {
        "novelty": metrics.novelty(given.lists, Counter(chain(*given.histories)), USERS, K)[0],
        "intra_list_similarity": metrics.intra_list_similarity(given.lists, vectors),
    }


def recpack(given: Problem) -> Values:
    """RecPack."""
    import numpy as np
    from recpack.metrics import IntraListDiversityK
    from scipy.sparse import csr_matrix

    scores = np.zeros((USERS, ITEMS))
    for own, row in zip(scores, given.lists, strict=True):
        own[np.array(row) - 1] = K - np.arange(K)
    metric = IntraListDiversityK(K)
    metric.fit(csr_matrix(indicators(given) > 0))
    metric.calculate(csr_matrix(np.ones((USERS, ITEMS))), csr_matrix(scores))
    return {"IntraListDiversityK": metric.value}


def li2023(given: Problem) -> Values:
    """The code of Li et al. 2023."""
    from li2023 import get_repeat_explore

    users = zip(given.histories, given.lists, strict=True)
    return {"repeat_ratio": mean(get_repeat_explore(history, row, K)[0] for history, row in users)}


def ethen8181(given: Problem) -> Values:
    """E. Liu's "Calibrated Recommendations", without the rounding to three digits."""
    import calibrated_reco

    calibrated_reco.round = lambda value, _: value

    def shares(items: list[int]) -> dict[int, float]:
        words = [given.categories[item - 1] for item in items]
        films = [SimpleNamespace(genres=dict.fromkeys(own, 1 / len(own))) for own in words]
        return calibrated_reco.compute_genre_distr(films)

    users = zip(given.histories, given.lists, strict=True)
    return {"kl": mean(calibrated_reco.compute_kl_divergence(shares(history), shares(row)) for history, row in users)}


# Each peer by its name, and the package that has its version.
PEERS: dict[str, tuple[Callable[[Problem], Values], str]] = {
    "RecTools": (rectools, "rectools"),
    "RePlay": (replay, "replay-rec"),
    "ranx": (ranx, "ranx"),
    "rs_metrics": (rs_metrics, "rs-metrics"),
    "scikit-learn": (sklearn, "scikit-learn"),
    "SciPy": (scipy, "scipy"),
    "RecBole": (recbole, "recbole"),
    "Cornac": (cornac, "cornac"),
    "LensKit": (lenskit, "lenskit"),
    "Recommenders": (recommenders, "recommenders"),
    "recmetrics": (recmetrics, "recmetrics"),
    "RecPack": (recpack, "recpack"),
    "Li 2023": (li2023, ""),
    "ethen8181": (ethen8181, ""),
}


def main() -> None:
    """Write the values of the peers that are here into the file that the argument names."""
    # Most speak of their optional parts when they are imported.
    warnings.simplefilter("ignore")
    path = Path(sys.argv[1])
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, (peer, package) in PEERS.items():
        try:
            values = [peer(problem(seed)) for seed in SEEDS]
        except ImportError as error:
            print(f"{name} is not here: {error}", file=sys.stderr)
            continue
        version = importlib.metadata.version(package) if package else ""
        by_name = {metric: [float(each[metric]) for each in values] for metric in values[0]}
        found[name] = {"version": version, "values": by_name}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in PEERS if name in found)
    path.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
