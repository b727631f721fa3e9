"""Gated delta rule. Shapes: B batch, L events, H heads, K key width, V value width."""

from __future__ import annotations

from torch import Tensor

from seqrec.ops.backends import Backend, Backends
from seqrec.ops.gated_delta.chunked import gated_delta_chunked
from seqrec.ops.gated_delta.reference import (
    GatedDelta,
    GatedDeltaProblem,
    check_operands,
    gated_delta_exported,
    gated_delta_reference,
    gated_delta_step,
    with_padding,
)

__all__ = ["GATED_DELTA_BACKENDS", "gated_delta_rule", "gated_delta_step"]

# In the order in which "auto" prefers them.
GATED_DELTA_BACKENDS: Backends[GatedDelta] = Backends(
    "gated delta rule",
    "SEQREC_GATED_DELTA_BACKEND",
    [Backend("chunked", with_padding(gated_delta_chunked)), Backend("reference", with_padding(gated_delta_reference))],
)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    valid: Tensor | None = None,
    start: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute an associative memory that fades and is corrected (Gated Delta Networks: Improving Mamba2 with Delta
    Rule, Yang, Kautz & Hatamizadeh 2024, equation 10).

    With a = exp(log_decay), b = beta and the state S a (V, K) matrix of each head:
    `S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T`, `y_t = S_t q_t`.
    For a key of norm 1, event t replaces the share b_t of the value that the memory has for it by v_t.
    Causal: y_t depends on events up to t. The recurrence runs in float32 at least, also under autocast.

    Backends, in the order in which "auto" prefers them; both give the same values and gradients:

    - "chunked": plain torch, any device, float32 and float64; matrix products inside chunks (section 3.3 of the paper).
    - "reference": sequential, for tests; the only one with second derivatives. Never "auto".

    float16 and bfloat16 are computed in float32. While `torch.export` traces, "auto" is plain torch, whatever the
    environment variable.

    Args:
        q: (B, L, H, K) queries. They are not scaled.
        k: (B, L, H, K) keys; the state grows where beta times a key's squared norm exceeds 2.
        v: (B, L, H, V) values.
        log_decay: (B, L, H), at most 0.
        beta: (B, L, H) shares that events replace, from 0 to 1 for keys of norm 1.
        initial_state: (B, H, V, K) state before the first event; None is zero.
        return_last_state: Whether to return the state after the last event too. It has a gradient.
        valid: (B, L) bool, True at events, False at padding, which may be anywhere. The state passes through padding
            unchanged, y is 0 there, and the contents of the inputs there have no effect. None is True everywhere.
        start: (B, L) bool, True where a new history begins (packed rows), also at padding: the state before it
            counts as zero. None is False everywhere.
        backend: A name above, or "auto": the environment variable SEQREC_GATED_DELTA_BACKEND if set, else "chunked".

    Returns:
        y (B, L, H, V) in q's dtype; with `return_last_state` also S_L (B, H, V, K) in the recurrence's dtype.

    Raises:
        InputError: if the backend is unknown or cannot compute this, or an argument's shape, device or dtype does not
            fit.

    Example:
        >>> import torch
        >>> from seqrec.ops import gated_delta_rule
        >>> key, ones = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1)
        >>> values = torch.tensor([4.0, 8.0, 0.0]).view(1, 3, 1, 1)
        >>> y = gated_delta_rule(key, key, values, 0 * ones, 0.5 * ones)
        >>> y.flatten().tolist()  # Each event replaces half of the value.
        [2.0, 5.0, 2.5]
    """
    problem = GatedDeltaProblem(q, k, v, log_decay, beta, initial_state, valid, start)
    check_operands(problem._asdict(), "B, L")
    y, last = GATED_DELTA_BACKENDS.compute(problem, backend, exported=gated_delta_exported)
    return (y, last) if return_last_state else y
