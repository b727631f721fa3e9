"""Softmax cross-entropy against many candidates without holding all of their scores at once.

Shapes: M events, C candidates, D width, B users; m events of one block of scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative
from seqrec.ops.linear import add_product, linear
from seqrec.training.losses.loss import at_least_float32

# Default number of scores held at a time. Blocks of 4 MiB stay in a CPU's cache, and large ones keep a GPU busy.
CPU_CHUNK, DEVICE_CHUNK = 1 << 20, 1 << 25
# Scores are computed in units of log 2: torch's 2^x takes a quarter of the time of e^x on a CPU.
UNITS = math.log2(math.e)
# By default a block has so many events at least: products of fewer events with many candidates take longer for each.
LEAST_EVENTS = 32
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
    states: Tensor, target_scores: Tensor, candidates: Competitors, *, chunk: int | None = None
) -> Tensor:
    """Return the mean of `-log(exp(target) / (exp(target) + sum over candidates of weight * exp(score)))` over events.

    Scores are computed once, a block of events at a time, together with the gradients: three matrix products in all.
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

    Returns:
        Scalar.
    """
    default = CPU_CHUNK if states.device.type == "cpu" else DEVICE_CHUNK
    columns = len(candidates.vectors) - candidates.first
    events = max(1, chunk // columns) if chunk else max(LEAST_EVENTS, default // columns)
    arguments = (states, candidates.vectors, target_scores.flatten(), candidates, events, torch.is_grad_enabled())
    loss: Tensor = _BlockedCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def _scores(states: Tensor, vectors: Tensor, candidates: Competitors, events: slice) -> Tensor:
    """Return the scores (m, C) of a block in the units of its states; -inf if a candidate does not compete."""
    scores = at_least_float32(linear(states, vectors))
    if candidates.log_weights is not None:
        scores += candidates.log_weights[candidates.first :] * UNITS
    if candidates.excluded is not None:
        assert candidates.rows is not None, "excluded needs rows"
        scores.masked_fill_(candidates.excluded[candidates.rows[events], candidates.first :], -torch.inf)
    # A gather and a scatter: selecting the events that have their target here would make Python wait for the device.
    own = candidates.own[events] - candidates.first
    inside = (own >= 0) & (own < scores.shape[1])
    place = own.clamp(0, scores.shape[1] - 1).unsqueeze(1)
    kept = scores.gather(1, place).masked_fill_(inside.unsqueeze(1), -torch.inf)
    return scores.scatter_(1, place, kept)


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
        table = vectors[candidates.first :].to(dtype)
        losses = torch.empty_like(target_scores)
        to_states = to_vectors = None
        if with_gradients and ctx.needs_input_grad[0]:
            to_states = torch.empty_like(states, dtype=target_scores.dtype)
        if with_gradients and ctx.needs_input_grad[1]:
            to_vectors = torch.zeros_like(vectors, dtype=target_scores.dtype)
        with torch.autocast(device, enabled=False):
            for begin in range(0, len(states), events_at_a_time):
                events = slice(begin, begin + events_at_a_time)
                block = (states[events] * UNITS).to(dtype)
                scores = _scores(block, table, candidates, events)
                own = target_scores[events].unsqueeze(1) * UNITS
                largest = torch.maximum(scores.amax(1, keepdim=True), own)
                weights = scores.sub_(largest).exp2_()
                total = weights.sum(1, keepdim=True) + (own - largest).exp2()
                losses[events] = ((total.log2() + (largest - own)) / UNITS).squeeze(1)
                # Probabilities are weights / total. Dividing the narrow side saves a pass over the block.
                weights = weights.to(dtype)
                if to_states is not None:
                    to_states[events] = at_least_float32(linear(weights, table.T)) / total
                if to_vectors is not None:
                    add_product(to_vectors[candidates.first :], weights, (block / (total * UNITS)).to(dtype))
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
