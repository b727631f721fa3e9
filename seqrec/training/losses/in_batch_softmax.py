"""Cross-entropy against the batch's other targets."""

from __future__ import annotations

from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses.base import Loss, select_events
from seqrec.training.losses.sampled import draw_negatives
from seqrec.training.losses.sampled_softmax import sampled_cross_entropy
from seqrec.training.negatives import InBatchNegatives, MixedNegatives, NegativeSampler
from seqrec.types import SequenceBatch


class InBatchSoftmax(Loss):
    """`SampledSoftmax` whose negatives are the targets of the batch's other events.

    The correction is that of Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations (Yi et al.
    2019, section 3), with two differences: q is an item's share of training events, where they estimate it from the
    stream; and the event's own target, which is there for certain, is not corrected, which Khrylchenko et al. 2025
    (Correcting the LogQ Correction) show to bias the original. Other events with the same target are no negatives.

    Items that are no target of the batch are not pushed down; `extra` draws such too.

    Args:
        extra: Draws further negatives, shared by all events, that together with the batch's targets count as draws of
            one mixture (Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations, Yang et
            al. 2020); None draws none.
        log_q: Whether scores are corrected by the log-probability of being drawn.
        exclude_seen: Whether items of the user's training history are left out; `extra` must say the same.

    Raises:
        InputError: `extra` is not shared, or says otherwise about seen items.
    """

    negatives: NegativeSampler

    def __init__(
        self, extra: NegativeSampler | None = None, *, log_q: bool = True, exclude_seen: bool = False
    ) -> None:
        super().__init__()
        self.extra = extra
        self.log_q = log_q
        self.exclude_seen = exclude_seen
        in_batch = InBatchNegatives(exclude_seen=exclude_seen)
        self.negatives = in_batch if extra is None else MixedNegatives([in_batch, extra])

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """See `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        return sampled_cross_entropy(events, negatives, scorer, log_q=self.log_q)
