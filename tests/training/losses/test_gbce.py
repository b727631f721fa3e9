from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    NUM_ITEMS,
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
from seqrec.errors import InputError
from seqrec.training.losses import BCE, GBCE
from seqrec.training.negatives import UniformNegatives


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 0.75, 1.0]),
    st.booleans(),
    st.booleans(),
)
def test_loss_and_gradients_equal_a_loop_over_events(
    lengths: list[int], num_negatives: int, t: float, exclude_seen: bool, shared: bool
):
    batch = random_batch(lengths)
    loss = GBCE(FixedNegatives(num_negatives, exclude_seen=exclude_seen, shared=shared), t=t)
    draws = fixed_draws(loss, batch, NUM_ITEMS)
    alpha = num_negatives / (NUM_ITEMS - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)

    def slowly(states: Tensor, vectors: Tensor) -> Tensor:
        def cost(state: Tensor, target: int, items: list[int], _: list[float]) -> Tensor:
            total = -torch.log(torch.sigmoid(state @ vectors[target]) ** beta)
            for item in items:
                total = total - torch.log(1 - torch.sigmoid(state @ vectors[item]))
            return total / (num_negatives + 1)

        return mean_over_events(states, batch, NUM_ITEMS, draws, cost)

    assert_equal_with_gradients(loss, random_states(batch), batch, random_item_vectors(), slowly)


def test_uncalibrated_with_one_negative_it_is_half_of_bce():
    batch = random_batch([4, 2, 1])
    states, scorer = random_states(batch), Scorer(random_item_vectors())
    found = 2 * GBCE(FixedNegatives(1), t=0)(states, batch, scorer)
    counted = fixed_draws(GBCE(FixedNegatives(1)), batch, NUM_ITEMS)
    assert counted.item_ids[:, 0].ne(batch.targets[batch.history.valid]).all(), "all draws count in both"
    torch.testing.assert_close(found, BCE(FixedNegatives(1))(states, batch, scorer), rtol=1e-12, atol=0)


def test_calibrated_optimum_is_the_probability_among_all_items():
    # One state, items 1..5 chosen with these probabilities, and all four others as negatives at share k / (V - 1).
    chosen = torch.tensor([0.5, 0.25, 0.125, 0.075, 0.05], dtype=torch.float64)
    alpha = 2 / 4
    beta = GBCE(UniformNegatives(2), t=1).beta(2, 5)
    scores = torch.logit(chosen).requires_grad_()
    # Mean over targets and over draws of negatives: each other item is drawn alpha times on average.
    log_sigmoid = torch.nn.functional.logsigmoid
    loss = -(chosen * beta * log_sigmoid(scores) + alpha * (1 - chosen) * log_sigmoid(-scores)).sum()
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores_stay_finite(sign: int):
    batch = random_batch([2])
    states = torch.full((1, 2, 1), sign * 1e4, requires_grad=True)
    loss = GBCE(FixedNegatives(1), t=0.75)(states, batch, Scorer(torch.ones(NUM_ITEMS + 1, 1)))
    assert loss.item() == pytest.approx(0.5 * 1e4 * (1 if sign > 0 else 1 - 0.75 * (1 - 1 / 11)))
    assert torch.autograd.grad(loss, states)[0].isfinite().all()


def test_more_negatives_than_other_items_are_refused():
    batch = random_batch([2])
    with pytest.raises(InputError, match=r"GBCE draws 12 negatives.*only 11 other items.*use FullSoftmax"):
        GBCE(FixedNegatives(NUM_ITEMS))(random_states(batch), batch, Scorer(random_item_vectors()))
    with pytest.raises(InputError, match="only 0 other items"):
        GBCE(UniformNegatives(1, exclude_seen=False))(
            random_states(batch), random_batch([2], num_items=1), Scorer(random_item_vectors(1))
        )


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_a_calibration_out_of_range_is_refused(t: float):
    with pytest.raises(InputError, match=r"t=.* must be between 0"):
        GBCE(t=t)
