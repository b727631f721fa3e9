from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
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
from seqrec.training.losses import FullSoftmax, InBatchSoftmax, Loss, SampledSoftmax
from seqrec.training.negatives import Negatives, NegativeSampler, PopularityNegatives, UniformNegatives
from seqrec.types import SeenItems, SequenceBatch


class EachItemOnce(NegativeSampler):
    """The whole catalogue, as if drawn uniformly."""

    exclude_seen = False

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared

    def num_draws(self, num_positions: int) -> int:
        return NUM_ITEMS

    def sample(self, rows: Tensor, targets: Tensor, seen: SeenItems | None, num_items: int) -> Negatives:
        item_ids = torch.arange(num_items, 0, -1)
        item_ids = item_ids if self.shared else item_ids.expand(len(rows), -1)
        return Negatives(item_ids, self.log_probabilities(item_ids, rows, seen, num_items))

    def log_probabilities(self, item_ids: Tensor, rows: Tensor, seen: SeenItems | None, num_items: int) -> Tensor:
        return torch.full(item_ids.shape, -math.log(num_items), dtype=torch.float64)


def cost_of(vectors: Tensor, log_q: bool, num_corrected: int = 0) -> object:
    """One event's sampled cross-entropy as written; the target is corrected if there are `num_corrected` draws."""

    def cost(state: Tensor, target: int, items: list[int], expected: list[float]) -> Tensor:
        positive = state @ vectors[target]
        if num_corrected:
            positive = positive - math.log(num_corrected * target / (NUM_ITEMS * (NUM_ITEMS + 1) / 2))
        total = positive.exp()
        for item, times in zip(items, expected, strict=True):
            total = total + (state @ vectors[item]).exp() / (times if log_q else 1)
        return total.log() - positive

    return cost


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(False, False), (True, False), (True, True)]),
)
def test_loss_and_gradients_equal_a_loop_over_events(
    lengths: list[int], num_negatives: int, exclude_seen: bool, shared: bool, corrected: tuple[bool, bool]
):
    batch = random_batch(lengths)
    log_q, log_q_target = corrected
    sampler = FixedNegatives(num_negatives, exclude_seen=exclude_seen, shared=shared)
    loss = SampledSoftmax(sampler, log_q=log_q, log_q_target=log_q_target)
    num_corrected = num_negatives if log_q_target else 0
    draws = fixed_draws(loss, batch, NUM_ITEMS)
    assert_equal_with_gradients(
        loss,
        random_states(batch),
        batch,
        random_item_vectors(),
        lambda states, vectors: mean_over_events(
            states, batch, NUM_ITEMS, draws, cost_of(vectors, log_q, num_corrected)
        ),
    )


def test_with_the_target_corrected_the_loss_in_the_batch_is_a_softmax_over_all_corrected_scores():
    # As TensorFlow Recommenders writes it: one row a state, one column a target, the diagonal is right.
    targets = torch.tensor([[3, 5, 9, 2]])
    batch = random_batch([4])
    batch = SequenceBatch(batch.history, targets, batch.user_ids, batch.seen_events)
    counts = torch.arange(NUM_ITEMS + 1) ** 2
    loss = InBatchSoftmax(log_q_target=True)
    loss.use_item_counts(counts)
    states, vectors = random_states(batch), random_item_vectors()
    scores = states[0] @ vectors[targets[0]].T - (counts[targets[0]].double() / counts.sum()).log()
    expected = F.cross_entropy(scores, torch.arange(4))
    torch.testing.assert_close(loss(states, batch, Scorer(vectors)), expected)


@pytest.mark.parametrize("make", [SampledSoftmax, InBatchSoftmax])
def test_a_corrected_target_needs_corrected_negatives(make: type[SampledSoftmax]):
    with pytest.raises(InputError, match="set log_q=True too"):
        make(log_q=False, log_q_target=True)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("log_q", [True, False])
def test_with_each_item_once_it_is_the_full_softmax(shared: bool, log_q: bool):
    batch = random_batch([5, 2, 1])
    full = FullSoftmax()
    assert_equal_with_gradients(
        SampledSoftmax(EachItemOnce(shared=shared), log_q=log_q),
        random_states(batch),
        batch,
        random_item_vectors(),
        lambda states, vectors: full(states, batch, Scorer(vectors)),
    )


