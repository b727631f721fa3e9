"""One further event of an attention layer, from its input to its output.

Letters: B batch, D width, H heads of width P = D / H, W newest events that a stream keeps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.ops.attention.rotary import rotate
from seqrec.ops.compiled_library import call, contiguous
from seqrec.ops.steps import Stepped, run_step, step_backends


class AttentionStepProblem(NamedTuple):
    """Input, weights and state of an attention layer; a backend does not check them.

    Attributes:
        x: (B, D) input.
        in_weight: (3 D, D): queries, keys, values.
        in_bias: (3 D,).
        out_weight: (D, D).
        out_bias: (D,).
        turns: (P / 2,) int64 of `rotary_turns`; None does not rotate queries and keys.
        keys: (B, H, W, P) of the earlier events, the newest last; slots without an event are not seen.
        values: As `keys`.
        num_events: (B,) int64 earlier events, which may be more than W.
    """

    x: Tensor
    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    turns: Tensor | None
    keys: Tensor
    values: Tensor
    num_events: Tensor


def attention_step(problem: AttentionStepProblem, *, backend: str = "auto") -> Stepped:
    """Compute one further event per row of an attention layer, which attends to itself and to W - 1 older events.

    Backends, in the order in which "auto" prefers them:

    - "cpp": compiled library, float32 on a CPU, without gradients: all of it in one call.
    - "reference": plain torch, any device and dtype, with gradients.

    Args:
        problem: What to compute.
        backend: A name above, or "auto": the environment variable SEQREC_ATTENTION_STEP_BACKEND if set, else the first
            that can compute this.

    Returns:
        The output (B, D), and the keys and values (B, H, W, P) of the newest W events: new tensors.

    Raises:
        InputError: if the backend is unknown, missing or cannot compute this.
    """
    return run_step(problem, backend, ATTENTION_STEP_BACKENDS, attention_step_reference)


def attention_step_reference(p: Any) -> Stepped:
    """Compute `attention_step` in plain torch."""
    heads, window, width = p.keys.shape[1:]
    packed = torch.unflatten(F.linear(p.x, p.in_weight, p.in_bias), 1, (3, heads, 1, width))
    query, key, value = packed.unbind(1)
    if p.turns is not None:
        position = p.num_events[:, None, None]
        query, key = rotate(query, position, p.turns), rotate(key, position, p.turns)
    keys = torch.cat([p.keys, key.to(p.keys.dtype)], 2)[:, :, 1:]
    values = torch.cat([p.values, value.to(p.values.dtype)], 2)[:, :, 1:]
    # torch's polarity: True is seen.
    seen = torch.arange(window, device=p.x.device) >= window - 1 - p.num_events[:, None, None, None]
    mixed = F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), attn_mask=seen)
    return F.linear(mixed.flatten(1), p.out_weight, p.out_bias), keys, values


def attention_step_compiled(p: Any) -> Stepped:
    """Compute `attention_step` in float32 on a CPU by the compiled library, without gradients."""
    tensors = contiguous(**p._asdict())
    out, keys, values = (torch.empty(x.shape) for x in (p.x, p.keys, p.values))
    heads, window, width = p.keys.shape[1:]
    sizes = {"batch": len(p.x), "heads": heads, "head_width": width, "window": window}
    if len(p.x):
        call("attention_step", sizes, {**tensors, "out": out, "next_keys": keys, "next_values": values})
    return out, keys, values


ATTENTION_STEP_BACKENDS = step_backends(
    "step of an attention layer", "SEQREC_ATTENTION_STEP_BACKEND", attention_step_compiled, attention_step_reference
)
