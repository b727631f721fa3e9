from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from written_stores import write_store

from seqrec.data.collate import WindowDataset
from seqrec.data.columns import Column
from seqrec.data.event_block import EventBlock
from seqrec.data.sampler import BatchPlan, BatchSampler
from seqrec.data.splits import LastN, LeaveOneOut
from seqrec.data.store import EventStore
from seqrec.data.windows import NewestWindow, RandomCrop, StridedWindows, TrainWindows, WindowIndex
from seqrec.types import RaggedItems, SequenceBatch

NUM_ITEMS = 30


def write_histories(directory: Path, histories: list[list[int]], *, times: bool = True) -> EventStore:
    directory.mkdir(parents=True, exist_ok=True)
    flat = np.array([item for history in histories for item in history])
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    timestamps = 10 * np.arange(len(flat)) + 7 if times else None
    write_store(directory, flat, offsets, timestamps, np.arange(len(histories)), np.arange(NUM_ITEMS), {})
    return EventStore.open(directory)


def random_histories(num_users: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, NUM_ITEMS + 1, rng.integers(3, 25)).tolist() for _ in range(num_users)]


def stage_windows(
    store: EventStore, stage: str, max_length: int, policy: TrainWindows | None = None
) -> Callable[[np.random.Generator], WindowIndex]:
    stops = LeaveOneOut().history_stops(store, stage)
    # A training window's last target is a training event too.
    last = stops - 1 if stage == "train" else stops
    return partial((policy or NewestWindow()).index, np.asarray(store.offsets)[:-1], last, max_length)


def stage_dataset(store: EventStore, stage: str) -> WindowDataset:
    return WindowDataset(store, LeaveOneOut().history_stops(store, stage), with_targets=stage != "predict")


def stage_batch(store: EventStore, stage: str, max_length: int, numbers: list[int]) -> SequenceBatch:
    """The batch of some of the stage's newest windows."""
    windows = stage_windows(store, stage, max_length)(np.random.default_rng())
    return stage_dataset(store, stage)[BatchPlan(windows[np.array(numbers)], 1.0)]


def collate_slowly(store: EventStore, windows: WindowIndex, stage: str) -> dict[str, list[Any]]:
    """What a batch says of each window, one user after another."""
    held_out = {"train": 2, "validate": 2, "test": 1, "predict": 0}[stage]
    names = ("item_ids", "lengths", "timestamps", "targets", "user_ids", "seen_events", "seen")
    expected: dict[str, list[Any]] = {name: [] for name in names}
    longest = int((windows.stops - windows.starts).max())
    for row, start, stop in zip(windows.user_rows, windows.starts, windows.stops, strict=True):
        padding = [0] * (longest - (stop - start))
        first, end = int(store.offsets[row]), int(store.offsets[row + 1])
        expected["item_ids"].append(store.item_ids[start:stop].tolist() + padding)
        expected["lengths"].append(int(stop - start))
        expected["user_ids"].append(int(row) + 1)
        expected["seen_events"].append(store.item_ids[first : end - held_out].tolist())
        expected["seen"].append(sorted(set(expected["seen_events"][-1])))
        if store.timestamps is not None:
            expected["timestamps"].append(store.timestamps[start:stop].tolist() + padding)
        if stage != "predict":
            expected["targets"].append(store.item_ids[start + 1 : stop + 1].tolist() + padding)
    return expected


def contents(batch: SequenceBatch) -> dict[str, list[Any]]:
    """A batch as lists; what it lacks is empty."""
    history = batch.history

    def rows(ragged: RaggedItems) -> list[list[int]]:
        return [ragged.item_ids[a:b].tolist() for a, b in itertools.pairwise(ragged.offsets.tolist())]

    return {
        "item_ids": history.item_ids.tolist(),
        "lengths": history.lengths.tolist(),
        "timestamps": [] if history.timestamps is None else history.timestamps.tolist(),
        "targets": [] if batch.targets is None else batch.targets.tolist(),
        "user_ids": batch.user_ids.tolist(),
        "seen_events": rows(batch.seen_events),
        "seen": rows(batch.seen),
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, EventStore]:
    """The same histories with times (True) and without."""
    folder = tmp_path_factory.mktemp("stores")
    return {times: write_histories(folder / str(times), random_histories(12), times=times) for times in (True, False)}


