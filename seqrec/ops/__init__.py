"""Numerics without parameters: each op has an obvious `reference`, faster backends, and one function that chooses."""

from seqrec.ops.attention import attention
from seqrec.ops.causal_conv1d import causal_conv1d
from seqrec.ops.dropout import dropout
from seqrec.ops.linear import linear
from seqrec.ops.pair_scores import pair_scores
from seqrec.ops.selective_scan import selective_scan
from seqrec.ops.ssd import ssd_scan

__all__ = ["attention", "causal_conv1d", "dropout", "linear", "pair_scores", "selective_scan", "ssd_scan"]
