"""Ranking metrics."""

from seqrec.metrics.functional import hit_rate, ndcg
from seqrec.metrics.ranking import NDCG, HitRate, RankMetric

__all__ = ["NDCG", "HitRate", "RankMetric", "hit_rate", "ndcg"]