@settings(deadline=None, max_examples=80)
@given(
    stage=st.sampled_from(["train", "validate", "test", "predict"]),
    times=st.booleans(),
    max_length=st.integers(1, 30),
    long_rows=st.sampled_from([0, 15, 1000]),
    data=st.data(),
)
def test_batches_equal_a_loop_over_users(
    stores: dict[bool, EventStore],
    stage: str,
    times: bool,
    max_length: int,
    long_rows: int,
    data: st.DataObject,
):
    policy = data.draw(st.sampled_from([NewestWindow(), StridedWindows(), StridedWindows(1), RandomCrop()]))
    windows = stage_windows(stores[times], stage, max_length, policy)(np.random.default_rng(0))
    numbers = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=9))
    windows = windows[np.array(numbers)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec.data.collate.LONG_ROWS", long_rows)
        batch = stage_dataset(stores[times], stage)[BatchPlan(windows, 0.7)]
    assert contents(batch) == collate_slowly(stores[times], windows, stage)
    assert len(batch) == len(numbers)
    tensors = (batch.history.item_ids, batch.history.lengths, batch.user_ids, batch.seen.item_ids)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert torch.equal(batch.weight, torch.tensor(0.7))
    assert (batch.targets is None) == (stage == "predict")
    assert (batch.history.timestamps is None) == (not times)


@pytest.mark.parametrize(("num_items", "dtype"), [(2**31 - 1, torch.int32), (2**31, torch.int64)])
def test_seen_events_are_in_the_smallest_type_that_holds_the_catalogue(
    two_users: EventStore, num_items: int, dtype: torch.dtype
):
    two_users.num_items = num_items
    batch = stage_batch(two_users, "test", 4, [0, 1])
    assert batch.seen_events.item_ids.dtype == dtype
    assert batch.seen.item_ids.dtype == torch.int64


@pytest.mark.parametrize("size", [{"batch_size": 5}, {"max_tokens": 30}], ids=str)
@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_of_strided_windows_has_each_event_as_target_once(
    stores: dict[bool, EventStore], size: dict[str, int], world_size: int
):
    store = stores[True]
    dataset, windows = stage_dataset(store, "train"), stage_windows(store, "train", 7, StridedWindows())
    targets: Counter[int] = Counter()
    for rank in range(world_size):
        sampler = BatchSampler(windows, shuffle=True, rank=rank, world_size=world_size, **size)
        for batch in DataLoader(dataset, batch_size=None, sampler=sampler):
            assert batch.history.timestamps is not None
            assert batch.targets is not None
            # Times tell events apart: they are 10 * event + 7.
            events = (batch.history.timestamps[batch.history.valid] - 7) // 10 + 1
            assert batch.targets[batch.history.valid].tolist() == store.item_ids[events.numpy()].tolist()
            targets.update(events.tolist())
    bounds = itertools.pairwise(store.offsets.tolist())
    assert targets == Counter(event for first, end in bounds for event in range(first + 1, end - 2))


@pytest.fixture
def two_users(tmp_path: Path) -> EventStore:
    return write_histories(tmp_path / "two", [[1, 2, 3, 4, 5, 6], [7, 8, 9]])


def test_training_by_hand(two_users: EventStore):
    batch = stage_batch(two_users, "train", 2, [0])
    # Events 5 and 6 are held out; 4 is a target only, and the second user has nothing to learn from.
    assert batch.history.item_ids.tolist() == [[2, 3]]
    assert batch.targets is not None
    assert batch.targets.tolist() == [[3, 4]]
    assert batch.seen.item_ids.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("stage", "items", "targets", "last", "seen"),
    [
        ("validate", [[2, 3, 4], [7, 0, 0]], [[3, 4, 5], [8, 0, 0]], [5, 8], [1, 2, 3, 4, 7]),
        ("test", [[3, 4, 5], [7, 8, 0]], [[4, 5, 6], [8, 9, 0]], [6, 9], [1, 2, 3, 4, 5, 7, 8]),
    ],
)
def test_evaluation_by_hand(two_users: EventStore, stage: str, items, targets, last, seen):
    batch = stage_batch(two_users, stage, 3, [0, 1])
    assert batch.history.item_ids.tolist() == items
    assert batch.targets is not None
    assert batch.targets.tolist() == targets
    assert batch.last_targets.tolist() == last
    assert batch.seen.item_ids.tolist() == seen
    assert batch.history.valid.tolist() == [[item > 0 for item in row] for row in items]


