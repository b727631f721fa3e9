from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, DistributedSampler

from seqrec.data.sampler import BatchPlan, BatchSampler, TrainedSegment, like_lengths, split_into_steps
from seqrec.data.windows import RandomCrop, WindowIndex
from seqrec.errors import InputError

Windows = Callable[[np.random.Generator], WindowIndex]

# Both ways to size a batch; every window fits into the smallest budget.
SIZES = st.one_of(
    st.integers(1, 9).map(lambda rows: {"batch_size": rows}),
    st.integers(3000, 20_000).map(lambda events: {"max_tokens": events}),
)
# Short ones, so that many are of one length, and long ones, which are only alike.
WINDOW_LENGTHS = st.integers(1, 20) | st.integers(2000, 3000)
ORDERS = st.sampled_from(
    [
        {"shuffle": True},
        {"shuffle": True, "bucket": False},
        {"shuffle": False},
        {"shuffle": False, "bucket": False},
        {"shuffle": True, "carry_state": True},
    ]
)


@st.composite
def samplers(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a sampler that are allowed together, for windows of 1 to 3000 events."""
    world_size = draw(st.integers(1, 4))
    lengths = draw(st.lists(WINDOW_LENGTHS, min_size=world_size, max_size=120))
    size, order = draw(SIZES), draw(ORDERS)
    assume("batch_size" in size or order.get("bucket", True) or not order["shuffle"])
    return {"windows": windows_of(lengths), "world_size": world_size, **size, **order}


def windows_of(lengths: Any) -> Windows:
    """The same windows in each epoch, window i of user row i."""
    stops = np.cumsum(lengths)
    index = WindowIndex(np.arange(len(stops)), stops - lengths, stops)
    return lambda _: index


def long_tailed(count: int, seed: int = 0) -> np.ndarray:
    """Events of histories as logs have them, cut at 5000."""
    lengths = np.random.default_rng(seed).lognormal(np.log(400), 1.2, count)
    return np.clip(lengths.astype(np.int64), 1, 5000)


def ranks_plans(*, epoch: int = 0, skip: int = 0, world_size: int = 1, **settings: Any) -> list[list[BatchPlan]]:
    """Plans of each rank's batches."""
    plans = []
    for rank in range(world_size):
        sampler = BatchSampler(rank=rank, world_size=world_size, **settings)
        sampler.set_epoch(epoch)
        sampler.resume([], skip)
        plans.append(list(sampler))
        assert len(sampler) == len(plans[-1]) + skip
    return plans


def ranks_batches(**settings: Any) -> list[list[list[int]]]:
    """User rows of each rank's batches."""
    return [[plan.windows.user_rows.tolist() for plan in rank] for rank in ranks_plans(**settings)]


def users(batches: list[list[list[int]]]) -> list[int]:
    return [user for rank in batches for batch in rank for user in batch]


def padding(plans: list[BatchPlan]) -> float:
    """Share of positions that hold no event."""
    positions = sum(len(plan.windows) * int(plan.windows.lengths.max()) for plan in plans)
    return 1 - sum(int(plan.windows.lengths.sum()) for plan in plans) / positions


@settings(deadline=None)
@given(samplers(), st.integers(0, 3))
def test_every_window_is_in_one_batch_of_one_rank_and_ranks_get_equally_many_batches(
    arguments: dict[str, Any], epoch: int
):
    batches = ranks_batches(**arguments, epoch=epoch)
    assert sorted(users(batches)) == arguments["windows"](None).user_rows.tolist()
    assert len({len(rank) for rank in batches}) == 1
    assert all(batch for rank in batches for batch in rank)
    assert len(batches[0]) == len(ranks_batches(**arguments, epoch=epoch + 1)[0])


@settings(deadline=None)
@given(samplers(), st.integers(0, 3))
def test_no_batch_is_larger_than_allowed_but_by_a_row_where_too_small_a_rest_joins(
    arguments: dict[str, Any], epoch: int
):
    steps = list(zip(*ranks_plans(**arguments, epoch=epoch), strict=True))
    too_large = []
    for step in steps:
        for windows in (plan.windows for plan in step):
            longest = int(windows.lengths.max())
            allowed = arguments.get("batch_size") or arguments["max_tokens"] // longest
            assert len(windows) <= allowed + 1
            if len(windows) > allowed:
                too_large.append(step)
    assert len({id(step) for step in too_large}) <= 1
    assert len(too_large) < arguments["world_size"]


def test_long_tailed_batches_keep_within_the_budget_and_fill_it_in_each_epoch():
    for epoch in range(5):
        (plans,) = ranks_plans(windows=windows_of(long_tailed(5000)), max_tokens=80_000, shuffle=True, epoch=epoch)
        positions = np.array([len(plan.windows) * plan.windows.lengths.max() for plan in plans])
        assert positions.max() <= 80_000
        # The last step has the remaining windows.
        assert np.sort(positions)[1] > 0.9 * 80_000


@settings(deadline=None)
@given(samplers(), st.data())
def test_a_fixed_batch_size_gives_as_many_steps_as_fit(arguments: dict[str, Any], data: st.DataObject):
    arguments.pop("max_tokens", None)
    rows = arguments.setdefault("batch_size", data.draw(st.integers(1, 9)))
    world_size, total = arguments["world_size"], rows * arguments["world_size"]
    count = len(arguments["windows"](None))
    full, rest = divmod(count, total)
    assert len(BatchSampler(**arguments)) == full + (rest >= world_size or full == 0)


@settings(deadline=None)
@given(samplers(), st.integers(0, 3), st.data())
def test_a_skipped_iteration_is_the_rest_of_the_epoch(arguments: dict[str, Any], epoch: int, data: st.DataObject):
    whole = ranks_batches(**arguments, epoch=epoch)
    skip = data.draw(st.integers(0, len(whole[0])))
    assert ranks_batches(**arguments, epoch=epoch, skip=skip) == [rank[skip:] for rank in whole]


@given(samplers(), st.integers(0, 3), st.data())
def test_jobs_of_any_size_that_follow_each_other_yield_each_window_once(
    arguments: dict[str, Any], epoch: int, data: st.DataObject
):
    """Each job takes some steps of what those before left, on another number of ranks and in other batches."""
    way = {name: arguments.pop(name, None) for name in ("world_size", "batch_size", "max_tokens")}
    way["world_size"] = way["world_size"] or 1
    whole = sorted(plan_rows(ranks_plans(**arguments, **way, epoch=epoch)))
    segments: list[TrainedSegment] = []
    seen: list[int] = []
    for _ in range(data.draw(st.integers(1, 3))):
        rest = len(whole) - len(seen)
        way = {**way, "world_size": data.draw(st.integers(1, min(4, rest)))}
        if way["batch_size"] is not None:
            way["batch_size"] = data.draw(st.integers(1, 8))
        ranks = [BatchSampler(rank=rank, **arguments, **way) for rank in range(way["world_size"])]
        for sampler in ranks:
            sampler.set_epoch(epoch)
            done = sampler.resume(segments, 0)
            assert 0 <= done <= len(sampler)
        plans = [list(sampler) for sampler in ranks]
        assert {len(plan) for plan in plans} == {len(ranks[0]) - done}
        assert sorted(seen + plan_rows(plans)) == whole
        taken = data.draw(st.integers(0, len(plans[0]) - 1))
        # Resumed in the same way it goes on where it was.
        ranks[0].resume(segments, taken)
        assert rows_of([list(ranks[0])]) == rows_of([plans[0][taken:]])
        seen += plan_rows([plan[:taken] for plan in plans])
        segments.append(TrainedSegment(taken, **way))


def plan_rows(plans: list[list[BatchPlan]]) -> list[int]:
    """User rows of all ranks' batches."""
    return [row for rank in plans for plan in rank for row in plan.windows.user_rows.tolist()]


def rows_of(plans: list[list[BatchPlan]]) -> list[list[int]]:
    """User rows of each batch."""
    return [plan.windows.user_rows.tolist() for rank in plans for plan in rank]


def test_only_one_iteration_is_skipped():
    sampler = BatchSampler(windows_of([3, 1, 2, 5]), batch_size=1, shuffle=True)
    sampler.resume([], 3)
    assert [len(list(sampler)) for _ in range(3)] == [1, 4, 4]


@settings(deadline=None)
@given(samplers(), st.integers(0, 3))
def test_weighted_means_of_batches_average_to_the_mean_over_all_targets(arguments: dict[str, Any], epoch: int):
    plans = [plan for rank in ranks_plans(**arguments, epoch=epoch) for plan in rank]
    weights = np.array([plan.weight for plan in plans])
    if not arguments.get("bucket", True) and arguments["shuffle"]:
        assert set(weights) == {1.0}
        return
    # Some number a target, here the number of its window, so that batches differ in their means.
    values = [np.repeat(plan.windows.user_rows, plan.windows.lengths) for plan in plans]
    over_targets = np.concatenate(values).mean()
    assert weights.mean() == pytest.approx(1)
    assert np.mean(weights * [value.mean() for value in values]) == pytest.approx(over_targets)


def test_evaluation_begins_with_the_longest_windows():
    windows = windows_of([3, 9, 1, 9, 4])
    assert ranks_batches(windows=windows, batch_size=2, shuffle=False) == [[[1, 3], [4, 0], [2]]]
    assert ranks_batches(windows=windows, max_tokens=10, shuffle=False) == [[[1], [3], [4, 0], [2]]]


def test_ranks_take_turns_in_getting_the_longest_window():
    batches = ranks_batches(windows=windows_of(np.arange(16, 0, -1)), batch_size=2, shuffle=False, world_size=2)
    assert batches == [[[0, 2], [5, 7], [8, 10], [13, 15]], [[1, 3], [4, 6], [9, 11], [12, 14]]]


@pytest.mark.parametrize("order", [{"shuffle": False}, {"shuffle": True}, {"shuffle": True, "bucket": False}])
def test_too_few_windows_for_a_step_join_the_step_before(order: dict[str, bool]):
    def rows(count: int) -> list[list[int]]:
        """Rows of each rank's batches, most first."""
        windows = windows_of(np.arange(count, 0, -1))
        batches = ranks_batches(windows=windows, batch_size=2, world_size=3, **order)
        return sorted(([len(batch) for batch in rank] for rank in batches), reverse=True)

    # A step has room for six windows and needs three.
    assert rows(8) == [[3], [3], [2]]
    assert sorted(map(sorted, rows(9))) == [[1, 2]] * 3


@pytest.mark.parametrize(
    "settings", [{"batch_size": 4}, {"batch_size": 4, "bucket": False}, {"max_tokens": 200}], ids=str
)
def test_seed_and_epoch_alone_fix_the_order(settings: dict[str, Any]):
    windows = windows_of(np.random.default_rng(0).integers(1, 50, 300))

    def order(**changes: Any) -> list[list[list[int]]]:
        return ranks_batches(**{"windows": windows, "shuffle": True, **settings, **changes})

    first = order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) == first
    assert order(seed=1, epoch=3) != first
    assert order(seed=2, epoch=2) != first


