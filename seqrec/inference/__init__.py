"""Use a trained model: load it, recommend in bulk or in sessions, export it."""

from seqrec.aliases import old_names
from seqrec.inference.loading import load
from seqrec.inference.writer import RecommendationWriter

__all__ = ["RecommendationWriter", "load"]

__getattr__ = old_names(__name__)
