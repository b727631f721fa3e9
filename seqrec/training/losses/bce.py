"""Binary cross-entropy with sampled negatives, plain and generalised."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.training.losses.loss import Loss, select_events
from seqrec.training.losses.sampled_scores import draw_negatives, negative_scores, target_scores
from seqrec.training.negatives import NegativeSampler, UniformNegatives
from seqrec.types import SequenceBatch


class BCE(Loss):
    """`-log sigmoid(s_target) - mean over negatives of log(1 - sigmoid(s_negative))`, mean over targets.

    With one negative it is SASRec's objective (Self-Attentive Sequential Recommendation, Kang & McAuley 2018,
    equation 7). The mean over negatives is over all draws of the batch that count; it is 0 if none counts.

    Args:
        negatives: Draws the negatives; None is one uniform item outside the user's training history.

    Example:
        >>> from seqrec import BCE, SASRec
        >>> model = SASRec(num_items=100, d_model=16, max_length=50, loss=BCE())
        >>> model.loss.negatives.num_negatives
        1
    """

    negatives: NegativeSampler

    def __init__(self, negatives: NegativeSampler | None = None) -> None:
        super().__init__()
        self.negatives = negatives or UniformNegatives()

    @property
    def takes_padding(self) -> bool:
        """Whether the draws' number does not depend on the batch; see `Loss.takes_padding`."""
        return self.negatives.takes_padding

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """Return the mean over the batch's targets; see `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        counted = events.counted(negatives)
        costs = F.softplus(negative_scores(events, negatives, scorer)) * counted
        positive = F.softplus(-target_scores(events, scorer)).squeeze(1)
        return events.mean(positive) + costs.sum() / counted.sum().clamp(min=1)


class GBCE(Loss):
    """`-(log sigmoid(s_target)^beta + sum over negatives of log(1 - sigmoid(s_negative))) / (N + 1)`.

    This is gSASRec's objective (gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling, Petrov & Macdonald 2023), mean over targets. With alpha = N / (num_items - 1), the share of the other
    items that is drawn, `beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)`. It is computed as `1 - t * (1 - alpha)`,
    and `log sigmoid^beta` as `beta * log sigmoid`, which no score overflows.

    t = 0 gives beta = 1, plain binary cross-entropy. t = 1 gives beta = alpha, for which the sigmoids are
    probabilities among all items. Negatives are summed, unlike in `BCE`. Draws that do not count add nothing to the
    sum, but N includes them.

    Args:
        negatives: Draws the negatives; None is the paper's 256 uniform items for each event, seen or not.
        t: Calibration, 0..1.

    Raises:
        InputError: if `t` is out of range; in training, if there are more draws than other items.

    Example:
        >>> from seqrec import GBCE
        >>> round(GBCE(t=0.75).beta(draws=256, num_items=10_001), 4)
        0.2692
    """

    negatives: NegativeSampler

    def __init__(self, negatives: NegativeSampler | None = None, *, t: float = 0.75) -> None:
        super().__init__()
        if not 0 <= t <= 1:
            raise InputError(f"t={t} must be between 0 (not calibrated) and 1 (calibrated)")
        self.negatives = negatives or UniformNegatives(256, exclude_seen=False)
        self.t = t

    @property
    def takes_padding(self) -> bool:
        """Whether the draws' number does not depend on the batch; see `Loss.takes_padding`."""
        return self.negatives.takes_padding

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """Return the mean over the batch's targets; see `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        draws = negatives.item_ids.shape[-1]
        costs = F.softplus(negative_scores(events, negatives, scorer))
        negative = (costs * events.counted(negatives)).sum(1)
        positive = F.softplus(-target_scores(events, scorer)).squeeze(1)
        return events.mean(self.beta(draws, scorer.num_items) * positive + negative) / (draws + 1)

    def beta(self, draws: int, num_items: int) -> float:
        """Return the power of the target's sigmoid for N draws of an event.

        Raises:
            InputError: if there are more draws than other items; their share would be above 1.
        """
        if draws >= num_items:
            raise InputError(
                f"GBCE draws {draws} negatives, but a target has only {num_items - 1} other items among "
                f"num_items={num_items}; draw fewer, or use FullSoftmax"
            )
        return 1 - self.t * (1 - draws / (num_items - 1))
