"""From a trained model to items for users."""

from seqrec.inference.export import export_model
from seqrec.inference.loading import load_recommender
from seqrec.inference.writer import RecommendationWriter

__all__ = ["RecommendationWriter", "export_model", "load_recommender"]
