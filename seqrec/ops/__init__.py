"""Numerics without parameters: each op has an obvious `reference`, faster backends, and one function that chooses."""

from __future__ import annotations

from typing import Any

from seqrec.ops.attention import ATTENTION_BACKENDS, attention
from seqrec.ops.attention.step import ATTENTION_STEP_BACKENDS
from seqrec.ops.backends import Backends
from seqrec.ops.best_items import BEST_ITEMS_BACKENDS
from seqrec.ops.causal_conv1d import CONV_BACKENDS, causal_conv1d
from seqrec.ops.cross_entropy import CROSS_ENTROPY_BACKENDS
from seqrec.ops.dropout import DROPOUT_BACKENDS, dropout
from seqrec.ops.event_input import EVENT_INPUT_BACKENDS, EventTimes, TableRows, event_input
from seqrec.ops.gated_delta import GATED_DELTA_BACKENDS, gated_delta_rule
from seqrec.ops.linear import LINEAR_BACKENDS, linear
from seqrec.ops.mamba_mixer import MAMBA2_BACKENDS, MAMBA_BACKENDS
from seqrec.ops.mamba_step import MAMBA2_STEP_BACKENDS, MAMBA_STEP_BACKENDS
from seqrec.ops.pair_scores import PAIR_SCORES_BACKENDS, pair_scores
from seqrec.ops.pointwise_attention import POINTWISE_BACKENDS, pointwise_attention
from seqrec.ops.residual_norm import RESIDUAL_NORM_BACKENDS, residual_norm
from seqrec.ops.selective_scan import SCAN_BACKENDS, selective_scan
from seqrec.ops.ssd import SSD_BACKENDS, ssd_scan

__all__ = [
    "EventTimes", "TableRows", "attention", "causal_conv1d", "dropout", "event_input", "gated_delta_rule", "linear",
    "pair_scores", "pointwise_attention", "residual_norm", "selective_scan", "ssd_scan",
]  # fmt: skip

# The backends of every op.
ALL_BACKENDS: tuple[Backends[Any], ...] = (
    SCAN_BACKENDS,
    SSD_BACKENDS,
    GATED_DELTA_BACKENDS,
    CONV_BACKENDS,
    ATTENTION_BACKENDS,
    POINTWISE_BACKENDS,
    DROPOUT_BACKENDS,
    RESIDUAL_NORM_BACKENDS,
    LINEAR_BACKENDS,
    MAMBA_BACKENDS,
    MAMBA2_BACKENDS,
    MAMBA_STEP_BACKENDS,
    ATTENTION_STEP_BACKENDS,
    MAMBA2_STEP_BACKENDS,
    EVENT_INPUT_BACKENDS,
    PAIR_SCORES_BACKENDS,
    CROSS_ENTROPY_BACKENDS,
    BEST_ITEMS_BACKENDS,
)
