from __future__ import annotations

import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampler_problems import surprise
from torch import Tensor

from seqrec.training.negatives import AliasTable, alias_table


def probabilities(table: AliasTable) -> Tensor:
    """(V,) probability of each item, from the columns."""
    return table.thresholds.index_add(0, table.aliases.long(), 1 - table.thresholds) / len(table.thresholds)


@settings(deadline=None, max_examples=400)
@given(
    st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 1.0, 1e-300]), min_size=1, max_size=40)
    # Counts, some of which are exactly the mean.
    | st.lists(st.integers(0, 4).map(float), min_size=1, max_size=12)
)
@example([0.0, 1.0, 2.0])
@example([0.0, 5e-324])
def test_columns_add_up_to_the_weights(weights: list[float]):
    expected = torch.tensor(weights, dtype=torch.float64)
    if float(expected.sum()) == 0:
        return
    table = alias_table(expected)
    assert table.thresholds.ge(0).all()
    assert table.thresholds.le(1).all()
    torch.testing.assert_close(probabilities(table), expected / expected.sum(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("power", [0.0, 1.0, 4.0])
def test_columns_of_a_large_table_add_up_to_the_weights(power: float):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1_000_000, generator=generator, dtype=torch.float64).pow(-power).clamp(max=1e5)
    table = alias_table(weights)
    expected = weights / weights.sum()
    errors = ((probabilities(table) - expected).abs() / expected).sort(descending=True).values
    # What rounding leaves over goes to one item.
    assert errors[0] < 1e-6
    assert errors[1] < 1e-9


def test_what_has_no_weight_is_never_drawn():
    torch.manual_seed(0)
    table = alias_table(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64))
    assert set(table.draw((20, 500)).flatten().tolist()) == {1, 3}
    # Not by chance: neither a part of its own column nor anyone's alias.
    assert table.thresholds[[0, 2, 4]].eq(0).all()
    assert set(table.aliases.tolist()) <= {1, 3}


def test_draws_follow_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([0, 5, 1, 0, 100, 20, 1, 1, 7], dtype=torch.float64)
    drawn = alias_table(weights).draw((100, 1000))
    assert drawn.dtype == torch.int64
    assert surprise(drawn, weights / weights.sum()) < 4


def binned_surprise(num_items: int, draws: int) -> tuple[float, float]:
    """`surprise` of draws from a large catalogue in 1,000 bins, and in odd and even items of the upper half."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.empty(num_items + 1, dtype=torch.float64).exponential_(generator=generator).pow_(2)
    weights[0] = 0
    torch.manual_seed(0)
    drawn = alias_table(weights).draw((draws,))
    weights /= weights.sum()
    bins = torch.arange(num_items + 1) * 1000 // (num_items + 1)
    in_bins = weights.new_zeros(1000).index_add_(0, bins, weights)
    upper = num_items // 2
    by_parity = weights.new_zeros(2).index_add_(0, torch.arange(upper, num_items + 1) % 2, weights[upper:])
    parity = drawn[drawn >= upper] % 2
    return surprise(bins[drawn], in_bins), surprise(parity, by_parity / by_parity.sum())


@pytest.mark.process
def test_draws_follow_the_weights_above_float32s_integers():
    all_bins, parity = binned_surprise(2**24 + 2**20, 1_000_000)
    assert abs(all_bins) < 4
    assert parity < 4


@pytest.mark.slow
def test_thirty_million_items():
    all_bins, parity = binned_surprise(30_000_000, 20_000_000)
    assert abs(all_bins) < 4
    assert parity < 4


@pytest.mark.slow
def test_ten_million_draws_a_second_from_thirty_million_items():
    table = alias_table(torch.rand(30_000_001, dtype=torch.float64).pow(4))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        table.draw((4_000_000,))
        times.append(time.perf_counter() - start)
    assert 4e6 / min(times) > 1e7
