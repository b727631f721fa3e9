"""Metrics of recommended lists by RecTools and RePlay themselves, for Python environments that have these packages.

`python peer_metrics.py lists.npz ..` prints them as JSON; `compare_metrics.py` calls it and says which is which.
Imports nothing of seqrec.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np


def rectools_metrics(lists: dict[str, np.ndarray], cutoffs: list[int]) -> dict[str, float]:
    """RecTools' metrics by our names; `NDCG@k` as it is by default, `NDCG@k-achievable` where it is told so."""
    import pandas as pd
    from rectools import metrics

    users, items, scores = lists["users"], lists["items"], lists["scores"]
    recommended = pd.DataFrame({"user_id": users, "item_id": items, "score": scores})
    recommended["rank"] = recommended.groupby("user_id")["score"].rank(ascending=False, method="first").astype(int)
    held_out = pd.DataFrame({"user_id": lists["target_users"], "item_id": lists["target_items"]})
    chosen = {}
    for k in cutoffs:
        chosen |= {
            f"HR@{k}": metrics.HitRate(k),
            f"MRR@{k}": metrics.MRR(k),
            f"NDCG@{k}": metrics.NDCG(k),
            f"NDCG@{k}-achievable": metrics.NDCG(k, divide_by_achievable=True),
            f"Precision@{k}": metrics.Precision(k),
            f"Recall@{k}": metrics.Recall(k),
        }
    return {name: float(metric.calc(recommended, held_out)) for name, metric in chosen.items()}


def replay_metrics(lists: dict[str, np.ndarray], cutoffs: list[int]) -> dict[str, float]:
    """RePlay's metrics by our names."""
    import pandas as pd
    from replay import metrics

    users, items, scores = lists["users"], lists["items"], lists["scores"]
    recommended = pd.DataFrame({"query_id": users, "item_id": items, "rating": scores})
    held_out = pd.DataFrame({"query_id": lists["target_users"], "item_id": lists["target_items"]})
    names = {"HR": "HitRate", "MRR": "MRR", "NDCG": "NDCG", "Precision": "Precision", "Recall": "Recall"}
    found = {}
    for name, theirs in names.items():
        values = getattr(metrics, theirs)(cutoffs)(recommended, held_out)
        found |= {f"{name}@{k}": float(values[f"{theirs}@{k}"]) for k in cutoffs}
    return found


def main() -> None:
    """Print both packages' metrics of each file of lists, by its path."""
    # Both speak of their optional parts when they are imported.
    warnings.simplefilter("ignore")
    found = {}
    for path in sys.argv[1:]:
        with np.load(path) as file:
            lists = dict(file)
        cutoffs = lists.pop("cutoffs").tolist()
        found[path] = {"RecTools": rectools_metrics(lists, cutoffs), "RePlay": replay_metrics(lists, cutoffs)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
