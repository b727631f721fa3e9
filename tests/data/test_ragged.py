from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqrec.data.ragged import ranges


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 8))))
def test_ranges_are_pythons_ranges_one_behind_the_other(runs: list[tuple[int, int]]):
    starts = np.array([start for start, _ in runs], dtype=np.int64)
    counts = np.array([count for _, count in runs], dtype=np.int64)
    expected = [number for start, count in runs for number in range(start, start + count)]
    assert ranges(starts, counts).tolist() == expected
    assert ranges(starts, counts).dtype == np.int64