def test_evaluations_order_is_the_same_in_each_epoch():
    windows = windows_of(np.random.default_rng(0).integers(1, 50, 100))
    assert ranks_batches(windows=windows, batch_size=7, shuffle=False, epoch=5, seed=3) == ranks_batches(
        windows=windows, batch_size=7, shuffle=False
    )


@pytest.mark.parametrize("size", [{"batch_size": 16}, {"max_tokens": 16 * 5000}], ids=str)
@pytest.mark.parametrize("world_size", [1, 2])
def test_less_than_a_twentieth_of_long_tailed_batches_is_padding(size: dict[str, int], world_size: int):
    windows = windows_of(long_tailed(20_000))
    for shuffle in (True, False):
        for rank in ranks_plans(windows=windows, shuffle=shuffle, world_size=world_size, **size):
            assert padding(rank) < 0.05
    if "batch_size" in size:
        (unsorted,) = ranks_plans(windows=windows, shuffle=True, bucket=False, **size)
        assert padding(unsorted) > 0.5


def test_rows_of_like_length_meet_other_rows_in_each_epoch_and_batches_come_in_random_order():
    lengths = long_tailed(20_000)

    def batches(epoch: int) -> list[list[int]]:
        return ranks_batches(windows=windows_of(lengths), batch_size=16, shuffle=True, epoch=epoch)[0]

    first, second = batches(0), batches(1)
    neighbours = {user: set(batch) for batch in first for user in batch}
    again = np.mean([len(neighbours[user].intersection(batch)) - 1 for batch in second for user in batch])
    # Of 15 others in a batch; a fixed partition gives 15.
    assert again < 4
    longest = np.array([lengths[batch].max() for batch in first])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.1


