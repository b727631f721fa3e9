"""Softmax cross-entropy against many candidates whose scores are never all held at once.

Shapes: M events, C candidates, D width, B users; m and c are those of one tile of scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqrec.ops.autograd import refuse_second_derivative
from seqrec.training.losses.base import at_least_float32

# Scores held at a time unless told. Tiles of 4 MiB stay in a CPU's cache, and large ones keep a GPU busy.
CPU_CHUNK, DEVICE_CHUNK = 1 << 20, 1 << 25
# Fewer events than this make products with all candidates slower than making the scores twice.
LEAST_EVENTS = 32
NO_SECOND_DERIVATIVE = (
    "chunked softmax losses have no second derivative: call backward or grad without create_graph=True"
)


@dataclass(frozen=True)
class Candidates:
    """What the targets compete with.

    Attributes:
        vectors: (V, D) table whose rows `first`.. are the C candidates.
        own: (M,) int64, row of `vectors` that is the event's own target, which does not compete with itself; -1
            where no row is.
        first: First row of `vectors` that is a candidate.
        log_weights: (V,) added to all scores of a candidate; None adds nothing.
        excluded: (B, V) bool, True where a user's candidate does not compete; None excludes none.
        rows: (M,) user row of each event; needed with `excluded`.
    """

    vectors: Tensor
    own: Tensor
    first: int = 0
    log_weights: Tensor | None = None
    excluded: Tensor | None = None
    rows: Tensor | None = None


def chunked_cross_entropy(
    states: Tensor, target_scores: Tensor, candidates: Candidates, *, chunk: int | None = None
) -> Tensor:
    """Mean of `-log(exp(target) / (exp(target) + sum over candidates of weight * exp(score)))` over events.

    Where the candidates of `LEAST_EVENTS` events fit into the chunk, scores are made once, a block of events at a
    time, and gradients with them (three matrix products in all). Otherwise scores are made in tiles, once for the
    value and again in the backward pass (four products). Beside tensors of the inputs' size only tiles are held.

    Scores are made in autocast's type where autocast is on and the inputs are float32, otherwise in the inputs'; all
    sums, exponentials and accumulated gradients are float32 at least. Without gradient mode only the value is made.
    Second derivatives raise.

    Args:
        states: (M, D).
        target_scores: (M,) or (M, 1), with their gradient.
        candidates: What the targets compete with; gradients flow to their vectors.
        chunk: Most scores held at a time; None is 2^20 on CPU, 2^25 elsewhere.

    Returns:
        Scalar.
    """
    chunk = chunk or (CPU_CHUNK if states.device.type == "cpu" else DEVICE_CHUNK)
    dtype = _score_dtype(states, candidates.vectors)
    arguments = (states, candidates.vectors, target_scores.flatten(), candidates, chunk, dtype)
    loss: Tensor
    if len(candidates.vectors) - candidates.first <= chunk // min(len(states), LEAST_EVENTS):
        loss = _OnePass.apply(*arguments, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    else:
        loss = _TwoPasses.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss


def _score_dtype(states: Tensor, vectors: Tensor) -> torch.dtype:
    """What matrix products of scores and gradients take."""
    dtype = torch.promote_types(states.dtype, vectors.dtype)
    device = states.device.type
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    for begin in range(start, stop, size):
        yield slice(begin, min(begin + size, stop))


def _scores(states: Tensor, vectors: Tensor, candidates: Candidates, events: slice, columns: slice) -> Tensor:
    """(m, c) scores of a tile, -inf where a candidate does not compete, float32 at least."""
    scores = at_least_float32(states @ vectors.T)
    if candidates.log_weights is not None:
        scores += candidates.log_weights[columns]
    if candidates.excluded is not None:
        assert candidates.rows is not None, "excluded needs rows"
        scores.masked_fill_(candidates.excluded[candidates.rows[events], columns], -torch.inf)
    # A gather and a scatter, where picking the events whose target is in the tile would make Python wait.
    own = candidates.own[events] - columns.start
    inside = (own >= 0) & (own < scores.shape[1])
    place = own.clamp(0, scores.shape[1] - 1).unsqueeze(1)
    kept = scores.gather(1, place).masked_fill_(inside.unsqueeze(1), -torch.inf)
    return scores.scatter_(1, place, kept)


class _OnePass(torch.autograd.Function):
    """Blocks of events against all candidates; gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        target_scores: Tensor,
        candidates: Candidates,
        chunk: int,
        dtype: torch.dtype,
        with_gradients: bool,
    ) -> Tensor:
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
                # Probabilities are weights / total. Dividing the narrow side saves a walk over the tile.
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
            *[None] * 4,
        )


class _TwoPasses(torch.autograd.Function):
    """Tiles of events and candidates, made for the value and again for the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        target_scores: Tensor,
        candidates: Candidates,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.tile = _tile(len(states), chunk)
        ctx.candidates, ctx.dtype = candidates, dtype
        # The target's own weight is added last, so that a sum that is tiny beside it is not lost.
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
            *[None] * 3,
        )


def _tile(events: int, chunk: int) -> tuple[int, int]:
    """Events and candidates of a tile, about as many of the one as of the other."""
    events = min(events, math.isqrt(chunk))
    return events, chunk // events


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to `out`, in place and in its type."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out += left @ right
