"""Draws and scores of negatives, shared by all sampled objectives.

Shapes: M events, N draws, D width; m events of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.ops.autograd import refuse_second_derivative
from seqrec.training.losses.loss import TargetEvents, at_least_float32
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.types import SequenceBatch

# Numbers held at a time, m x N x D: 4 MiB stay in a CPU's cache, and large blocks keep a GPU busy.
CPU_BLOCK, DEVICE_BLOCK = 1 << 20, 1 << 25


def draw_negatives(sampler: NegativeSampler, events: TargetEvents, batch: SequenceBatch, scorer: Scorer) -> Negatives:
    """Return negatives for a batch's events; seen items are sorted only if the sampler reads them."""
    seen = batch.seen if sampler.exclude_seen else None
    return sampler.sample(events.rows, events.targets, seen, scorer.num_items)


def target_scores(events: TargetEvents, scorer: Scorer) -> Tensor:
    """Return the scores (M, 1) of the events' targets."""
    return at_least_float32(scorer.score(events.states, events.targets.unsqueeze(1)))


def negative_scores(events: TargetEvents, negatives: Negatives, scorer: Scorer) -> Tensor:
    """Return the scores (M, N) of the negatives: one matrix product if events share them."""
    if not negatives.shared and negatives.item_ids.shape[1] == 1:
        return at_least_float32(scorer.score(events.states, negatives.item_ids))
    if not negatives.shared:
        vectors, places = scorer.gather(negatives.item_ids)
        return at_least_float32(pair_scores(events.states, vectors, places))
    vectors = scorer.vectors(negatives.item_ids)
    dtype = torch.promote_types(events.states.dtype, vectors.dtype)
    return at_least_float32(events.states.to(dtype) @ vectors.to(dtype).T)


def pair_scores(states: Tensor, vectors: Tensor, item_ids: Tensor) -> Tensor:
    """Score many items for each event, as `Scorer.score` does, without holding their vectors (M, N, D).

    Item vectors are gathered for a block of events at a time, and again in the backward pass. With 256 items an event
    it is more than twice as fast on CPU and takes a twentieth of the memory. A second derivative raises.

    Args:
        states: (M, D).
        vectors: (V, D).
        item_ids: (M, N) rows of `vectors`.

    Returns:
        (M, N) in the wider of the two types.
    """
    scores: Tensor = _PairScores.apply(states, vectors, item_ids)  # type: ignore[no-untyped-call]
    return scores


class _PairScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, item_ids: Tensor) -> Tensor:
        ctx.save_for_backward(states, vectors, item_ids)
        dtype = torch.promote_types(states.dtype, vectors.dtype)
        scores = torch.empty(item_ids.shape, dtype=dtype, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for events, gathered in _gathered(vectors, item_ids):
                block = states[events].to(dtype).unsqueeze(2)
                scores[events] = torch.bmm(gathered.to(dtype), block).squeeze(2)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(
            "scores of sampled negatives have no second derivative: call backward or grad without create_graph=True"
        )
        states, vectors, item_ids = ctx.saved_tensors
        dtype = gradient.dtype
        to_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        to_vectors = torch.zeros_like(vectors, dtype=dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(states.device.type, enabled=False):
            for events, gathered in _gathered(vectors, item_ids):
                part = gradient[events]
                if to_states is not None:
                    to_states[events] = torch.bmm(part.unsqueeze(1), gathered.to(dtype)).squeeze(1)
                if to_vectors is not None:
                    products = part.unsqueeze(2) * states[events].to(dtype).unsqueeze(1)
                    to_vectors.index_add_(0, item_ids[events].flatten(), products.flatten(0, 1))
        return to_states, None if to_vectors is None else to_vectors.to(vectors.dtype), None


def _gathered(vectors: Tensor, item_ids: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of events with their item vectors (m, N, D)."""
    numbers = CPU_BLOCK if vectors.device.type == "cpu" else DEVICE_BLOCK
    size = max(1, numbers // (item_ids.shape[1] * vectors.shape[1]))
    for begin in range(0, len(item_ids), size):
        events = slice(begin, begin + size)
        part = item_ids[events]
        yield events, vectors.index_select(0, part.flatten()).view(*part.shape, -1)
