"""Baselines to compare encoders with, counted from the training part instead of trained."""

from seqrec.models.baselines.baseline import Baseline
from seqrec.models.baselines.item_knn import ItemKNN
from seqrec.models.baselines.markov import Markov
from seqrec.models.baselines.popularity import Popularity, RecentPopularity
from seqrec.models.baselines.recent_items import RecentItems
from seqrec.models.baselines.training_events import TrainingEvents

__all__ = ["Baseline", "ItemKNN", "Markov", "Popularity", "RecentItems", "RecentPopularity", "TrainingEvents"]
