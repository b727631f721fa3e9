from __future__ import annotations

import math

import pytest
import torch
from sampler_problems import seen_items, surprise

from seqrec.errors import InputError
from seqrec.training.negatives import UniformNegatives

ROWS = torch.tensor([2, 1, 0, 1])
SEEN = seen_items([{1, 2}, {4, 5}, set()])
UNSEEN = [{1, 2, 3, 4, 5}, {1, 2, 3}, {3, 4, 5}, {1, 2, 3}]
NO_TARGETS = torch.zeros(4, dtype=torch.int64)


def test_draws_of_a_position_are_uniform_over_what_its_user_has_not_seen():
    torch.manual_seed(0)
    drawn = UniformNegatives(2000).sample(ROWS, NO_TARGETS, SEEN, 5)
    assert drawn.item_ids.shape == (4, 2000)
    assert drawn.item_ids.dtype == torch.int64
    assert drawn.excluded is None
    for row, unseen in enumerate(UNSEEN):
        probabilities = torch.zeros(6, dtype=torch.float64)
        probabilities[sorted(unseen)] = 1 / len(unseen)
        assert surprise(drawn.item_ids[row], probabilities) < 4
        assert drawn.log_probabilities[row].eq(-math.log(len(unseen))).all()


def test_seen_items_may_be_drawn_where_allowed():
    torch.manual_seed(0)
    sampler = UniformNegatives(500, exclude_seen=False)
    drawn = sampler.sample(ROWS[:1], NO_TARGETS[:1], None, 3)
    assert drawn.item_ids.shape == (1, 500)
    assert set(drawn.item_ids[0].tolist()) == {1, 2, 3}
    assert drawn.excluded is None
    assert drawn.log_probabilities.eq(-math.log(3)).all()


def test_shared_draws_do_not_count_for_those_who_have_seen_them():
    torch.manual_seed(0)
    drawn = UniformNegatives(300, shared=True).sample(ROWS, NO_TARGETS, SEEN, 5)
    assert drawn.item_ids.shape == (300,)
    assert drawn.log_probabilities.tolist() == [-math.log(5)] * 300
    counted = drawn.counted(ROWS, NO_TARGETS)
    expected = [[item in unseen for item in drawn.item_ids.tolist()] for unseen in UNSEEN]
    assert counted.tolist() == expected


def test_a_target_is_no_negative_of_its_own_position():
    torch.manual_seed(0)
    for shared in (False, True):
        sampler = UniformNegatives(50, exclude_seen=False, shared=shared)
        targets = torch.tensor([1, 2, 3, 4])
        drawn = sampler.sample(ROWS, targets, None, 5)
        item_ids = drawn.item_ids.expand(4, 50)
        assert torch.equal(drawn.counted(ROWS, targets), item_ids != targets.unsqueeze(1))


def test_nothing_seen_excludes_nothing():
    drawn = UniformNegatives(4, shared=True).sample(ROWS[:1] * 0, NO_TARGETS[:1], seen_items([set()]), 5)
    assert drawn.counted(ROWS[:1] * 0, NO_TARGETS[:1]).all()


def test_all_of_a_large_catalogue_is_reached():
    num_items = 2**26
    torch.manual_seed(0)
    rows = torch.zeros(100, dtype=torch.int64)
    drawn = UniformNegatives(1000).sample(rows, rows, seen_items([{5}]), num_items).item_ids.double()
    assert drawn.min() >= 1
    assert drawn.max() <= num_items
    # Five standard errors of a uniform mean, and of the share of odd numbers among the large.
    assert abs(drawn.mean() / num_items - 0.5) < 5 * (1 / 12 / drawn.numel()) ** 0.5
    odd = drawn[drawn > 2**25].remainder(2).mean()
    assert abs(odd - 0.5) < 5 * 0.5 / (drawn.numel() / 2) ** 0.5


def test_a_user_who_has_seen_everything_is_refused_where_draws_are_his_own():
    rows, seen = torch.tensor([0, 1]), seen_items([{1}, {1, 2, 3}])
    with pytest.raises(InputError, match="a user has seen all 3 items"):
        UniformNegatives().sample(rows, rows, seen, 3)
    drawn = UniformNegatives(20, shared=True).sample(rows, rows * 0, seen, 3)
    assert not drawn.counted(rows, rows * 0)[1].any()


def test_a_user_who_has_seen_nearly_everything_gets_the_rest():
    seen = seen_items([set(range(1, 1000))])
    drawn = UniformNegatives(7).sample(torch.tensor([0]), torch.tensor([1]), seen, 1000)
    assert drawn.item_ids.tolist() == [[1000] * 7]
    assert drawn.log_probabilities.eq(0).all()


def test_no_draws_are_refused():
    with pytest.raises(InputError, match="num_negatives=0 must be at least 1"):
        UniformNegatives(0)
