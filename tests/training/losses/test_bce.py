from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    NUM_ITEMS,
    WIDTH,
    FixedNegatives,
    assert_equal_with_gradients,
    fixed_draws,
    mean_over_events,
    random_batch,
    random_item_vectors,
    random_states,
)
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses import BCE
from seqrec.training.losses.loss import select_events
from seqrec.training.losses.sampled_scores import negative_scores
from seqrec.training.negatives import UniformNegatives


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.booleans(), st.booleans())
def test_loss_and_gradients_equal_a_loop_over_events(
    lengths: list[int], num_negatives: int, exclude_seen: bool, shared: bool
):
    batch = random_batch(lengths)
    loss = BCE(FixedNegatives(num_negatives, exclude_seen=exclude_seen, shared=shared))
    draws = fixed_draws(loss, batch, NUM_ITEMS)

    def slowly(states: Tensor, vectors: Tensor) -> Tensor:
        counted: list[Tensor] = []

        def positive(state: Tensor, target: int, items: list[int], _: list[float]) -> Tensor:
            counted.extend(-torch.log(1 - torch.sigmoid(state @ vectors[item])) for item in items)
            return -torch.log(torch.sigmoid(state @ vectors[target]))

        mean = mean_over_events(states, batch, NUM_ITEMS, draws, positive)
        return mean + torch.stack(counted).mean() if counted else mean

    assert_equal_with_gradients(loss, random_states(batch), batch, random_item_vectors(), slowly)


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


def test_without_a_negative_that_counts_the_target_alone_costs():
    batch = random_batch([2, 1], num_items=1)
    vectors = random_item_vectors(1)
    loss = BCE(UniformNegatives(3, exclude_seen=False))(random_states(batch), batch, Scorer(vectors))
    scores = random_states(batch)[batch.history.valid] @ vectors[1]
    torch.testing.assert_close(loss, F.softplus(-scores).mean())


def test_scores_of_shared_negatives_leave_autocast_as_float32():
    batch = random_batch([4, 2])
    loss = BCE(FixedNegatives(3, shared=True))
    events = select_events(random_states(batch).float(), batch)
    with torch.autocast("cpu", torch.bfloat16):
        scores = negative_scores(events, fixed_draws(loss, batch, NUM_ITEMS), Scorer(random_item_vectors().float()))
    assert scores.dtype == torch.float32
