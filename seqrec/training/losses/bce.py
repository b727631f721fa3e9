"""Binary cross-entropy with sampled negatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses.base import Loss, select_events
from seqrec.training.losses.sampled import draw_negatives, negative_scores, target_scores
from seqrec.training.negatives import NegativeSampler, UniformNegatives
from seqrec.types import SequenceBatch


class BCE(Loss):
    """`-log sigmoid(s_target) - mean over negatives of log(1 - sigmoid(s_negative))`, mean over targets.

    With one negative it is SASRec's objective (Self-Attentive Sequential Recommendation, Kang & McAuley 2018,
    equation 7). The mean over negatives is that over all draws of the batch that count; without any it is 0.

    Args:
        negatives: Draws the negatives; None is one uniform item outside the user's training history.
    """

    negatives: NegativeSampler

    def __init__(self, negatives: NegativeSampler | None = None) -> None:
        super().__init__()
        self.negatives = negatives or UniformNegatives()

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """See `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        counted = negatives.counted(events.rows, events.targets)
        costs = F.softplus(negative_scores(events, negatives, scorer)) * counted
        return F.softplus(-target_scores(events, scorer)).mean() + costs.sum() / counted.sum().clamp(min=1)