@pytest.mark.parametrize("size", [{"batch_size": 16}, {"max_tokens": 16 * 5000}], ids=str)
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_get_like_many_events_a_step_and_none_always_the_longest(size: dict[str, int], shuffle: bool):
    ranks = ranks_plans(windows=windows_of(long_tailed(20_000)), shuffle=shuffle, world_size=3, **size)
    events = np.array([[plan.windows.lengths.sum() for plan in rank] for rank in ranks])
    # The last step is smaller, and its share for a rank may be one row larger.
    uneven = (events.max(0) - events.min(0)) / events.mean(0)
    assert np.sort(uneven)[-2] < 0.05
    longest = np.array([[plan.windows.lengths.max() for plan in rank] for rank in ranks])
    wins = np.bincount(longest.argmax(0)[longest.max(0) > longest.min(0)], minlength=3)
    assert wins.min() > wins.sum() / 6


def test_windows_may_change_each_epoch_while_batches_keep_their_number():
    counts = long_tailed(300)
    stops = np.cumsum(counts)
    windows = partial(RandomCrop().index, stops - counts, stops, 500)
    epochs = [ranks_plans(windows=windows, max_tokens=4000, shuffle=True, epoch=epoch)[0] for epoch in range(4)]
    assert len({len(plans) for plans in epochs}) == 1
    starts = []
    for plans in epochs:
        rows = np.concatenate([plan.windows.user_rows for plan in plans])
        assert np.array_equal(np.sort(rows), np.arange(300))
        starts.append(np.concatenate([plan.windows.starts for plan in plans])[np.argsort(rows)])
    long = counts > 600
    assert (starts[0][~(counts > 500)] == starts[1][~(counts > 500)]).all()
    assert np.mean(starts[0][long] != starts[1][long]) > 0.95


