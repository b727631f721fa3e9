"""From a trained model to items for users."""

from seqrec.inference.loading import load_recommender
from seqrec.inference.recommend import recommend
from seqrec.inference.writer import RecommendationWriter

__all__ = ["RecommendationWriter", "load_recommender", "recommend"]
