"""Metrics: ranking metrics of targets, and metrics of recommended lists without targets."""

from seqrec.evaluation.metrics.functional import NORMALISERS, hit_rate, mrr, ndcg, precision, recall
from seqrec.evaluation.metrics.lists import Coverage, ListMetric, MeanPopularity, Novelty, list_metrics
from seqrec.evaluation.metrics.ranking import (
    COLD,
    CUTOFFS,
    MRR,
    NDCG,
    WARM,
    HitRate,
    Precision,
    RankMetric,
    Recall,
    RepeatedTargets,
    metric_named,
    ranking_metrics,
)

__all__ = [
    "COLD",
    "CUTOFFS",
    "MRR",
    "NDCG",
    "NORMALISERS",
    "Coverage",
    "HitRate",
    "ListMetric",
    "MeanPopularity",
    "Novelty",
    "Precision",
    "RankMetric",
    "Recall",
    "RepeatedTargets",
    "WARM",
    "hit_rate",
    "list_metrics",
    "metric_named",
    "mrr",
    "ndcg",
    "precision",
    "ranking_metrics",
    "recall",
]
