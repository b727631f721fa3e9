"""Softmax cross-entropy against many candidates without holding all of their scores at once.

Shapes: M events, C candidates, D width, B users; m events and c candidates of one tile of scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative
from seqrec.training.losses.loss import at_least_float32

# Default number of scores held at a time. Tiles of 4 MiB stay in a CPU's cache, and large ones keep a GPU busy.
CPU_CHUNK, DEVICE_CHUNK = 1 << 20, 1 << 25
# With fewer events than this, products with all candidates take longer than computing the scores twice.
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

    If the scores of `LEAST_EVENTS` events fit into the chunk, scores are computed once, a block of events at a time,
    together with the gradients (three matrix products in all). Otherwise they are computed in tiles, once for the
    value and again in the backward pass (four products). Only tiles are held, and tensors of the inputs' size.

    Scores have autocast's type if autocast is on and the inputs are float32, else the inputs' type. All sums,
    exponentials and accumulated gradients are at least float32. Without gradient mode only the value is computed.
    Second derivatives raise.

    Args:
        states: (M, D).
        target_scores: (M,) or (M, 1), with their gradient.
        candidates: The targets' competitors; gradients flow to their vectors.
        chunk: Maximum number of scores held at a time; None is 2^20 on CPU, 2^25 elsewhere.

    Returns:
        Scalar.
    """
    chunk = chunk or (CPU_CHUNK if states.device.type == "cpu" else DEVICE_CHUNK)
    arguments = (states, candidates.vectors, target_scores.flatten(), candidates, chunk)
    loss: Tensor
    if len(candidates.vectors) - candidates.first <= chunk // min(len(states), LEAST_EVENTS):
        loss = _OnePass.apply(*arguments, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    else:
        loss = _TwoPasses.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def _score_dtype(states: Tensor, vectors: Tensor) -> torch.dtype:
    """Return the type of the matrix products of scores and gradients."""
    dtype = torch.promote_types(states.dtype, vectors.dtype)
    device = states.device.type
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for begin in range(start, stop, size):
        yield slice(begin, min(begin + size, stop))


def _scores(states: Tensor, vectors: Tensor, candidates: Competitors, events: slice, columns: slice) -> Tensor:
    """Return the scores (m, c) of a tile, at least float32; -inf if a candidate does not compete."""
    scores = at_least_float32(states @ vectors.T)
    if candidates.log_weights is not None:
        scores += candidates.log_weights[columns]
    if candidates.excluded is not None:
        assert candidates.rows is not None, "excluded needs rows"
        scores.masked_fill_(candidates.excluded[candidates.rows[events], columns], -torch.inf)
    # A gather and a scatter: selecting the events with a target in the tile would make Python wait for the device.
    own = candidates.own[events] - columns.start
    inside = (own >= 0) & (own < scores.shape[1])
    place = own.clamp(0, scores.shape[1] - 1).unsqueeze(1)
    kept = scores.gather(1, place).masked_fill_(inside.unsqueeze(1), -torch.inf)
    return scores.scatter_(1, place, kept)


class _OnePass(torch.autograd.Function):
    """Blocks of events against all candidates; gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        target_scores: Tensor,
        candidates: Competitors,
        chunk: int,
        with_gradients: bool,
    ) -> Tensor:
        dtype = _score_dtype(states, vectors)
        columns = slice(candidates.first, len(vectors))
        table = vectors[columns].to(dtype)
        losses = torch.empty_like(target_scores)
        to_states = to_vectors = None
        if with_gradients and ctx.needs_input_grad[0]:
            to_states = torch.empty_like(states, dtype=target_scores.dtype)
        if with_gradients and ctx.needs_input_grad[1]:
            to_vectors = torch.zeros_like(vectors, dtype=target_scores.dtype)
        with torch.autocast(states.device.type, enabled=False):
            for events in _parts(0, len(states), max(1, chunk // len(table))):
                block = states[events].to(dtype)
                scores = _scores(block, table, candidates, events, columns)
                own = target_scores[events].unsqueeze(1)
                largest = torch.maximum(scores.amax(1, keepdim=True), own)
                weights = scores.sub_(largest).exp_()
                total = weights.sum(1, keepdim=True) + (own - largest).exp()
                losses[events] = (total.log() + (largest - own)).squeeze(1)
                # Probabilities are weights / total. Dividing the narrow side saves a pass over the tile.
                weights = weights.to(dtype)
                if to_states is not None:
                    to_states[events] = at_least_float32(weights @ table) / total
                if to_vectors is not None:
                    _add_product(to_vectors[columns], weights.T, (block / total).to(dtype))
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


class _TwoPasses(torch.autograd.Function):
    """Tiles of events and candidates, computed for the value and again for the gradients."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, vectors: Tensor, target_scores: Tensor, candidates: Competitors, chunk: int
    ) -> Tensor:
        ctx.candidates = candidates
        ctx.dtype = dtype = _score_dtype(states, vectors)
        # About as many events as candidates.
        events_at_a_time = min(len(states), math.isqrt(chunk))
        ctx.tile = events_at_a_time, chunk // events_at_a_time
        # The target's own weight is added last: a much smaller sum would be lost next to it.
        largest, total = target_scores.clone(), torch.zeros_like(target_scores)
        with torch.autocast(states.device.type, enabled=False):
            for columns in _parts(candidates.first, len(vectors), ctx.tile[1]):
                part = vectors[columns].to(dtype)
                for events in _parts(0, len(states), ctx.tile[0]):
                    scores = _scores(states[events].to(dtype), part, candidates, events, columns)
                    before = largest[events]
                    now = torch.maximum(scores.amax(1), before)
                    total[events] *= (before - now).exp_()
                    total[events] += scores.sub_(now.unsqueeze(1)).exp_().sum(1)
                    largest[events] = now
        losses = (total + (target_scores - largest).exp()).log_() + (largest - target_scores)
        ctx.save_for_backward(states, vectors, target_scores, losses)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(NO_SECOND_DERIVATIVE)
        states, vectors, target_scores, losses = ctx.saved_tensors
        candidates, dtype = ctx.candidates, ctx.dtype
        each = gradient / len(losses)
        logs = (losses + target_scores).unsqueeze(1)
        accumulated = target_scores.dtype
        to_states = torch.zeros_like(states, dtype=accumulated) if ctx.needs_input_grad[0] else None
        to_vectors = torch.zeros_like(vectors) if ctx.needs_input_grad[1] else None
        with torch.autocast(states.device.type, enabled=False):
            for columns in _parts(candidates.first, len(vectors), ctx.tile[1]):
                part = vectors[columns].to(dtype)
                to_part = torch.zeros_like(part, dtype=accumulated)
                for events in _parts(0, len(states), ctx.tile[0]):
                    block = states[events].to(dtype)
                    scores = _scores(block, part, candidates, events, columns)
                    weights = scores.sub_(logs[events]).exp_().to(dtype)
                    if to_states is not None:
                        _add_product(to_states[events], weights, part)
                    if to_vectors is not None:
                        _add_product(to_part, weights.T, block)
                if to_vectors is not None:
                    to_vectors[columns] = to_part * each
        return (
            None if to_states is None else (to_states * each).to(states.dtype),
            to_vectors,
            torch.expm1(-losses) * each,
            *[None] * 2,
        )


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `out`, in place and in its type."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out += left @ right
