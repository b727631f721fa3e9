"""Generalised binary cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.training.losses.base import Loss, select_events
from seqrec.training.losses.sampled import draw_negatives, negative_scores, target_scores
from seqrec.training.negatives import NegativeSampler, UniformNegatives
from seqrec.types import SequenceBatch


class GBCE(Loss):
    """`-(log sigmoid(s_target)^beta + sum over negatives of log(1 - sigmoid(s_negative))) / (N + 1)`.

    gSASRec's objective (gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative Sampling,
    Petrov & Macdonald 2023), mean over targets. With alpha = N / (num_items - 1), the share of
    the other items that is drawn, `beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)`, which is computed as
    `1 - t * (1 - alpha)`, and `log sigmoid^beta` as `beta * log sigmoid`, which no score overflows.

    t = 0 gives beta = 1, plain binary cross-entropy; t = 1 gives beta = alpha, whose sigmoids are probabilities
    among all items. Unlike `BCE`, negatives are summed. Draws that do not count add nothing to the sum; N counts them.

    Args:
        negatives: Draws the negatives; None is 256 uniform items for each event, whether the user knows them or not,
            the paper's number.
        t: Calibration, 0..1.

    Raises:
        InputError: `t` out of range; in training, more draws than other items.
    """

    negatives: NegativeSampler

    def __init__(self, negatives: NegativeSampler | None = None, *, t: float = 0.75) -> None:
        super().__init__()
        if not 0 <= t <= 1:
            raise InputError(f"t={t} must be between 0 (not calibrated) and 1 (calibrated)")
        self.negatives = negatives or UniformNegatives(256, exclude_seen=False)
        self.t = t

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """See `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        draws = negatives.item_ids.shape[-1]
        costs = F.softplus(negative_scores(events, negatives, scorer))
        negative = (costs * negatives.counted(events.rows, events.targets)).sum(1)
        positive = F.softplus(-target_scores(events, scorer)).squeeze(1)
        return (self.beta(draws, scorer.num_items) * positive + negative).mean() / (draws + 1)

    def beta(self, draws: int, num_items: int) -> float:
        """Power of the target's sigmoid.

        Args:
            draws: Negatives N of an event.
            num_items: Items of the catalogue.

        Raises:
            InputError: more draws than other items, of which no share can be drawn.
        """
        if draws >= num_items:
            raise InputError(
                f"GBCE draws {draws} negatives, but a target has only {num_items - 1} other items among "
                f"num_items={num_items}; draw fewer, or take FullSoftmax"
            )
        return 1 - self.t * (1 - draws / (num_items - 1))
