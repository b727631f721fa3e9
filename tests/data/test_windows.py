from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec.data.windows import (
    NewestWindow,
    RandomCrop,
    StridedWindows,
    TrainWindows,
    WindowIndex,
    newest_windows,
    ranges,
)
from seqrec.errors import InputError

# Events of each user: their stores lie one behind the other.
COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def user_bounds(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    stops = np.cumsum(counts).astype(np.int64)
    return stops - counts, stops


def random_numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def strided_slowly(offsets: np.ndarray, stops: np.ndarray, max_length: int, stride: int) -> list[tuple[int, int, int]]:
    windows = []
    for row, (first, end) in enumerate(zip(offsets.tolist(), stops.tolist(), strict=True)):
        while end > first:
            windows.append((row, max(first, end - max_length), end))
            if end - max_length <= first:
                break
            end -= stride
    return windows


def as_tuples(index: WindowIndex) -> list[tuple[int, int, int]]:
    return list(zip(index.user_rows.tolist(), index.starts.tolist(), index.stops.tolist(), strict=True))


@given(COUNTS, st.integers(1, 12))
def test_newest_window_holds_each_users_last_events(counts: list[int], max_length: int):
    offsets, stops = user_bounds(counts)
    expected = [
        (row, max(first, stop - max_length), stop)
        for row, (first, stop) in enumerate(zip(offsets.tolist(), stops.tolist(), strict=True))
        if stop > first
    ]
    assert as_tuples(newest_windows(offsets, stops, max_length)) == expected
    index = NewestWindow().index(offsets, stops, max_length, random_numbers())
    assert as_tuples(index) == expected
    assert len(index) == len(expected)
    assert index.lengths.tolist() == [stop - start for _, start, stop in expected]


@given(COUNTS, st.integers(1, 12), st.data())
def test_strided_windows_equal_a_loop_over_users(counts: list[int], max_length: int, data: st.DataObject):
    stride = data.draw(st.none() | st.integers(1, max_length))
    offsets, stops = user_bounds(counts)
    index = StridedWindows(stride).index(offsets, stops, max_length, random_numbers())
    assert as_tuples(index) == strided_slowly(offsets, stops, max_length, stride or max_length)
    assert {index.user_rows.dtype, index.starts.dtype, index.stops.dtype} == {np.dtype(np.int64)}


def targets_of(windows: TrainWindows, counts: list[int], max_length: int) -> Counter[int]:
    """How often each event is a target; the last event of each user is left out of the windows."""
    offsets, ends = user_bounds(counts)
    index = windows.index(offsets, ends - 1, max_length, random_numbers())
    return Counter(
        event + 1 for start, stop in zip(index.starts, index.stops, strict=True) for event in range(start, stop)
    )


def events_that_have_a_past(counts: list[int]) -> set[int]:
    offsets, ends = user_bounds(counts)
    return {
        event for first, end in zip(offsets.tolist(), ends.tolist(), strict=True) for event in range(first + 1, end)
    }


@given(COUNTS, st.integers(1, 12))
def test_windows_that_do_not_overlap_make_each_event_a_target_once(counts: list[int], max_length: int):
    times = targets_of(StridedWindows(), counts, max_length)
    assert times == dict.fromkeys(events_that_have_a_past(counts), 1)


@given(COUNTS, st.integers(1, 12), st.data())
def test_a_smaller_stride_still_makes_each_event_a_target(counts: list[int], max_length: int, data: st.DataObject):
    stride = data.draw(st.integers(1, max_length))
    times = targets_of(StridedWindows(stride), counts, max_length)
    assert times.keys() == events_that_have_a_past(counts)
    assert max(times.values(), default=0) <= -(-max_length // stride)


def test_overlapping_windows_by_hand():
    index = StridedWindows(2).index(np.array([0, 7]), np.array([7, 9]), 4, random_numbers())
    assert as_tuples(index) == [(0, 3, 7), (0, 1, 5), (0, 0, 3), (1, 7, 9)]


def test_users_without_events_to_show_have_no_window():
    # One event: as a target it has no past, and the window would end before it starts.
    offsets, stops = np.array([0, 1]), np.array([-1, 1])
    for windows in (NewestWindow(), StridedWindows(), RandomCrop()):
        assert len(windows.index(offsets, stops, 3, random_numbers())) == 0


def test_a_stride_that_would_skip_events_is_refused():
    with pytest.raises(InputError, match="stride=5 exceeds max_length=4: events between would be lost"):
        StridedWindows(5).index(np.array([0]), np.array([9]), 4, random_numbers())


@pytest.mark.parametrize("stride", [0, -1])
def test_a_stride_below_one_is_refused(stride: int):
    with pytest.raises(InputError, match=f"stride={stride} must be at least 1, or null for max_length"):
        StridedWindows(stride)


@given(COUNTS, st.integers(1, 12), st.integers(0, 99))
def test_a_random_crop_is_one_full_window_inside_each_users_history(counts: list[int], max_length: int, seed: int):
    offsets, stops = user_bounds(counts)
    index = RandomCrop().index(offsets, stops, max_length, random_numbers(seed))
    assert index.user_rows.tolist() == np.flatnonzero(counts).tolist()
    assert index.lengths.tolist() == [min(count, max_length) for count in counts if count]
    assert (index.starts >= offsets[index.user_rows]).all()
    assert (index.stops <= stops[index.user_rows]).all()
    assert {index.user_rows.dtype, index.starts.dtype, index.stops.dtype} == {np.dtype(np.int64)}


def test_every_place_of_a_random_crop_is_equally_likely():
    # 6000 users like each other: 10 events, so that windows of 4 start at one of 7 places.
    offsets, stops = user_bounds([10] * 6000)
    index = RandomCrop().index(offsets, stops, 4, random_numbers())
    times = np.bincount(index.starts - offsets, minlength=7)
    assert len(times) == 7
    # 857 each are expected, with a standard deviation of 27.
    assert abs(times - 6000 / 7).max() < 110


def test_random_crops_follow_the_random_numbers():
    offsets, stops = user_bounds([50] * 20)
    first, again, other = (
        as_tuples(RandomCrop().index(offsets, stops, 10, random_numbers(seed))) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_part_of_an_index_holds_the_windows_asked_for():
    index = newest_windows(np.array([0, 3, 8]), np.array([3, 8, 9]), 4)
    assert as_tuples(index[np.array([2, 0])]) == [(2, 8, 9), (0, 0, 3)]
    assert as_tuples(index[1:]) == [(1, 4, 8), (2, 8, 9)]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 8))))
def test_ranges_are_pythons_ranges_one_after_the_other(runs: list[tuple[int, int]]):
    starts = np.array([start for start, _ in runs], dtype=np.int64)
    counts = np.array([count for _, count in runs], dtype=np.int64)
    expected = [number for start, count in runs for number in range(start, start + count)]
    assert ranges(starts, counts).tolist() == expected
    assert ranges(starts, counts).dtype == np.int64
