"""Cross-entropy against sampled negatives or the batch's other targets."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.ops.problems import at_least_float32
from seqrec.training.losses.chunked_cross_entropy import Competitors, chunked_cross_entropy
from seqrec.training.losses.loss import Loss, TargetEvents, select_events
from seqrec.training.losses.next_targets import NextTargets
from seqrec.training.losses.sampled_scores import draw_negatives, negative_scores, target_scores
from seqrec.training.negatives import InBatchNegatives, MixedNegatives, Negatives, NegativeSampler, UniformNegatives
from seqrec.types import SequenceBatch

# A score whose exponential is 0.
NEVER = -1e30


class SampledSoftmax(Loss):
    """`-log(exp(s_target) / (exp(s_target) + sum over negatives of exp(s_negative - log(N q))))`, mean over targets.

    The correction is `log(N q)` with q the probability of drawing the negative. With it, the denominator's mean is
    that of the full softmax over the target and all items that can be drawn (Adaptive Importance Sampling to
    Accelerate Training of a Neural Probabilistic Language Model, Bengio & Senecal 2008; On Using Very Large Target
    Vocabulary for Neural Machine Translation, Jean et al. 2015, equation 6). The target's score is not corrected,
    because the target is always in the sum and never drawn. Draws of it do not count.

    Jean et al., TensorFlow Recommenders and Merlin correct the target's score too, which biases the loss (Correcting
    the LogQ Correction, Khrylchenko et al. 2025). `log_q_target` does the same, to compare curves with theirs:
    `s_target` becomes `s_target - log(N q_target)` in both places of the formula.

    Args:
        negatives: Draws the negatives; None is 256 uniform items that all events share, seen or not, which estimates
            the full softmax.
        log_q: Whether scores of negatives are corrected. If False, items that are drawn often are pushed down more.
        log_q_target: Whether the target's score is corrected as well.
        next_targets: Further positives of each position, each of which competes with the negatives alone; None is only
            the next event. Scores (M, N) of M positions and N draws are then held, also of shared draws.

    Raises:
        InputError: if `log_q_target` is set without `log_q`, or with `next_targets`.

    Example:
        >>> from seqrec import SASRec, SampledSoftmax, UniformNegatives
        >>> loss = SampledSoftmax(UniformNegatives(64, exclude_seen=False, shared=True))
        >>> SASRec(num_items=100, d_model=16, max_length=50, loss=loss).loss.negatives.num_negatives
        64
    """

    negatives: NegativeSampler

    def __init__(
        self,
        negatives: NegativeSampler | None = None,
        *,
        log_q: bool = True,
        log_q_target: bool = False,
        next_targets: NextTargets | None = None,
    ) -> None:
        super().__init__()
        if log_q_target and not log_q:
            raise InputError("log_q_target=True corrects the target's score like the negatives'; set log_q=True too")
        if log_q_target and next_targets is not None:
            raise InputError("log_q_target=True corrects the score of one target: leave it out, or next_targets")
        self.negatives = negatives or UniformNegatives(256, exclude_seen=False, shared=True)
        self.log_q = log_q
        self.log_q_target = log_q_target
        self.next_targets = next_targets

    @property
    def takes_padding(self) -> bool:
        """Whether sizes of draws and positives do not depend on the batch; see `Loss.takes_padding`."""
        return self.negatives.takes_padding and self.next_targets is None

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """Return the mean over the batch's targets; see `Loss.forward`."""
        events = select_events(states, batch)
        negatives = draw_negatives(self.negatives, events, batch, scorer)
        if self.next_targets is not None:
            positives = self.next_targets.positives(events, batch)
            return _cross_entropy_of_several(events, positives, negatives, scorer, log_q=self.log_q)
        positive = target_scores(events, scorer)
        if self.log_q_target:
            positive = positive - self._log_expected_targets(events, negatives, batch, scorer).to(positive.dtype)
        return sampled_cross_entropy(events, positive, negatives, scorer, log_q=self.log_q)

    def _log_expected_targets(
        self, events: TargetEvents, negatives: Negatives, batch: SequenceBatch, scorer: Scorer
    ) -> Tensor:
        """Return the log (M, 1) of how often each target is expected among the N draws, as if it were unseen."""
        targets = events.targets if negatives.shared else events.targets.unsqueeze(1)
        seen = batch.seen if self.negatives.exclude_seen else None
        logs = self.negatives.log_probabilities(targets, events.rows, seen, scorer.num_items)
        return logs.view(-1, 1) + math.log(negatives.item_ids.shape[-1])


