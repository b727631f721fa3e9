"""Batches, samplers without chance and objectives event by event, for tests of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses import Loss
from seqrec.training.negatives import Negatives, NegativeSampler
from seqrec.types import History, RaggedItems, SeenItems, SequenceBatch

NUM_ITEMS, WIDTH = 12, 4
# A slow objective: cost of one event from its state, target, draws that count, and what those are expected to be.
EventCost = Callable[[Tensor, int, list[int], list[float]], Tensor]


class FixedNegatives(NegativeSampler):
    """The n-th negative of the m-th event is always the same item, drawn with a probability of its own."""

    def __init__(self, num_negatives: int, *, exclude_seen: bool = False, shared: bool = False) -> None:
        self.num_negatives = num_negatives
        self.exclude_seen = exclude_seen
        self.shared = shared

    def num_draws(self, num_positions: int) -> int:
        return self.num_negatives

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        positions = 1 if self.shared else len(rows)
        numbers = torch.arange(positions * self.num_negatives).view(positions, -1)
        item_ids = numbers * 5 % num_items + 1
        excluded = None
        if self.exclude_seen:
            users = torch.arange(len(seen.offsets) - 1) if self.shared else rows
            sets = [set(seen.item_ids[seen.rows == user].tolist()) for user in users.tolist()]
            lists = item_ids.expand(len(users), -1).tolist()
            excluded = torch.tensor([[i in s for i in ids] for ids, s in zip(lists, sets, strict=True)])
        item_ids = item_ids[0] if self.shared else item_ids
        return Negatives(item_ids, self.log_probabilities(item_ids, rows, seen, num_items), excluded)

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        return (item_ids.double() / (num_items * (num_items + 1) / 2)).log()


def random_batch(lengths: list[int], extra_padding: int = 0, num_items: int = 7) -> SequenceBatch:
    """Users' random events of items 1..num_items."""
    generator = torch.Generator().manual_seed(0)
    events = torch.zeros((len(lengths), max(lengths) + 1 + extra_padding), dtype=torch.int64)
    for row, length in enumerate(lengths):
        events[row, : length + 1] = torch.randint(1, num_items + 1, (length + 1,), generator=generator)
    valid = torch.arange(events.shape[1] - 1) < torch.tensor(lengths).unsqueeze(1)
    return SequenceBatch(
        History(events[:, :-1] * valid, torch.tensor(lengths)),
        events[:, 1:] * valid,
        torch.arange(len(lengths)) + 1,
        RaggedItems.from_rows([row[row > 0] for row in events]),
    )


def random_states(batch: SequenceBatch, seed: int = 0) -> Tensor:
    """States that are the same at the events, however much padding there is, and large at padding."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.full((*batch.history.item_ids.shape, WIDTH), 1e3, dtype=torch.float64)
    valid = batch.history.valid
    states[valid] = torch.randn((int(valid.sum()), WIDTH), generator=generator, dtype=torch.float64)
    return states


def random_item_vectors(num_items: int = NUM_ITEMS) -> Tensor:
    return torch.randn((num_items + 1, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mean_over_events(
    states: Tensor, batch: SequenceBatch, num_items: int, negatives: Negatives, cost: EventCost
) -> Tensor:
    """Mean of the events' costs, one event after the other."""
    assert batch.targets is not None
    shape = (int(batch.history.lengths.sum()), negatives.item_ids.shape[-1])
    item_ids = negatives.item_ids.expand(shape).tolist()
    logs = negatives.log_probabilities.expand(shape).tolist()
    costs: list[Tensor] = []
    for row, length in enumerate(batch.history.lengths.tolist()):
        for position in range(length):
            event, target = len(costs), int(batch.targets[row, position])
            hidden = [False] * shape[1]
            if negatives.excluded is not None:
                hidden = negatives.excluded[row if negatives.shared else event].tolist()
            pairs = [
                (item, shape[1] * math.exp(log))
                for item, log, out in zip(item_ids[event], logs[event], hidden, strict=True)
                if not out and item != target
            ]
            costs.append(cost(states[row, position], target, [i for i, _ in pairs], [e for _, e in pairs]))
    return torch.stack(costs).mean()


def assert_equal_with_gradients(
    loss: Loss, states: Tensor, batch: SequenceBatch, vectors: Tensor, expected: Callable[..., Tensor]
) -> None:
    """An objective and `expected(states, vectors)` are one in value and in both gradients."""
    states, vectors = states.clone().requires_grad_(), vectors.clone().requires_grad_()
    found_value, expected_value = loss(states, batch, Scorer(vectors)), expected(states, vectors)
    assert found_value.shape == ()
    torch.testing.assert_close(found_value, expected_value, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(found_value, (states, vectors))
    wanted = torch.autograd.grad(expected_value, (states, vectors), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def fixed_draws(loss: Loss, batch: SequenceBatch, num_items: int) -> Negatives:
    """What a loss with `FixedNegatives` draws for a batch."""
    assert batch.targets is not None
    rows, positions = batch.history.valid.nonzero(as_tuple=True)
    return loss.negatives.sample(rows, batch.targets[rows, positions], batch.seen, num_items)
