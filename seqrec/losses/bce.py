"""Binary cross-entropy with sampled negatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seqrec.losses.base import LOSSES, Loss
from seqrec.negatives import NegativeSampler, UniformNegatives
from seqrec.scoring import Scorer
from seqrec.types import SequenceBatch


@LOSSES.register("BCE")
class BCE(Loss):
    """`-log sigmoid(s_target) - mean over negatives of log(1 - sigmoid(s_negative))`, mean over targets.

    With one negative it is SASRec's objective (Kang & McAuley 2018, equation 7).

    Args:
        negatives: Draws the negatives; None is one uniform item outside the user's training history.
    """

    def __init__(self, negatives: NegativeSampler | None = None) -> None:
        super().__init__()
        self.negatives = negatives or UniformNegatives()

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """See `Loss.forward`."""
        assert batch.targets is not None
        rows, positions = batch.history.valid.nonzero(as_tuple=True)
        valid_states, targets = states[rows, positions], batch.targets[rows, positions]
        positive = scorer.score(valid_states, targets.unsqueeze(1))
        negative = scorer.score(valid_states, self.negatives.sample(rows, batch.seen, scorer.num_items))
        return F.softplus(-positive).mean() + F.softplus(negative).mean()
