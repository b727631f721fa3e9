from __future__ import annotations

import pytest
import torch
from sampler_problems import seen_items, surprise
from torch import Tensor

from seqrec.errors import InputError
from seqrec.training.negatives import InBatchNegatives, MixedNegatives, NegativeSampler, PopularityNegatives

COUNTS = torch.tensor([0, 5, 0, 40, 1, 12])
ROWS, TARGETS = torch.tensor([0, 1, 1]), torch.tensor([3, 5, 4])
SEEN = seen_items([{3}, {1, 3, 4, 5}])


def ready(sampler: NegativeSampler, counts: Tensor = COUNTS) -> NegativeSampler:
    sampler.use_item_counts(counts)
    return sampler


def powers(alpha: float) -> Tensor:
    weights = torch.tensor([count**alpha if count else 0.0 for count in COUNTS.tolist()]).double()
    return weights / weights.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("shared", [True, False])
def test_draws_follow_powers_of_the_counts(alpha: float, shared: bool):
    torch.manual_seed(0)
    draws = 30_000 if shared else 10_000
    sampler = ready(PopularityNegatives(draws, alpha=alpha, exclude_seen=False, shared=shared))
    drawn = sampler.sample(ROWS, TARGETS, None, 5)
    assert drawn.item_ids.shape == ((draws,) if shared else (3, draws))
    assert surprise(drawn.item_ids, powers(alpha)) < 4
    expected = powers(alpha)[drawn.item_ids].log()
    torch.testing.assert_close(drawn.log_probabilities, expected, rtol=1e-6, atol=1e-6)
    assert drawn.log_probabilities.dtype == torch.float64
    assert drawn.excluded is None


def test_log_probabilities_are_exact():
    sampler = ready(PopularityNegatives(alpha=1))
    found = sampler.log_probabilities(torch.arange(6), ROWS, None, 5).exp()
    torch.testing.assert_close(found, COUNTS.double() / 58, rtol=1e-15, atol=0)


@pytest.mark.parametrize("shared", [True, False])
def test_draws_that_a_user_has_seen_do_not_count(shared: bool):
    torch.manual_seed(0)
    drawn = ready(PopularityNegatives(200, shared=shared)).sample(ROWS, TARGETS, SEEN, 5)
    item_ids = drawn.item_ids.expand(3, 200)
    counted = drawn.counted(ROWS, TARGETS)
    assert torch.equal(counted[0], item_ids[0] != 3)
    assert not counted[1:].any(), "the second user has seen all that can be drawn: sampling ends, without negatives"


def test_powers_of_large_counts_do_not_overflow():
    sampler = ready(PopularityNegatives(10, alpha=300.0), torch.tensor([0, 1000, 999, 2**62]))
    assert sampler.sample(ROWS, TARGETS, SEEN, 3).item_ids.eq(3).all()


def test_an_item_without_counts_has_no_probability():
    found = ready(PopularityNegatives()).log_probabilities(torch.tensor([2]), ROWS, None, 5)
    assert found.tolist() == [-torch.inf]


def test_a_seed_repeats_draws():
    sampler = ready(PopularityNegatives(9))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(sampler.sample(ROWS, TARGETS, SEEN, 5).item_ids)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("sampler", [PopularityNegatives(), InBatchNegatives()])
def test_draws_before_counts_are_refused(sampler: NegativeSampler):
    assert sampler.needs_item_counts
    with pytest.raises(InputError, match=f"{type(sampler).__name__} needs the items' counts.*use_item_counts"):
        sampler.sample(ROWS, TARGETS, SEEN, 5)


@pytest.mark.parametrize("sampler", [PopularityNegatives(), InBatchNegatives()])
def test_counts_of_another_catalogue_are_refused(sampler: NegativeSampler):
    with pytest.raises(InputError, match="has counts of 5 items, but the model has 7"):
        ready(sampler).sample(ROWS, TARGETS, SEEN, 7)


@pytest.mark.parametrize("sampler", [PopularityNegatives(), InBatchNegatives()])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([0, 0, 0], "all 2 item counts are 0"),
        ([0, 4, -1], "must be at least 0"),
        ([2, 4, 1], "0 for item 0, which is padding"),
        ([[0, 4, 1]], r"of shape \(1, 3\)"),
        ([0.0, 4.0], "type torch.float32"),
        ([0], r"of shape \(1,\)"),
    ],
)
def test_counts_that_are_none_are_refused(sampler: NegativeSampler, counts: list, message: str):
    with pytest.raises(InputError, match=message):
        sampler.use_item_counts(torch.tensor(counts))


@pytest.mark.parametrize("alpha", [-0.1, float("inf"), float("nan")])
def test_a_power_out_of_range_is_refused(alpha: float):
    with pytest.raises(InputError, match=r"alpha=.* must be at least 0 and finite"):
        PopularityNegatives(alpha=alpha)


def test_no_draws_are_refused():
    with pytest.raises(InputError, match="num_negatives=0 must be at least 1"):
        PopularityNegatives(0)


def test_in_batch_negatives_are_the_targets():
    drawn = ready(InBatchNegatives(exclude_seen=False)).sample(ROWS, TARGETS, None, 5)
    assert drawn.item_ids.tolist() == [3, 5, 4]
    torch.testing.assert_close(drawn.log_probabilities.exp(), torch.tensor([40, 12, 1]).double() / 58)
    assert drawn.counted(ROWS, TARGETS).tolist() == [
        [False, True, True],
        [True, False, True],
        [True, True, False],
    ]


def test_in_batch_negatives_that_a_user_has_seen_do_not_count():
    drawn = ready(InBatchNegatives()).sample(ROWS, TARGETS, SEEN, 5)
    assert drawn.counted(ROWS, TARGETS).tolist() == [[False, True, True], [False] * 3, [False] * 3]


def test_a_target_without_a_count_counts_as_one_event():
    found = ready(InBatchNegatives()).log_probabilities(torch.tensor([2]), ROWS, None, 5)
    torch.testing.assert_close(found.exp(), torch.tensor([1 / 58], dtype=torch.float64))


def test_a_mixture_needs_counts_if_a_part_does():
    assert MixedNegatives([PopularityNegatives(), PopularityNegatives()]).needs_item_counts
