from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.losses import BCE, LOSSES
from seqrec.negatives import NegativeSampler
from seqrec.scoring import Scorer
from seqrec.types import History, RaggedItems, SeenItems, SequenceBatch

NUM_ITEMS, WIDTH = 12, 4


class FixedNegatives(NegativeSampler):
    """The n-th negative of the m-th event is always the same item."""

    def __init__(self, num_negatives: int) -> None:
        self.num_negatives = num_negatives

    def sample(self, rows: Tensor, seen: SeenItems, num_items: int) -> Tensor:
        numbers = torch.arange(len(rows) * self.num_negatives).view(len(rows), -1)
        return numbers * 5 % num_items + 1


def random_batch(lengths: list[int], extra_padding: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(0)
    events = torch.zeros((len(lengths), max(lengths) + 1 + extra_padding), dtype=torch.int64)
    for row, length in enumerate(lengths):
        events[row, : length + 1] = torch.randint(1, 7, (length + 1,), generator=generator)
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


def random_item_vectors() -> Tensor:
    return torch.randn(
        (NUM_ITEMS + 1, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def loss_slowly(states: Tensor, batch: SequenceBatch, item_vectors: Tensor, num_negatives: int) -> Tensor:
    """Sum over events, one by one, as the formula is written."""
    assert batch.targets is not None
    total, events = torch.zeros((), dtype=torch.float64), 0
    for row, length in enumerate(batch.history.lengths.tolist()):
        for position in range(length):
            state = states[row, position]
            total = total - torch.log(torch.sigmoid(state @ item_vectors[batch.targets[row, position]]))
            for n in range(num_negatives):
                item = (events * num_negatives + n) * 5 % NUM_ITEMS + 1
                score = state @ item_vectors[item]
                total = total - torch.log(1 - torch.sigmoid(score)) / num_negatives
            events += 1
    return total / events


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3))
def test_loss_and_gradients_equal_a_loop_over_events(lengths: list[int], num_negatives: int):
    batch = random_batch(lengths)
    states, vectors = random_states(batch).requires_grad_(), random_item_vectors().requires_grad_()
    loss = BCE(FixedNegatives(num_negatives))(states, batch, Scorer(vectors))
    expected = loss_slowly(states, batch, vectors, num_negatives)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    found_gradients = torch.autograd.grad(loss, (states, vectors))
    expected_gradients = torch.autograd.grad(expected, (states, vectors))
    torch.testing.assert_close(found_gradients, expected_gradients, rtol=1e-12, atol=1e-12)


def test_gradients_equal_finite_differences():
    batch = random_batch([3, 1])
    states, vectors = random_states(batch), random_item_vectors()
    states[~batch.history.valid] = 0
    loss = BCE(FixedNegatives(2))
    assert torch.autograd.gradcheck(
        lambda s, v: loss(s, batch, Scorer(v)), (states.requires_grad_(), vectors.requires_grad_())
    )


def test_padding_changes_neither_loss_nor_gradients():
    results = []
    for extra_padding in (0, 5):
        batch = random_batch([4, 2, 1], extra_padding)
        states, vectors = random_states(batch).requires_grad_(), random_item_vectors().requires_grad_()
        loss = BCE(FixedNegatives(1))(states, batch, Scorer(vectors))
        by_states, by_vectors = torch.autograd.grad(loss, (states, vectors))
        assert by_states[~batch.history.valid].eq(0).all()
        assert by_vectors[0].eq(0).all()
        results.append((loss, by_states[batch.history.valid], by_vectors))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_scores_of_zero_cost_two_bits():
    batch = random_batch([2, 3])
    states = torch.zeros(2, 3, WIDTH, dtype=torch.float64)
    loss = BCE()(states, batch, Scorer(random_item_vectors()))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_large_scores_stay_finite():
    batch = random_batch([2])
    loss = BCE(FixedNegatives(1))(torch.full((1, 2, 1), 1e4), batch, Scorer(torch.ones(NUM_ITEMS + 1, 1)))
    assert loss.item() == pytest.approx(1e4)


def test_default_negative_is_outside_the_users_history():
    batch = random_batch([6, 2])
    # A score is high for items that a user has met and low for others, so that the loss vanishes only if no
    # negative was met.
    vectors = torch.full((NUM_ITEMS + 1, 2), -50.0)
    for row in (0, 1):
        met = batch.seen.item_ids[batch.seen.rows == row]
        vectors[met, row] = 50.0
    states = torch.eye(2).unsqueeze(1).expand(-1, 6, -1)
    torch.manual_seed(0)
    for _ in range(20):
        assert BCE()(states, batch, Scorer(vectors)).item() == pytest.approx(0, abs=1e-6)


def test_loss_is_registered_under_its_name():
    assert LOSSES["BCE"] is BCE
