"""Masked items: the objective of bidirectional encoders, and the mask after a history. B users, L events, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders import SequenceEncoder
from seqrec.errors import InputError
from seqrec.training.losses import Loss
from seqrec.types import History, SequenceBatch


@dataclass(frozen=True)
class MaskedItems:
    """How training with a bidirectional encoder hides items, which the model then predicts from all other events.

    A window and the event after it are one row. Its targets are those of other encoders: all events but the first, or
    those that a filter of targets selects. Each is masked with probability `share`; in a share `last_only` of the rows,
    and where none was drawn, only the newest target is. This is the Cloze task of BERT4Rec (Sun et al. 2019), which
    masks .2 of the events of ML-1M and adds samples in which the last item alone is masked, because that is what
    evaluation asks: the history followed by a mask.

    A step learns from fewer targets than that of a causal encoder, so training takes more of them (A Systematic Review
    and Replicability Study of BERT4Rec, Petrov & Macdonald 2022).

    Attributes:
        share: Share of targets that are masked, above 0.
        last_only: Share of rows in which only the newest target is masked.

    Raises:
        InputError: if a share is out of range.

    Example:
        >>> from seqrec.models import BERT4Rec, MaskedItems
        >>> BERT4Rec(num_items=100, d_model=16, max_length=50, masking=MaskedItems(share=0.4)).masking.share
        0.4
    """

    share: float = 0.2
    last_only: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"masking.share={self.share} must be above 0 and at most 1")
        if not 0 <= self.last_only <= 1:
            raise InputError(f"masking.last_only={self.last_only} must be between 0 and 1")

    def draw(self, batch: SequenceBatch) -> Tensor:
        """Return (B, L) bool, True at events with a masked target: at least one in each row with a target."""
        is_target = batch.is_target
        count = is_target.cumsum(1)
        newest = is_target & (count == count[:, -1:])
        drawn = is_target & (torch.rand(is_target.shape, device=is_target.device) < self.share)
        drawn &= torch.rand(len(is_target), 1, device=is_target.device) >= self.last_only
        return drawn | (newest & ~drawn.any(1, keepdim=True))


def masked_batch(batch: SequenceBatch, hidden: Tensor) -> tuple[History, SequenceBatch]:
    """Hide targets of a batch.

    Args:
        batch: Windows with their targets.
        hidden: (B, L) bool, True at events with a hidden target.

    Returns:
        (B, L + 1) events of the windows and the one after each; item 0 replaces hidden targets. It also stands after a
        window if that event is no target, and has no loss then. And the batch with only the hidden targets: the state
        at event t + 1 predicts target t.
    """
    history = batch.history
    items = F.pad(history.item_ids, (0, 1)).scatter(1, history.lengths.unsqueeze(1), batch.last_targets.unsqueeze(1))
    shown = History(items.masked_fill(F.pad(hidden, (1, 0)), 0), history.lengths + 1)
    assert batch.targets is not None
    return shown, replace(batch, targets=batch.targets * hidden)


def followed_by_mask(history: History) -> History:
    """Return the events of a history (B, L) and a masked item after each row, (B, L + 1)."""
    return History(F.pad(history.item_ids, (0, 1)), history.lengths + 1)


class MaskVector(nn.Module):
    """The vector that stands in for masked items, which have id 0; it has no row in the table of items.

    Args:
        d_model: Width D.
        std: Standard deviation at initialisation, that of item vectors.
    """

    def __init__(self, d_model: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))
        nn.init.normal_(self.weight, std=std)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return (B, L, D): the scaled vector where `item_ids` (B, L) is 0, and zeros elsewhere."""
        out: Tensor = (item_ids == 0).unsqueeze(-1) * (self.weight * len(self.weight) ** 0.5)
        return out


def masking_for(
    encoder: SequenceEncoder, asked: MaskedItems | None, loss: Loss, unread: Mapping[str, object]
) -> MaskedItems | None:
    """Return how a model with an encoder masks items, None if it is causal.

    Args:
        encoder: The encoder.
        asked: The user's choice; None is `MaskedItems()` for a bidirectional encoder.
        loss: The objective.
        unread: Arguments by name that need what a masked event does not have.

    Raises:
        InputError: if a causal encoder shall mask items, or a bidirectional one has an objective or arguments that need
            causal states.
    """
    name = type(encoder).__name__
    if not encoder.bidirectional:
        if asked is not None:
            raise InputError(f"masking is for bidirectional encoders, but {name} is causal: leave it out")
        return None
    if getattr(loss, "next_targets", None) is not None:
        raise InputError(
            f"loss.next_targets predicts the events after each event, which {name} sees: leave it out, or take a "
            "causal encoder such as SASRec"
        )
    for argument, value in unread.items():
        if value:
            raise InputError(
                f"{argument} needs the time or the columns of each event, but {name} has masked ones, of which nothing "
                "is known: leave it out, or take a causal encoder such as SASRec"
            )
    return asked or MaskedItems()
