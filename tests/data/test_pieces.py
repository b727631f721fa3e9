from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data import pieces
from seqrec.data.pieces import events_before, time_quantile

TIMES = st.lists(st.integers(-(10**13), 10**13), min_size=1, max_size=60)


@settings(deadline=None)
@given(
    TIMES | st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.floats(0.001, 0.999),
    st.sampled_from([7, 10**6]),
)
def test_quantiles_equal_those_of_sorted_times(times: list[int], quantile: float, piece: int):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pieces, "PIECE_EVENTS", piece)
        found = time_quantile(np.array(times), quantile)
    assert found == sorted(times)[int(np.ceil(quantile * len(times))) - 1]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6).map(sorted), min_size=1),
    st.integers(0, 10),
    st.integers(1, 9),
)
def test_events_before_equal_a_loop_over_users(users: list[list[int]], time: int, piece: int):
    offsets = np.cumsum([0, *map(len, users)])
    times = np.array([t for user in users for t in user], dtype=np.int64)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pieces, "PIECE_EVENTS", piece)
        found = events_before(times, offsets, time)
    assert found.tolist() == [sum(t < time for t in user) for user in users]
