"""Draws and scores of negatives, as all sampled objectives need them. Shapes: M events, N draws, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses.base import Events, at_least_float32
from seqrec.training.losses.pair_scores import pair_scores
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.types import SequenceBatch


def draw_negatives(
    sampler: NegativeSampler, events: Events, batch: SequenceBatch, scorer: Scorer
) -> Negatives:
    """Negatives for a batch's events; what users have seen is sorted only where the sampler reads it."""
    seen = batch.seen if sampler.exclude_seen else None
    return sampler.sample(events.rows, events.targets, seen, scorer.num_items)


def target_scores(events: Events, scorer: Scorer) -> Tensor:
    """(M, 1) scores of the events' targets."""
    return at_least_float32(scorer.score(events.states, events.targets.unsqueeze(1)))


def negative_scores(events: Events, negatives: Negatives, scorer: Scorer) -> Tensor:
    """(M, N) scores of the negatives: one matrix product where events share them."""
    if not negatives.shared and negatives.item_ids.shape[1] == 1:
        return at_least_float32(scorer.score(events.states, negatives.item_ids))
    if not negatives.shared:
        vectors, places = scorer.gather(negatives.item_ids)
        return at_least_float32(pair_scores(events.states, vectors, places))
    vectors = scorer.vectors(negatives.item_ids)
    dtype = torch.promote_types(events.states.dtype, vectors.dtype)
    return at_least_float32(events.states.to(dtype) @ vectors.to(dtype).T)
