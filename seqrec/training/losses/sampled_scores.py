"""Draws and scores of negatives, shared by all sampled objectives.

Shapes: M events, N draws.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.ops import pair_scores
from seqrec.ops.problems import at_least_float32
from seqrec.training.losses.loss import TargetEvents
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.types import SequenceBatch


def draw_negatives(sampler: NegativeSampler, events: TargetEvents, batch: SequenceBatch, scorer: Scorer) -> Negatives:
    """Return negatives for a batch's events; seen items are sorted only if the sampler reads them.

    Draws of items that are not `Scorer.trained` do not count.
    """
    seen = batch.seen if sampler.exclude_seen else None
    negatives = sampler.sample(events.rows, events.targets, seen, scorer.num_items)
    if scorer.trained is None:
        return negatives
    excluded = ~scorer.trained[negatives.item_ids]
    if negatives.shared:
        excluded = excluded.expand(len(batch), -1)
    return replace(negatives, excluded=excluded if negatives.excluded is None else negatives.excluded | excluded)


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
