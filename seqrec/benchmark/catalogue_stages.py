"""What `benchmark catalogue` times, in a process of its own: plain values in, plain values out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from seqrec.models import SequentialRecommender
    from seqrec.training.losses import Loss
    from seqrec.training.optim import OptimizerFactory
    from seqrec.types import SequenceBatch

# Draws of each event where events do not share them; more of them are shared.
OWN_NEGATIVES, SHARED_NEGATIVES = 1, 1024
OPTIMIZERS = ("dense_adam", "lazy_adam", "rowwise_adagrad")
OBJECTIVES = ("BCE", "GBCE", "SampledSoftmax", "InBatchSoftmax", "FullSoftmax")


def time_steps(
    *,
    num_items: int,
    objective: str,
    optimizer: str,
    encoder: str,
    d_model: int,
    batch_size: int,
    length: int,
    steps: int,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Time training steps of a model with a catalogue of a size.

    A step is forward pass, objective, backward pass and update, of a batch whose rows are full and whose items are
    uniform over the catalogue, so that no row is touched twice but by chance: the worst case for row-sparse updates.
    The first two steps, in which optimisers make their state, are not timed.

    Args:
        num_items: Items of the catalogue.
        objective: One of `OBJECTIVES`.
        optimizer: One of `OPTIMIZERS`.
        encoder: Name of a preset.
        d_model: Width D.
        batch_size: Histories B.
        length: Events L of each.
        steps: Timed steps.
        seed: Seed of weights, items and draws.
        device: Where it runs.

    Returns:
        `build_seconds`; `step_seconds`, of each timed step; `device_bytes`, the most memory of tensors on a CUDA
        device, None on CPU; `rows`, distinct items of the batch.
    """
    import torch

    torch.manual_seed(seed)
    began = time.perf_counter()
    model = _model(num_items, objective, optimizer, encoder, d_model, length).to(device)
    updates = model.optimizer.build(model)
    batch = full_batch(num_items, batch_size, length).to(device)
    build_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        states: Tensor = model.to_scoring_space(model(batch.history, batch.user_ids))
        model.loss(states, batch, model.scorer()).backward()
        updates.step()
        updates.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "build_seconds": build_seconds,
        "step_seconds": seconds[2:],
        "device_bytes": None if device == "cpu" else torch.cuda.max_memory_allocated(),
        "rows": len(torch.unique(batch.history.item_ids)),
    }


def _model(
    num_items: int, objective: str, optimizer: str, encoder: str, d_model: int, length: int
) -> SequentialRecommender:
    import torch

    from seqrec import models
    from seqrec.catalogue.table import ItemTable

    model: SequentialRecommender = getattr(models, encoder)(
        num_items,
        d_model=d_model,
        max_length=length,
        item_table=ItemTable(sparse=optimizer != "dense_adam"),
        loss=_loss(objective),
        optimizer=_optimizer(optimizer),
    )
    if model.loss.needs_item_counts:
        counts = torch.ones(num_items + 1, dtype=torch.int64)
        counts[0] = 0
        model.loss.use_item_counts(counts)
    return model


def _loss(objective: str) -> Loss:
    from seqrec.training import losses
    from seqrec.training.negatives import UniformNegatives

    if objective in ("BCE", "GBCE"):
        made: Loss = getattr(losses, objective)(
            UniformNegatives(OWN_NEGATIVES, exclude_seen=objective == "BCE")
        )
        return made
    if objective == "SampledSoftmax":
        return losses.SampledSoftmax(UniformNegatives(SHARED_NEGATIVES, exclude_seen=False, shared=True))
    return getattr(losses, objective)()  # type: ignore[no-any-return]


def _optimizer(name: str) -> OptimizerFactory:
    from seqrec.training.optim import Adam, RowwiseAdagrad

    return Adam(table=RowwiseAdagrad()) if name == "rowwise_adagrad" else Adam()


def full_batch(num_items: int, batch_size: int, length: int) -> SequenceBatch:
    """A batch of full histories whose items are uniform over the catalogue."""
    import torch

    from seqrec.types import History, RaggedItems, SequenceBatch

    events = torch.randint(1, num_items + 1, (batch_size, length + 1))
    history = History(events[:, :-1].contiguous(), torch.full((batch_size,), length))
    seen = RaggedItems(events.flatten(), torch.arange(batch_size + 1) * (length + 1))
    return SequenceBatch(
        history, events[:, 1:].contiguous(), torch.zeros(batch_size, dtype=torch.int64), seen
    )
