"""From a trained model to items for users."""

from seqrec.aliases import old_names
from seqrec.inference.loading import load
from seqrec.inference.writer import RecommendationWriter

__all__ = ["RecommendationWriter", "load"]

__getattr__ = old_names(__name__)
