"""Training objectives."""

from seqrec.losses.base import LOSSES, Loss
from seqrec.losses.bce import BCE

__all__ = ["BCE", "LOSSES", "Loss"]
