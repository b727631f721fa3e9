"""Cross-entropy against the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.ops.problems import at_least_float32
from seqrec.training.losses.chunked_cross_entropy import Competitors, chunked_cross_entropy
from seqrec.training.losses.loss import Loss, select_events
from seqrec.training.losses.next_targets import NextTargets
from seqrec.training.losses.sampled_scores import target_scores
from seqrec.types import SequenceBatch


class FullSoftmax(Loss):
    """`-log softmax(scores of items 1..num_items)[target]`, mean over targets; scores (B, L, V) are never held.

    Klenitskiy & Vasilev 2023 (Turning Dross Into Gold Loss: Is BERT4Rec really better than SASRec?) train SASRec with
    this objective. Value and gradients equal those of plain cross-entropy; see `chunked_cross_entropy`. With
    `ItemTable.content`, items without training events are left out of the sum, so they are not pushed down.

    Args:
        chunk: Maximum number of scores held at a time, at 4 bytes each. None is 2^20 on CPU, because 4 MiB stay in
            the cache, and 2^25 elsewhere.
        next_targets: Further positives of each position; None is only the next event. They cost their own scores, not
            those of the catalogue once more.

    Raises:
        InputError: if `chunk` is below 1.

    Example:
        >>> from seqrec import FullSoftmax, SASRec
        >>> model = SASRec(num_items=100, d_model=16, max_length=50, loss=FullSoftmax(chunk=1 << 20))
        >>> model.loss.reads_all_items
        True
    """

    needs_seen = False
    reads_all_items = True

    def __init__(self, *, chunk: int | None = None, next_targets: NextTargets | None = None) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk={chunk} must be at least 1, or None for the device's default")
        self.chunk = chunk
        self.next_targets = next_targets

    @property
    def takes_padding(self) -> bool:
        """Whether there is one positive a position; see `Loss.takes_padding`."""
        return self.next_targets is None

    def forward(self, states: Tensor, batch: SequenceBatch, scorer: Scorer) -> Tensor:
        """Return the mean over the batch's targets; see `Loss.forward`."""
        events = select_events(states, batch)
        log_weights = None
        if scorer.trained is not None:
            log_weights = events.states.new_zeros(len(scorer.trained)).masked_fill(~scorer.trained, -torch.inf)
        items = Competitors(scorer.item_vectors, own=events.targets, first=1, log_weights=log_weights)
        own = target_scores(events, scorer)
        loss = chunked_cross_entropy(events.states, own, items, chunk=self.chunk, has_target=events.has_target)
        if self.next_targets is None:
            return loss
        # The denominator is the same for all positives of a position, so only their own scores differ.
        positives = self.next_targets.positives(events, batch)
        scores = at_least_float32(scorer.score(events.states, positives)).masked_fill(positives == 0, 0)
        return loss + (own.squeeze(1) - scores.sum(1) / (positives > 0).sum(1)).mean()