def test_windows_whose_number_depends_on_the_epoch_are_refused():
    epochs = [[2, 2, 2], [2, 2, 2, 2]]

    def windows(_: np.random.Generator) -> WindowIndex:
        return windows_of(epochs.pop(0))(_)

    sampler = BatchSampler(windows, batch_size=1, shuffle=True)
    sampler.set_epoch(7)
    with pytest.raises(
        InputError,
        match="windows of epoch 7 make 4 batches, those of epoch 0 made 3; their number and lengths",
    ):
        next(iter(sampler))


def test_an_iterator_that_nobody_takes_from_leaves_the_skip_alone():
    sampler = BatchSampler(windows_of([3, 2, 1]), batch_size=1, shuffle=False)
    sampler.resume([], 2)
    iter(sampler)
    assert [plan.windows.lengths.tolist() for plan in sampler] == [[1]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_windows_of_the_first_steps_are_those_of_all_ranks(world_size: int):
    samplers = [
        BatchSampler(windows_of([9, 8, 7, 6, 5]), batch_size=2, shuffle=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for steps in range(len(samplers[0]) + 1):
        batches = [plan for sampler in samplers for plan in list(sampler)[:steps]]
        assert samplers[0].num_windows(steps) == sum(len(plan.windows) for plan in batches)


@given(st.lists(st.integers(1, 10**6), min_size=1))
def test_like_lengths_are_a_little_longer_and_few(lengths: list[int]):
    rounded = like_lengths(np.array(lengths))
    assert (rounded >= lengths).all()
    assert (rounded - lengths <= np.array(lengths) / 32).all()
    assert np.array_equal(like_lengths(rounded), rounded)
    assert np.array_equal(np.sort(rounded), like_lengths(np.sort(lengths)))
    assert len(np.unique(like_lengths(np.arange(1, 5001)))) < 300


@given(st.lists(st.integers(1, 12), min_size=1, max_size=80).map(sorted), st.integers(1, 4))
def test_steps_start_where_a_loop_over_windows_starts_them(sizes: list[int], least: int):
    starts, begin = [], 0
    while begin < len(sizes):
        starts.append(begin)
        begin += sizes[begin]
    if len(starts) > 1 and len(sizes) - starts[-1] < least:
        starts.pop()
    assert split_into_steps(np.array(sizes), least).tolist() == starts


def chained(counts: list[int]) -> Windows:
    """Consecutive windows of 5 events of each user, so many as counted; the oldest has 3."""
    user_rows = np.repeat(np.arange(len(counts)), counts)
    lengths = np.where(np.append(True, np.diff(user_rows) > 0), 3, 5)
    stops = np.cumsum(lengths)
    index = WindowIndex(user_rows, stops - lengths, stops)[np.random.default_rng(0).permutation(len(stops))]
    return lambda _: index


def continued(plans: list[BatchPlan]) -> int:
    """Check that rows that continue others are windows that follow those of the batch before; return their number."""
    total = 0
    for number, plan in enumerate(plans):
        assert plan.continues is not None
        rows = np.flatnonzero(plan.continues)
        total += len(rows)
        if number == 0:
            assert not len(rows)
            continue
        before, now = plans[number - 1].windows[rows], plan.windows[rows]
        assert before.user_rows.tolist() == now.user_rows.tolist()
        assert before.stops.tolist() == now.starts.tolist()
    return total


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=20),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
    st.data(),
)
def test_rows_continue_those_of_the_batch_before_with_few_users_cut(
    counts: list[int], rows: int, world_size: int, epoch: int, data: st.DataObject
):
    arguments: dict[str, Any] = {"windows": chained(counts), "shuffle": True, "carry_state": True}
    ranks = ranks_plans(**arguments, batch_size=rows, world_size=world_size, epoch=epoch)
    begun = sum(counts) - sum(map(continued, ranks))
    # A user has one window that continues none, and another for each run that begins with a later one.
    assert len(counts) <= begun <= len(counts) + rows * world_size + world_size - 2
    steps = data.draw(st.integers(1, len(ranks[0])))
    assume(sum(counts) - sum(len(plan.windows) for rank in ranks for plan in rank[:steps]) >= 1)
    rest = BatchSampler(**arguments, batch_size=rows + 1)
    rest.set_epoch(epoch)
    rest.resume([TrainedSegment(steps, world_size, rows, None)], 0)
    continued(list(rest))


def test_no_row_continues_another_if_the_longest_windows_come_first():
    plans = list(BatchSampler(chained([4, 2, 3]), batch_size=2, shuffle=False, carry_state=True))
    assert not any(plan.continues.any() for plan in plans if plan.continues is not None)
    assert all(plan.continues is not None for plan in plans)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({}, "batch_size=None and max_tokens=None: give exactly one, and null for the other"),
        ({"batch_size": 2, "max_tokens": 9}, "batch_size=2 and max_tokens=9: give exactly one"),
        (
            {"max_tokens": 9, "bucket": False},
            "max_tokens=9 needs rows of similar length together: bucket by length",
        ),
        (
            {"max_tokens": 6},
            "max_tokens=6 cannot hold the longest window, 7 events; raise it, or lower max_length",
        ),
        ({"batch_size": 2, "world_size": 4}, "3 windows cannot be divided between 4 processes"),
    ],
)
def test_settings_that_make_no_batches_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        BatchSampler(windows_of([5, 7, 1]), shuffle=True, **arguments)


@pytest.mark.parametrize("batches", [-1, 4])
def test_more_than_an_epoch_cannot_be_skipped(batches: int):
    sampler = BatchSampler(windows_of([5, 7, 1]), batch_size=1, shuffle=True)
    with pytest.raises(InputError, match=f"cannot skip {batches} batches of an epoch that has 3"):
        sampler.resume([], batches)


@pytest.mark.parametrize("mode", [RunningStage.TRAINING, RunningStage.VALIDATING, RunningStage.PREDICTING])
def test_lightning_does_not_divide_the_windows_between_ranks_again(mode: RunningStage):
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False)
    numbers = np.arange(6)

    def prepared(loader: DataLoader) -> DataLoader:
        return trainer._data_connector._prepare_dataloader(loader, shuffle=False, mode=mode)

    # Lightning takes an ordinary loader apart, which shows that it would do so here.
    assert isinstance(prepared(DataLoader(numbers)).batch_sampler.sampler, DistributedSampler)
    sampler = BatchSampler(windows_of(numbers + 1), batch_size=2, shuffle=False, rank=1, world_size=2)
    assert prepared(DataLoader(numbers, batch_size=None, sampler=sampler)).sampler is sampler
