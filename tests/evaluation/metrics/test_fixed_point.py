from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec.evaluation.metrics.functional import from_fixed_point, to_fixed_point

VALUES = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=30)


@given(VALUES)
def test_the_sum_is_the_exact_one_but_for_what_a_value_loses_below_the_last_bit(values: list[float]):
    parts = to_fixed_point(torch.tensor(values, dtype=torch.float64)).sum(0)
    exact = sum(map(Fraction, values))
    found = Fraction(int(parts[0]), 2**31) + Fraction(int(parts[1]), 2**62)
    assert abs(found - exact) <= Fraction(len(values), 2**63)
    assert abs(from_fixed_point(parts).item() - float(exact)) <= 2**-52 * float(exact) + 2**-60


@given(st.floats(2**-9, 1))
def test_a_value_comes_back_as_it_was(value: float):
    assert from_fixed_point(to_fixed_point(torch.tensor(value, dtype=torch.float64))).item() == value
