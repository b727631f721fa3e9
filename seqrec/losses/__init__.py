"""Training objectives."""

from seqrec.losses.base import LOSSES, Loss
from seqrec.losses.bce import BCE
from seqrec.losses.full_softmax import FullSoftmax
from seqrec.losses.gbce import GBCE
from seqrec.losses.in_batch_softmax import InBatchSoftmax
from seqrec.losses.sampled_softmax import SampledSoftmax

__all__ = ["BCE", "GBCE", "FullSoftmax", "InBatchSoftmax", "LOSSES", "Loss", "SampledSoftmax"]
