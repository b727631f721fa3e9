from __future__ import annotations

import pytest
import torch
from sampler_problems import seen_items, surprise

from seqrec.errors import InputError
from seqrec.specs import from_spec, to_spec
from seqrec.training.negatives import InBatchNegatives, MixedNegatives, PopularityNegatives, UniformNegatives

COUNTS = torch.tensor([0, 5, 0, 40, 1, 14])
ROWS, TARGETS = torch.tensor([0, 1, 1]), torch.tensor([3, 5, 4])
SEEN = seen_items([{3}, {4, 5}])


def test_draws_of_a_mixture_follow_its_log_probabilities():
    torch.manual_seed(0)
    parts = [UniformNegatives(10_000, exclude_seen=False), PopularityNegatives(30_000, exclude_seen=False)]
    mixed = MixedNegatives(parts)
    mixed.use_item_counts(COUNTS)
    drawn = mixed.sample(ROWS, TARGETS, None, 5)
    assert drawn.item_ids.shape == (3, 40_000)
    weights = COUNTS.double() ** 0.75
    expected = 0.25 * torch.tensor([0, 1, 1, 1, 1, 1]) / 5 + 0.75 * weights / weights.sum()
    torch.testing.assert_close(drawn.log_probabilities.exp(), expected[drawn.item_ids])
    # Fixed parts vary less than independent draws, so this may be far below 0.
    assert surprise(drawn.item_ids, expected) < 4


def test_weights_by_log_probabilities_are_unbiased_over_what_each_user_has_not_seen():
    torch.manual_seed(0)
    mixed = MixedNegatives([UniformNegatives(20_000), PopularityNegatives(20_000)])
    mixed.use_item_counts(COUNTS)
    drawn = mixed.sample(ROWS, TARGETS, SEEN, 5)
    counted = drawn.counted(ROWS, torch.zeros(3, dtype=torch.int64))
    values = torch.tensor([0, 3.0, 1.0, 10.0, 7.0, 2.0], dtype=torch.float64)
    estimate = (values[drawn.item_ids] * (-drawn.log_probabilities).exp() * counted).sum(1) / 40_000
    torch.testing.assert_close(estimate, torch.tensor([13.0, 14.0, 14.0]).double(), rtol=0.03, atol=0)


def test_the_batch_is_a_part_of_a_mixture_by_its_size():
    mixed = MixedNegatives([InBatchNegatives(exclude_seen=False), UniformNegatives(1, exclude_seen=False, shared=True)])
    mixed.use_item_counts(COUNTS)
    assert mixed.num_draws(3) == 4
    drawn = mixed.sample(ROWS, TARGETS, None, 5)
    assert drawn.shared
    assert drawn.item_ids[:3].tolist() == [3, 5, 4]
    expected = 0.75 * COUNTS[drawn.item_ids].clamp(min=1).double() / 60 + 0.25 / 5
    torch.testing.assert_close(drawn.log_probabilities.exp(), expected)


def test_seen_draws_of_every_part_do_not_count():
    mixed = MixedNegatives([InBatchNegatives(), UniformNegatives(50, shared=True)])
    mixed.use_item_counts(COUNTS)
    drawn = mixed.sample(ROWS, TARGETS, SEEN, 5)
    counted = drawn.counted(ROWS, torch.zeros(3, dtype=torch.int64))
    for row, seen in zip(counted, ({3}, {4, 5}, {4, 5}), strict=True):
        assert row.tolist() == [item not in seen for item in drawn.item_ids.tolist()]


def test_a_mixture_survives_the_round_trip_through_its_spec():
    mixed = MixedNegatives([UniformNegatives(2), PopularityNegatives(3, alpha=0.5)])
    rebuilt = from_spec(to_spec(mixed))
    assert to_spec(rebuilt) == to_spec(mixed)
    assert rebuilt.samplers[1].alpha == 0.5


def test_parts_that_do_not_agree_are_refused():
    with pytest.raises(InputError, match="must agree in shared, but have InBatchNegatives: True, UniformNegatives: F"):
        MixedNegatives([InBatchNegatives(), UniformNegatives()])
    with pytest.raises(InputError, match="must agree in exclude_seen"):
        MixedNegatives([PopularityNegatives(), UniformNegatives(exclude_seen=False)])


def test_a_mixture_of_one_is_refused():
    with pytest.raises(InputError, match="a mixture of 1 samplers; give two or more"):
        MixedNegatives([UniformNegatives()])
