"""Training objectives."""

from seqrec.training.losses.bce import BCE, GBCE
from seqrec.training.losses.full_softmax import FullSoftmax
from seqrec.training.losses.loss import LOSSES, Loss
from seqrec.training.losses.next_targets import NextTargets
from seqrec.training.losses.sampled_softmax import InBatchSoftmax, SampledSoftmax

__all__ = ["BCE", "GBCE", "FullSoftmax", "InBatchSoftmax", "LOSSES", "Loss", "NextTargets", "SampledSoftmax"]