class InBatchSoftmax(SampledSoftmax):
    """`SampledSoftmax` with the targets of the batch's other events as negatives.

    The correction is from Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations (Yi et al.
    2019, section 3), with two differences. q is an item's share of training events, which they estimate from the
    stream. The event's own target is not corrected, because it is always in the sum; Khrylchenko et al. 2025
    (Correcting the LogQ Correction) show that correcting it biases the original. Other events with the same target
    are no negatives. Items that are no target of the batch are pushed down only if `extra` draws them.

    Args:
        extra: Draws further negatives, shared by all events. With the batch's targets they count as draws of one
            mixture (Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations, Yang et al.
            2020). None draws none.
        log_q: Whether scores are corrected by the log-probability of being drawn.
        log_q_target: Whether the event's own target is corrected too, as Yi et al. do.
        exclude_seen: Whether items of the user's training history are left out; must equal that of `extra`.
        next_targets: As of `SampledSoftmax`.

    Raises:
        InputError: if `extra` is not shared or has another `exclude_seen`, or `SampledSoftmax` refuses.

    Example:
        >>> from seqrec import InBatchSoftmax, UniformNegatives
        >>> extra = UniformNegatives(128, exclude_seen=False, shared=True)
        >>> InBatchSoftmax(extra).negatives.num_draws(num_positions=200)
        328
    """

    def __init__(
        self,
        extra: NegativeSampler | None = None,
        *,
        log_q: bool = True,
        log_q_target: bool = False,
        exclude_seen: bool = False,
        next_targets: NextTargets | None = None,
    ) -> None:
        in_batch = InBatchNegatives(exclude_seen=exclude_seen)
        negatives = in_batch if extra is None else MixedNegatives([in_batch, extra])
        super().__init__(negatives, log_q=log_q, log_q_target=log_q_target, next_targets=next_targets)
        self.extra = extra
        self.exclude_seen = exclude_seen


def sampled_cross_entropy(
    events: TargetEvents, positive: Tensor, negatives: Negatives, scorer: Scorer, *, log_q: bool
) -> Tensor:
    """Return the mean of `SampledSoftmax`'s formula, with the targets' scores (M, 1) as given.

    Scores of shared negatives are never all held at once.
    """
    if negatives.shared:
        candidates = _distinct(events, negatives, scorer, log_q=log_q)
        return chunked_cross_entropy(events.states, positive, candidates, has_target=events.has_target)
    scores = _corrected_scores(events, negatives, scorer, log_q=log_q)
    scores = scores.masked_fill(~events.counted(negatives), -torch.inf)
    return events.mean(torch.cat([positive, scores], dim=1).logsumexp(1) - positive.squeeze(1))


def _cross_entropy_of_several(
    events: TargetEvents, positives: Tensor, negatives: Negatives, scorer: Scorer, *, log_q: bool
) -> Tensor:
    """Return the mean of `SampledSoftmax`'s formula over each event's positives (M, P), 0 without one, and over events.

    Draws of any positive of an event do not count for it.
    """
    scores = _corrected_scores(events, negatives, scorer, log_q=log_q)
    counted = events.counted(negatives)
    for others in positives.unbind(1)[1:]:
        counted &= negatives.item_ids != others.unsqueeze(1)
    # Finite, because the gradient of a sum of nothing but exp(-inf) is no number.
    rivals = scores.masked_fill(~counted, NEVER).logsumexp(1, keepdim=True)
    own = at_least_float32(scorer.score(events.states, positives))
    is_positive = positives > 0
    costs = F.softplus(rivals - own).masked_fill(~is_positive, 0)
    return events.mean(costs.sum(1) / is_positive.sum(1))


def _corrected_scores(events: TargetEvents, negatives: Negatives, scorer: Scorer, *, log_q: bool) -> Tensor:
    """Return the scores (M, N) of all draws, less the log of their expected number with `log_q`."""
    scores = negative_scores(events, negatives, scorer)
    return scores - _log_expected(negatives).to(scores.dtype) if log_q else scores


def _log_expected(negatives: Negatives) -> Tensor:
    """Return the log of each drawn item's expected number among the N draws."""
    return negatives.log_probabilities + math.log(negatives.item_ids.shape[-1])


def _distinct(events: TargetEvents, negatives: Negatives, scorer: Scorer, *, log_q: bool) -> Competitors:
    """Return each item among shared draws once, weighted by how often it was drawn.

    For a `PaddedBatch`, repeats stay in tensors of the draws' size, with weight 0.
    """
    if events.has_target is None:
        item_ids, places, times = torch.unique(negatives.item_ids, return_inverse=True, return_counts=True)
        log_weights = times.double().log()
    else:
        item_ids = negatives.item_ids.sort().values
        places = torch.searchsorted(item_ids, negatives.item_ids)
        times = torch.searchsorted(item_ids, item_ids, right=True) - torch.searchsorted(item_ids, item_ids)
        log_weights = times.double().log()
        log_weights[1:].masked_fill_(item_ids[1:] == item_ids[:-1], -torch.inf)
    if log_q:
        # All draws of an item have the same probability, so it does not matter which of them is kept.
        log_weights -= log_weights.new_zeros(len(item_ids)).index_copy(0, places, _log_expected(negatives))
    excluded = None
    if negatives.excluded is not None:
        excluded = negatives.excluded.new_zeros((len(negatives.excluded), len(item_ids)))
        excluded.index_copy_(1, places, negatives.excluded)
    own = torch.searchsorted(item_ids, events.targets).clamp_(max=len(item_ids) - 1)
    return Competitors(
        scorer.vectors(item_ids),
        own=torch.where(item_ids[own] == events.targets, own, -1),
        log_weights=log_weights.to(events.states.dtype),
        excluded=excluded,
        rows=events.rows,
    )