@pytest.mark.parametrize(
    "sampler",
    [
        UniformNegatives(30_000, exclude_seen=False),
        UniformNegatives(30_000, exclude_seen=False, shared=True),
        PopularityNegatives(30_000, exclude_seen=False),
        PopularityNegatives(30_000, alpha=1, exclude_seen=False, shared=True),
    ],
    ids=["uniform", "shared uniform", "popularity", "shared popularity"],
)
def test_many_corrected_negatives_estimate_the_full_softmax(sampler: NegativeSampler):
    torch.manual_seed(0)
    batch = random_batch([5, 2, 1])
    states, scorer = random_states(batch), Scorer(random_item_vectors())
    sampler.use_item_counts(torch.arange(NUM_ITEMS + 1) ** 2)
    full = FullSoftmax()(states, batch, scorer).item()
    assert SampledSoftmax(sampler)(states, batch, scorer).item() == pytest.approx(full, rel=0.02)
    assert SampledSoftmax(sampler, log_q=False)(states, batch, scorer).item() > full + 5


def test_excluded_items_leave_the_softmax():
    # Item 1's score is enormous; the user has seen it, so that only a target may meet it.
    batch = random_batch([3], num_items=1)
    vectors = torch.zeros(NUM_ITEMS + 1, 4, dtype=torch.float64)
    vectors[1] = 100
    target = torch.full((1, 3), 5)
    batch = SequenceBatch(batch.history, target, batch.user_ids, batch.seen_events)
    states = torch.ones(1, 3, 4, dtype=torch.float64)
    for shared in (True, False):
        for exclude_seen in (True, False):
            sampler = FixedNegatives(NUM_ITEMS, exclude_seen=exclude_seen, shared=shared)
            loss = SampledSoftmax(sampler, log_q=False)(states, batch, Scorer(vectors)).item()
            assert loss == pytest.approx(math.log(11) if exclude_seen else 400)


@pytest.mark.parametrize("loss", [SampledSoftmax(UniformNegatives(4, exclude_seen=False)), InBatchSoftmax()])
def test_a_catalogue_of_one_item_costs_nothing(loss: Loss):
    batch = random_batch([3, 1], num_items=1)
    loss.use_item_counts(torch.tensor([0, 4]))
    states, vectors = random_states(batch).requires_grad_(), random_item_vectors(1).requires_grad_()
    value = loss(states, batch, Scorer(vectors))
    assert value.item() == 0
    assert all(gradient.eq(0).all() for gradient in torch.autograd.grad(value, (states, vectors)))


COUNTS = torch.tensor([0, 9, 2, 40, 1, 12, 3, 5, 8, 0, 6, 7, 2])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.booleans(), st.booleans())
def test_in_batch_loss_and_gradients_equal_a_loop_over_events(
    lengths: list[int], exclude_seen: bool, log_q: bool, with_extra: bool
):
    batch = random_batch(lengths)
    extra = FixedNegatives(3, exclude_seen=exclude_seen, shared=True) if with_extra else None
    loss = InBatchSoftmax(extra, exclude_seen=exclude_seen, log_q=log_q)
    loss.use_item_counts(COUNTS)
    targets = batch.targets[batch.history.valid]
    share = COUNTS.double() / COUNTS.sum()
    item_ids, q = targets, share[targets]
    if with_extra:
        item_ids = torch.cat([targets, torch.tensor([1, 6, 11])])
        in_batch = len(targets) / (len(targets) + 3)
        q = in_batch * share[item_ids] + (1 - in_batch) * item_ids.double() / 78
    excluded = None
    if exclude_seen:
        sets = [set(batch.seen.item_ids[batch.seen.rows == row].tolist()) for row in range(len(lengths))]
        excluded = torch.tensor([[item in seen for item in item_ids.tolist()] for seen in sets])
    draws = Negatives(item_ids, q.log(), excluded)
    states, vectors = random_states(batch), random_item_vectors()
    expected = mean_over_events(states, batch, NUM_ITEMS, draws, cost_of(vectors, log_q))
    torch.testing.assert_close(loss(states, batch, Scorer(vectors)), expected, rtol=1e-12, atol=1e-12)


def test_in_batch_without_correction_is_cross_entropy_over_the_batchs_targets():
    batch = random_batch([4, 3])
    targets = batch.targets[batch.history.valid]
    distinct, own = targets.unique(return_inverse=True)
    loss = InBatchSoftmax(log_q=False)
    loss.use_item_counts(COUNTS)

    # An item that is the target of several events competes with those of other events as often.
    log_times = targets.bincount().double().log()

    def plain(states: Tensor, vectors: Tensor) -> Tensor:
        scores = states[batch.history.valid] @ vectors[distinct].T
        is_own = F.one_hot(own, len(distinct)).bool()
        return F.cross_entropy(scores + torch.where(is_own, 0, log_times[distinct]), own)

    assert_equal_with_gradients(loss, random_states(batch), batch, random_item_vectors(), plain)


def test_extra_negatives_that_do_not_agree_are_refused():
    with pytest.raises(InputError, match="must agree in shared"):
        InBatchSoftmax(UniformNegatives(5, exclude_seen=False))
    with pytest.raises(InputError, match="must agree in exclude_seen"):
        InBatchSoftmax(UniformNegatives(5, shared=True))
