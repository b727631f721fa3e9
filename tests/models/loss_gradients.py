"""The loss of a model and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from seqrec.models import SequentialRecommender
from seqrec.types import SequenceBatch


def gradients(made: SequentialRecommender, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the gradients of the parameters that have one, with the same draws each time."""
    torch.manual_seed(1)
    made.loss.use_item_counts(torch.arange(int(made.hparams["num_items"]) + 1))
    states = made.to_scoring_space(made(batch.history, batch.user_ids))
    loss = made.loss(states, batch, made.scorer())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
