"""Numerics without parameters: each has an obvious `reference`, faster paths and one dispatcher."""

from seqrec.ops.causal_conv1d import causal_conv1d
from seqrec.ops.selective_scan import selective_scan
from seqrec.ops.ssd import ssd_scan

__all__ = ["causal_conv1d", "selective_scan", "ssd_scan"]
