"""Training objectives."""

from seqrec.training.losses.base import LOSSES, Loss
from seqrec.training.losses.bce import BCE
from seqrec.training.losses.full_softmax import FullSoftmax
from seqrec.training.losses.gbce import GBCE
from seqrec.training.losses.in_batch_softmax import InBatchSoftmax
from seqrec.training.losses.sampled_softmax import SampledSoftmax

__all__ = ["BCE", "GBCE", "FullSoftmax", "InBatchSoftmax", "LOSSES", "Loss", "SampledSoftmax"]
