"""Attention. Shapes: B batch, H heads, L events, P head width."""

from __future__ import annotations

from torch import Tensor

from seqrec.ops.attention.compiled import attention_compiled
from seqrec.ops.attention.heads import split_heads
from seqrec.ops.attention.reference import (
    Attention,
    AttentionProblem,
    attention_reference,
    attention_torch,
    check_problem,
)
from seqrec.ops.backends import Backend, Backends
from seqrec.ops.compiled_library import compiled_backend

__all__ = ["ATTENTION_BACKENDS", "attention", "split_heads"]

# In the order in which "auto" prefers them.
ATTENTION_BACKENDS: Backends[Attention] = Backends(
    "attention",
    "SEQREC_ATTENTION_BACKEND",
    [
        compiled_backend(attention_compiled),
        Backend(
            "torch",
            attention_torch,
            supports=lambda device, dtype: dtype.is_floating_point,
            unsupported_args=frozenset({"seed"}),
        ),
        Backend("reference", attention_reference),
    ],
)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    dropout: float = 0.0,
    window: int | None = None,
    lengths: Tensor | None = None,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute `dropout(softmax(Q K^T / sqrt(P))) V` (Attention Is All You Need, Vaswani et al. 2017, equation 1).

    Causal: query t sees keys up to t, so right padding never reaches an event. On a CPU sums are in float32 at least,
    also under autocast.

    Backends, in the order in which "auto" prefers them; without dropout all give the same values and gradients:

    - "cpp": compiled library, float32 on CPU: blocks of queries and keys, also with dropout. Memory grows with L, and
      backward draws the dropped weights again. The same bits with any number of threads.
    - "torch": `torch.nn.functional.scaled_dot_product_attention`, any device and dtype. Dropout is drawn from torch's
      generator; on a CPU it then stores L x L weights of each head.
    - "reference": L x L weights in plain torch; draws the dropout of "cpp". The only one with second derivatives
      everywhere. Never "auto".

    Args:
        query: (B, H, L, P).
        key: (B, H, L, P).
        value: (B, H, L, P).
        causal: Whether a query sees no newer keys.
        dropout: Share of weights set to 0, at least 0 and below 1; rounded to a multiple of 1 / 65,536 by "cpp". The
            others are divided by 1 - dropout.
        window: Newest keys that a query sees, its own included; None is all. It needs `causal`.
        lengths: (B,) int64 events of each row, at least 1: newer keys are hidden. None is L. Outputs behind a row's
            events are finite and meaningless.
        seed: (1,) int64 on the CPU, decides which weights are dropped; None draws one from torch's generator of the
            CPU. "torch" takes none.
        backend: A name above, or "auto": the environment variable SEQREC_ATTENTION_BACKEND if set, else the first
            that can compute this.

    Returns:
        (B, H, L, P) in query's dtype.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this, or an argument's shape, device, dtype or
            value does not fit.

    Example:
        >>> import torch
        >>> from seqrec.ops import attention
        >>> value = torch.tensor([1.0, 3.0, 8.0]).view(1, 1, 3, 1)
        >>> attention(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), value).flatten().tolist()
        [1.0, 2.0, 4.0]
        >>> attention(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), value, window=1).flatten().tolist()
        [1.0, 3.0, 8.0]
    """
    problem = AttentionProblem(query, key, value, causal, dropout, window, lengths, seed)
    check_problem(problem)
    given = () if seed is None else ("seed",)
    # Fused kernels of GPUs compute half precision as it is.
    precise = query.device.type == "cpu"
    out: Tensor = ATTENTION_BACKENDS.run(problem, backend, exported=attention_torch, given=given, precise=precise)
    return out.to(query.dtype)
