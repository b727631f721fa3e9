"""Attention by torch's fused kernels, and by plain torch operations with L x L weights. Letters as in `attention`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.attention.problem import AttentionProblem
from seqrec.ops.random import kept, new_seed, threshold_of


def attention_torch(problem: AttentionProblem) -> Tensor:
    """Compute `attention` by `torch.nn.functional.scaled_dot_product_attention`, with torch's random numbers."""
    query, key, value, causal, dropout, window, lengths, _ = problem
    if window is None and (causal or lengths is None):
        # Right padding is in the future of all events, so the causal rule hides it from them.
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    # torch's polarity: True is seen.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=_seen(problem), dropout_p=dropout)


def attention_reference(problem: AttentionProblem) -> Tensor:
    """Compute `attention` from all L x L weights of each head; `seed` decides the dropped ones."""
    query, key, value, _, dropout, _, _, seed = problem
    batch, heads, length, width = query.shape
    scores = (query @ key.transpose(2, 3)) / math.sqrt(width)
    weights = scores.masked_fill(~_seen(problem), -torch.inf).softmax(-1)
    weights = weights.nan_to_num(0.0) if problem.lengths is not None else weights  # A query that sees no key.
    if dropout:
        threshold, seed = threshold_of(dropout), new_seed() if seed is None else seed
        row = torch.arange(batch * heads * length, device=query.device).view(batch, heads, length, 1)
        mask = kept(seed, row, torch.arange(length, device=query.device), threshold)
        weights = (weights * (65536 / (65536 - threshold))).masked_fill(~mask, 0)
    return weights @ value


def _seen(problem: AttentionProblem) -> Tensor:
    """Return True where a query sees a key, of a shape that broadcasts to (B, H, L, L)."""
    query, _, _, causal, _, window, lengths, _ = problem
    event = torch.arange(query.shape[2], device=query.device)
    distance = event.unsqueeze(1) - event
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance < window)
    return seen if lengths is None else seen & (event < lengths[:, None, None, None])
