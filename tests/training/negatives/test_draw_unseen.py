from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_problems import grid, seen_items

from seqrec.errors import InputError
from seqrec.training.negatives import draw_unseen


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(2, 12))
def test_each_unseen_item_owns_an_equal_part_of_the_unit_interval(data: st.DataObject, num_items: int):
    item_sets = st.sets(st.integers(1, num_items), max_size=num_items - 1)
    sets = data.draw(st.lists(item_sets, min_size=1, max_size=4))
    seen = seen_items(sets)
    for row, items in enumerate(sets):
        unseen = [item for item in range(1, num_items + 1) if item not in items]
        drawn = draw_unseen(grid(3 * len(unseen)), torch.tensor([row]), seen, num_items)
        assert drawn.tolist() == [[item for item in unseen for _ in range(3)]]


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(2, 40))
def test_a_batch_of_draws_equals_draws_row_by_row(data: st.DataObject, num_items: int):
    item_sets = st.sets(st.integers(1, num_items), max_size=num_items - 1)
    sets = data.draw(st.lists(item_sets, min_size=1, max_size=5))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(sets) - 1), min_size=1, max_size=8)))
    uniforms = torch.rand((len(rows), 6), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = []
    for row, numbers in zip(rows.tolist(), uniforms.tolist(), strict=True):
        unseen = [item for item in range(1, num_items + 1) if item not in sets[row]]
        expected.append([unseen[int(number * len(unseen))] for number in numbers])
    assert draw_unseen(uniforms, rows, seen_items(sets), num_items).tolist() == expected


def test_users_who_lack_a_single_item_always_get_it():
    sets = [set(range(1, 1001)) - {left} for left in (1, 500, 1000)]
    drawn = draw_unseen(grid(50).expand(3, -1), torch.arange(3), seen_items(sets), 1000)
    assert drawn.tolist() == [[1] * 50, [500] * 50, [1000] * 50]


def test_the_largest_uniform_number_draws_the_last_unseen_item():
    largest = torch.tensor([[1 - 2.0**-53]], dtype=torch.float64)
    for num_items in (1, 3, 10, 2**24, 30_000_001, 2**40 - 1):
        assert draw_unseen(largest, torch.tensor([0]), seen_items([set()]), num_items).tolist() == [[num_items]]


def test_a_user_who_has_seen_everything_is_refused():
    seen = seen_items([{1}, {1, 2, 3}])
    with pytest.raises(InputError, match=r"a user has seen all 3 items.*leave such users out.*exclude_seen"):
        draw_unseen(grid(2), torch.tensor([0]), seen, 3)


def test_neighbouring_items_of_a_catalogue_above_float32s_integers_are_told_apart():
    num_items = 2**26
    seen = seen_items([{1, num_items - 2, num_items}])
    free = num_items - 3
    uniforms = (torch.arange(free - 4, free, dtype=torch.float64) + 0.5).unsqueeze(0) / free
    drawn = draw_unseen(uniforms, torch.tensor([0]), seen, num_items)
    assert (drawn - num_items).tolist() == [[-5, -4, -3, -1]]
