"""From a trained model to items for users."""

from seqrec.inference.recommend import recommend
from seqrec.inference.writer import RecommendationWriter

__all__ = ["RecommendationWriter", "recommend"]
