"""Attention in plain torch, with its arguments as one object and checks of them. Letters as in `attention`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.dropout import check_share
from seqrec.ops.export import is_exporting
from seqrec.ops.problems import check_shapes
from seqrec.ops.random import kept, new_seed, threshold_of


class AttentionProblem(NamedTuple):
    """Input of a backend; see `attention` for each argument. A backend does not check again."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool = True
    dropout: float = 0.0
    window: int | None = None
    lengths: Tensor | None = None
    seed: Tensor | None = None


Attention = Callable[[AttentionProblem], Tensor]


def check_problem(problem: AttentionProblem) -> None:
    """Check the arguments.

    Raises:
        InputError: if a shape, device, dtype or number does not fit; the message names the argument.
    """
    query = problem.query
    if query.dim() != 4 or not query.shape[1] or not query.shape[3]:
        raise InputError(f"query must be (B, H, L, P) with H and P of at least 1, got {tuple(query.shape)}")
    shape = tuple(query.shape)
    check_shapes(problem._asdict(), dict.fromkeys(("query", "key", "value"), shape), query.device)
    check_share(problem.dropout)
    if problem.window is not None and (problem.window < 1 or not problem.causal):
        raise InputError(f"window={problem.window} must be at least 1, and needs causal=True")
    for name, size, device in (("lengths", query.shape[0], query.device), ("seed", 1, torch.device("cpu"))):
        given = getattr(problem, name)
        if given is not None and (
            given.shape != (size,) or given.dtype != torch.int64 or given.device.type != device.type
        ):
            raise InputError(
                f"{name} must be ({size},) int64 on {device}, got {tuple(given.shape)} {given.dtype} on {given.device}"
            )


def in_window(distance: Tensor, window: int | None) -> Tensor:
    """Return True, which is seen in torch's polarity, where a key is 0 to `window` - 1 events older; None is no end."""
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def attention_torch(problem: AttentionProblem) -> Tensor:
    """Compute `attention` by `torch.nn.functional.scaled_dot_product_attention`, with torch's random numbers."""
    query, key, value, causal, dropout, window, lengths, _ = problem
    if window is not None and window < query.shape[2] and not is_exporting():
        return _in_windows(query, key, value, window, dropout)
    if window is None and (causal or lengths is None):
        # Right padding is in the future of all events, so the causal rule hides it from them.
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    # torch's polarity: True is seen.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=_seen(problem), dropout_p=dropout)


def _in_windows(query: Tensor, key: Tensor, value: Tensor, window: int, dropout: float) -> Tensor:
    """Attend in blocks of `window` queries, each to its own block and the one before, so that memory grows with L."""
    length = query.shape[2]
    blocks = -(-length // window)
    q, k, v = (F.pad(x, (0, 0, 0, blocks * window - length)) for x in (query, key, value))
    first = F.scaled_dot_product_attention(
        q[:, :, :window], k[:, :, :window], v[:, :, :window], dropout_p=dropout, is_causal=True
    )
    q, k, v = (x.view(*x.shape[:2], blocks, window, -1).transpose(1, 2) for x in (q, k, v))
    k, v = (torch.cat([x[:, :-1], x[:, 1:]], 3).flatten(0, 1) for x in (k, v))
    event = torch.arange(-window, window, device=query.device)
    seen = in_window(event[window:].unsqueeze(1) - event, window)
    later = F.scaled_dot_product_attention(q[:, 1:].flatten(0, 1), k, v, attn_mask=seen, dropout_p=dropout)
    later = later.view(len(query), blocks - 1, *later.shape[1:]).transpose(1, 2).flatten(2, 3)
    return torch.cat([first, later], 2)[:, :, :length]


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
    seen = in_window(distance, window) if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if lengths is None else seen & (event < lengths[:, None, None, None])
