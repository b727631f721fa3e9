"""Softmax cross-entropy against many candidates without holding all of their scores at once.

Shapes: M events, C candidates, D width, B users; m events of one block of scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative
from seqrec.ops.cross_entropy import CrossEntropyProblem, cross_entropy

# Default number of scores held at a time. Blocks of 4 MiB stay in a CPU's cache, and large ones keep a GPU busy.
CPU_CHUNK, DEVICE_CHUNK = 1 << 20, 1 << 25
# By default a block has so many events at least: products of fewer events with many candidates take longer for each.
LEAST_EVENTS = 32
# A target's score next to which all candidates have probability 0 exactly, and so loss and gradients are 0.
CERTAIN = 1e30
NO_SECOND_DERIVATIVE = (
    "chunked softmax losses have no second derivative: call backward or grad without create_graph=True"
)


@dataclass(frozen=True)
class Competitors:
    """The candidates that the targets compete with.

    Attributes:
        vectors: (V, D) table; its rows from `first` on are the C candidates.
        own: (M,) int64, row of `vectors` that is the event's own target, which does not compete with itself; -1 if
            the table lacks it.
        first: First row of `vectors` that is a candidate.
        log_weights: (V,) added to all scores of a candidate; None adds nothing.
        excluded: (B, V) bool, True if a user's candidate does not compete; None excludes none.
        rows: (M,) user row of each event; needed with `excluded`.
    """

    vectors: Tensor
    own: Tensor
    first: int = 0
    log_weights: Tensor | None = None
    excluded: Tensor | None = None
    rows: Tensor | None = None


def chunked_cross_entropy(
    states: Tensor,
    target_scores: Tensor,
    candidates: Competitors,
    *,
    chunk: int | None = None,
    has_target: Tensor | None = None,
) -> Tensor:
    """Return the mean of `-log(exp(target) / (exp(target) + sum over candidates of weight * exp(score)))` over events.

    Scores are computed once, a block of events at a time, together with the gradients, by `seqrec.ops.cross_entropy`.
    Only one block is held, and tensors of the inputs' size.

    Scores have autocast's type if autocast is on and the inputs are float32, else the inputs' type. All sums,
    exponentials and accumulated gradients are at least float32. Without gradient mode only the value is computed.
    Second derivatives raise.

    Args:
        states: (M, D).
        target_scores: (M,) or (M, 1), with their gradient.
        candidates: The targets' competitors; gradients flow to their vectors.
        chunk: Maximum number of scores held at a time, but those of one event at least; None is 2^20 on CPU, 2^25
            elsewhere, but 32 events at least.
        has_target: (M,) bool, False at events that do not count; None counts all.

    Returns:
        Scalar.
    """
    default = CPU_CHUNK if states.device.type == "cpu" else DEVICE_CHUNK
    columns = len(candidates.vectors) - candidates.first
    events = max(1, chunk // columns) if chunk else max(LEAST_EVENTS, default // columns)
    target_scores = target_scores.flatten()
    if has_target is not None:
        target_scores = target_scores.masked_fill(~has_target, CERTAIN)
    arguments = (states, candidates.vectors, target_scores, candidates, events, torch.is_grad_enabled())
    loss: Tensor = _BlockedCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss if has_target is None else loss * (len(has_target) / has_target.sum())


class _BlockedCrossEntropy(torch.autograd.Function):
    """Blocks of events against all candidates; gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        target_scores: Tensor,
        candidates: Competitors,
        events_at_a_time: int,
        with_gradients: bool,
    ) -> Tensor:
        dtype, device = torch.promote_types(states.dtype, vectors.dtype), states.device.type
        if dtype == torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        to_vectors = None
        if with_gradients and ctx.needs_input_grad[1]:
            to_vectors = torch.zeros_like(vectors, dtype=target_scores.dtype)
        problem = CrossEntropyProblem(
            states.to(dtype),
            vectors[candidates.first :].to(dtype),
            target_scores,
            candidates.own - candidates.first,
            block=events_at_a_time,
            to_states=with_gradients and ctx.needs_input_grad[0],
            to_vectors=None if to_vectors is None else to_vectors[candidates.first :],
            log_weights=None if candidates.log_weights is None else candidates.log_weights[candidates.first :],
            excluded=None if candidates.excluded is None else candidates.excluded[:, candidates.first :],
            rows=candidates.rows,
        )
        with torch.autocast(device, enabled=False):
            losses, to_states = cross_entropy(problem)
        ctx.save_for_backward(to_states, to_vectors, losses if with_gradients else None)
        ctx.dtypes = states.dtype, vectors.dtype
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(NO_SECOND_DERIVATIVE)
        to_states, to_vectors, losses = ctx.saved_tensors
        each = gradient / len(losses)
        return (
            None if to_states is None else (to_states * each).to(ctx.dtypes[0]),
            None if to_vectors is None else (to_vectors * each).to(ctx.dtypes[1]),
            torch.expm1(-losses) * each,
            *[None] * 3,
        )
