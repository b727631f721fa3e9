"""Cross-entropy against sampled negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses.base import Events, Loss, select_events
from seqrec.training.losses.chunked_cross_entropy import Candidates, chunked_cross_entropy
from seqrec.training.losses.sampled import draw_negatives, negative_scores, target_scores
from seqrec.training.negatives import Negatives, NegativeSampler, UniformNegatives
from seqrec.types import SequenceBatch


class SampledSoftmax(Loss):
    """`-log(exp(s_target) / (exp(s_target) + sum over negatives of exp(s_negative - log(N q))))`, mean over targets.

    With the correction by `log(N q)`, where q is the probability of drawing the negative, the denominator's mean is
    that of the full softmax over the target and all items that can be drawn (Adaptive Importance Sampling to
    Accelerate Training of a Neural Probabilistic Language Model, Bengio & Senecal 2008; On Using Very Large Target
    Vocabulary for Neural Machine Translation, Jean et al. 2015, equation 6). The target is always there and not drawn,
    so its score is not corrected, other than in Jean et al. Draws of the target itself do not count.

    Args:
        negatives: Draws the negatives; None is 256 uniform items that all events share, whether users know them or
            not, so that the full softmax is what is estimated.
        log_q: Whether scores are corrected. False takes them as they are, so that what is drawn often is pushed down
            more.
    """

    negatives: NegativeSampler

    def __init__(self, negatives: NegativeSampler | None = None, *, log_q: bool = True) -> None:
        super().__init__()
        self.negatives = negatives or UniformNegatives(256, exclude_seen=False, shared=True)
        self.log_q = log_q

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """See `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        return sampled_cross_entropy(events, negatives, scorer, log_q=self.log_q)


def sampled_cross_entropy(events: Events, negatives: Negatives, scorer: Scorer, *, log_q: bool) -> Tensor:
    """Mean over events of `SampledSoftmax`'s formula; scores of shared negatives are never all held at once."""
    if negatives.shared:
        candidates = _distinct(events, negatives, scorer, log_q=log_q)
        return chunked_cross_entropy(events.states, target_scores(events, scorer), candidates)
    scores = negative_scores(events, negatives, scorer)
    if log_q:
        scores = scores - _log_expected(negatives).to(scores.dtype)
    scores = scores.masked_fill(~negatives.counted(events.rows, events.targets), -torch.inf)
    positive = target_scores(events, scorer)
    return (torch.cat([positive, scores], dim=1).logsumexp(1) - positive.squeeze(1)).mean()


def _log_expected(negatives: Negatives) -> Tensor:
    """Log of how often each drawn item is expected among the N draws."""
    return negatives.log_probabilities + math.log(negatives.item_ids.shape[-1])


def _distinct(events: Events, negatives: Negatives, scorer: Scorer, *, log_q: bool) -> Candidates:
    """Each item among shared draws once, weighted by how often it was drawn."""
    item_ids, places, times = torch.unique(negatives.item_ids, return_inverse=True, return_counts=True)
    log_weights = times.double().log()
    if log_q:
        # Draws of one item have one probability, so that it does not matter whose stays.
        log_weights -= log_weights.new_zeros(len(item_ids)).index_copy(0, places, _log_expected(negatives))
    excluded = None
    if negatives.excluded is not None:
        excluded = negatives.excluded.new_zeros((len(negatives.excluded), len(item_ids)))
        excluded.index_copy_(1, places, negatives.excluded)
    own = torch.searchsorted(item_ids, events.targets).clamp_(max=len(item_ids) - 1)
    return Candidates(
        scorer.vectors(item_ids),
        own=torch.where(item_ids[own] == events.targets, own, -1),
        log_weights=log_weights.to(events.states.dtype),
        excluded=excluded,
        rows=events.rows,
    )