def test_prediction_shows_the_whole_history_and_no_target(two_users: EventStore):
    batch = stage_batch(two_users, "predict", 10, [1, 0])
    assert batch.history.item_ids.tolist() == [[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert batch.targets is None
    assert batch.seen.item_ids.tolist() == [7, 8, 9, 1, 2, 3, 4, 5, 6]


def test_loader_processes_give_the_batches_of_the_main_process(stores: dict[bool, EventStore]):
    dataset, windows = (
        stage_dataset(stores[True], "train"),
        stage_windows(stores[True], "train", 6, RandomCrop()),
    )

    def batches(num_workers: int) -> list[dict[str, list[Any]]]:
        sampler = BatchSampler(windows, batch_size=5, shuffle=True)
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            # Workers that live on must see the windows of the new epoch.
            persistent_workers=num_workers > 0,
            # The strictest way to start a process: all that it gets is pickled.
            multiprocessing_context="spawn" if num_workers else None,
        )
        loaded = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            loaded += list(loader)
        assert all(isinstance(batch, SequenceBatch) for batch in loaded)
        return [contents(batch) | {"weight": [batch.weight.item()]} for batch in loaded]

    in_main = batches(0)
    assert len(in_main) == 6
    assert in_main[:3] != in_main[3:]
    assert batches(2) == in_main


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize(("stage", "n"), [("validate", 1), ("test", 1), ("validate", 2), ("test", 4)])
def test_held_out_items_equal_a_loop_over_users(tmp_path: Path, times: bool, stage: str, n: int):
    # Few items, so that some are held out twice.
    histories = [[1 + event * event * user % 5 for event in range(9 + user)] for user in range(1, 7)]
    store, split = write_histories(tmp_path, histories, times=times), LastN(n)
    stops = split.history_stops(store, stage)
    windows = NewestWindow().index(np.asarray(store.offsets)[:-1], stops, 5, np.random.default_rng())[::-1]
    dataset = WindowDataset(store, stops, target_stops=split.target_stops(store, stage))
    held_out = dataset[BatchPlan(windows, 1.0)].held_out
    expected, expected_times = [], []
    for row in windows.user_rows:
        first = {}
        for place in range(stops[row], stops[row] + n):
            first.setdefault(int(store.item_ids[place]), place)
        expected.append(list(first))
        expected_times += [] if store.timestamps is None else store.timestamps[list(first.values())].tolist()
    bounds = itertools.pairwise(held_out.offsets.tolist())
    assert [held_out.item_ids[a:b].tolist() for a, b in bounds] == expected
    assert held_out.item_ids.dtype == held_out.offsets.dtype == torch.int64
    assert (held_out.timestamps.tolist() if times else []) == expected_times
    assert times or held_out.timestamps is None
    assert n < 4 or any(len(items) < n for items in expected)


def test_nothing_is_held_out_in_training_and_prediction(stores: dict[bool, EventStore]):
    for stage in ("train", "predict"):
        assert stage_batch(stores[True], stage, 5, [0, 1]).held_out is None


def features_slowly(block: EventBlock, windows: WindowIndex, scale: tuple[float, float]) -> dict[str, np.ndarray]:
    """The features of a batch, one event after another."""
    shape = len(windows), int(windows.lengths.max())
    kind, share, text = np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32)
    for row, (start, stop) in enumerate(zip(windows.starts, windows.stops, strict=True)):
        for place, event in enumerate(range(start, stop)):
            kind[row, place] = block.event_columns["kind"].values[event]
            value = float(block.event_columns["share"].values[event])
            share[row, place] = 0 if np.isnan(value) else (value - scale[0]) / scale[1]
            text[row, place] = block.event_columns["text"].values[event]
    return {"kind": kind, "share": share, "text": text}


@settings(deadline=None, max_examples=80)
@given(
    max_length=st.integers(1, 30),
    long_rows=st.sampled_from([0, 15, 1000]),
    missing=st.booleans(),
    scale=st.sampled_from([None, (2.0, 0.25)]),
    data=st.data(),
)
def test_features_equal_a_loop_over_events(max_length: int, long_rows: int, missing: bool, scale, data: st.DataObject):
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 25, 12)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    share = rng.normal(size=offsets[-1]).astype(np.float32)
    share[::5] = np.nan if missing else 1
    columns = {
        "kind": Column("categorical", rng.integers(0, 4, offsets[-1]).astype(np.uint8)),
        "share": Column("numeric", share, missing=int(np.isnan(share).sum()), mean=0.5, std=2.0),
        "text": Column("vector", rng.normal(size=(offsets[-1], 3)).astype(np.float16)),
    }
    block = EventBlock(rng.integers(1, 9, offsets[-1]), offsets, np.arange(12), 9, event_columns=columns)
    windows = StridedWindows().index(offsets[:-1], offsets[1:], max_length, rng)
    numbers = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=9))
    windows = windows[np.array(numbers)]
    dataset = WindowDataset(block, offsets[1:], with_targets=False, scales={"share": scale} if scale else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqrec.data.collate.LONG_ROWS", long_rows)
        found = dataset[BatchPlan(windows, 1.0)].history.features
    assert found is not None
    expected = features_slowly(block, windows, scale or (0.5, 2.0))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].numpy().dtype == values.dtype
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-6, atol=1e-6)


def test_a_batch_without_columns_has_no_features(stores: dict[bool, EventStore]):
    assert stage_batch(stores[True], "train", 5, [0, 1]).history.features is None


def test_a_block_gives_the_features_of_its_users():
    columns = {"kind": Column("categorical", np.array([3, 1, 2], np.uint8))}
    block = EventBlock(np.array([5, 6, 7]), np.array([0, 1, 3]), np.array([1, 2]), 9, event_columns=columns)
    ((rows, batch),) = block.batches(2, batch_size=2)
    assert rows.tolist() == [1, 0]
    assert batch.history.features is not None
    assert batch.history.features["kind"].tolist() == [[1, 2], [3, 0]]
