"""Attention by the compiled CPU library. Letters as in `attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqrec.ops.attention.reference import AttentionProblem
from seqrec.ops.autograd import differentiable
from seqrec.ops.compiled_library import add_parts, call, in_parts
from seqrec.ops.problems import wants_gradient
from seqrec.ops.random import new_seed, threshold_of

# With fewer heads of all rows than this, backward splits the queries of a head among threads. A fixed number, so that
# results do not depend on the number of threads.
TASKS = 16
# Fewest queries of a part.
PART_QUERIES = 256


def _strided(**tensors: Tensor) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return the strides of (B, H, L, P) tensors as fields, and the tensors, with the numbers of a head in a row."""
    tensors = {name: x if x.stride(3) == 1 else x.contiguous() for name, x in tensors.items()}
    axes = ("row", "head", "event")
    return {f"{name}_{axis}": x.stride(i) for name, x in tensors.items() for i, axis in enumerate(axes)}, tensors


def _numbers(query: Tensor, causal: bool, window: int, threshold: int) -> dict[str, int]:
    batch, heads, length, width = query.shape
    parts = 1 if batch * heads >= TASKS else max(1, min(-(-TASKS // (batch * heads)), length // PART_QUERIES))
    sizes = {"batch": batch, "length": length, "heads": heads, "width": width}
    return {**sizes, "causal": int(causal), "window": window, "threshold": threshold, "parts": parts}


def _new_outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    window: int,
    threshold: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    batch, heads, length, width = query.shape
    # Heads are then merged without a copy.
    out = query.new_empty(batch, length, heads, width).transpose(1, 2)
    return out, query.new_empty((batch, heads, 2, length) if keep else 0)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    window: int,
    threshold: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out, statistics = _new_outputs(query, key, value, seed, lengths, causal, window, threshold, keep)
    strides, inputs = _strided(query=query, key=key, value=value)
    numbers = {**_numbers(query, causal, window, threshold), **strides}
    results = {"out": out, "statistics": statistics if keep else None}
    call("attention_forward", numbers, {**inputs, **results, "seed": seed, "lengths": lengths})
    return out, statistics


def _backward(
    dout: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    window: int,
    threshold: int,
    out: Tensor,
    statistics: Tensor,
) -> Tensor:
    strides, inputs = _strided(query=query, key=key, value=value, dout=dout)
    numbers = {**_numbers(query, causal, window, threshold), **strides}
    gradients = _new_gradients(dout, query)
    dquery, *sums = gradients.unbind(2)
    parts = in_parts(sums, numbers["parts"])
    results = {"dquery": dquery, "dkey": parts[0], "dvalue": parts[1], "out": out, "statistics": statistics}
    call("attention_backward", numbers, {**inputs, **results, "seed": seed, "lengths": lengths})
    add_parts(sums, parts)
    return gradients


def _new_gradients(dout: Tensor, query: Tensor, *others: Any) -> Tensor:
    """Allocate the gradients of query, key and value side by side: (B, L, 3, H, P)."""
    batch, heads, length, width = query.shape
    return query.new_empty(batch, length, 3, heads, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.window, ctx.threshold, _ = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, backward: Any, dout: Tensor, dstatistics: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, out, statistics = ctx.saved_tensors
    gradients = backward(dout, *tensors, ctx.causal, ctx.window, ctx.threshold, out, statistics)
    return (*gradients.permute(2, 0, 3, 1, 4), *[None] * 6)


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? seed, Tensor? lengths, bool causal, int window, int threshold"
)
_attention = differentiable(
    "attention_compiled",
    _forward,
    _backward,
    schemas=(
        f"({_INPUTS}, bool keep) -> (Tensor, Tensor)",
        f"(Tensor dout, {_INPUTS}, Tensor out, Tensor statistics) -> Tensor",
    ),
    device_types="cpu",
    new_outputs=_new_outputs,
    new_gradients=_new_gradients,
    setup_context=_setup_context,
    differentiate=_differentiate,
    refusal="the compiled attention has no second derivative; use backend='reference' for it",
)


def attention_compiled(problem: AttentionProblem) -> Tensor:
    """Compute `attention_reference` in float32 on CPU; memory grows with L."""
    query, key, value, causal, dropout, window, lengths, seed = problem
    if not query.numel():
        return value.clone()
    threshold = threshold_of(dropout)
    if threshold and seed is None:
        seed = new_seed()
    keep = wants_gradient((query, key, value))
    out: Tensor = _attention(query, key, value, seed, lengths, causal, window or 0, threshold, keep)[0]
    return out
