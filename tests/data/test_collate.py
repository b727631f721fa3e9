from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from seqrec.data.batching import BatchSampler
from seqrec.data.collate import WindowDataset
from seqrec.data.splits import LeaveOneOut
from seqrec.data.store import EventStore, write_store
from seqrec.data.windows import NewestWindow, StridedWindows, WindowIndex, newest_windows
from seqrec.types import SequenceBatch

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


def stage_dataset(store: EventStore, stage: str, max_length: int, stride: int | None = None) -> WindowDataset:
    stops = LeaveOneOut().history_stops(store, stage)
    offsets = np.asarray(store.offsets)[:-1]
    if stage == "train":
        policy = NewestWindow() if stride is None else StridedWindows(stride)
        windows = policy.index(offsets, stops - 1, max_length)
    else:
        windows = newest_windows(offsets, stops, max_length)
    return WindowDataset(store, windows, stops, with_targets=stage != "predict")


def collate_slowly(
    store: EventStore, windows: WindowIndex, numbers: list[int], stage: str
) -> dict[str, list[Any]]:
    """What a batch says of each window, one user after another."""
    held_out = {"train": 2, "validate": 2, "test": 1, "predict": 0}[stage]
    names = ("item_ids", "lengths", "timestamps", "targets", "user_ids", "seen")
    expected: dict[str, list[Any]] = {name: [] for name in names}
    longest = max(int(windows.stops[n] - windows.starts[n]) for n in numbers)
    for number in numbers:
        row, start, stop = (int(x[number]) for x in (windows.user_rows, windows.starts, windows.stops))
        padding = [0] * (longest - (stop - start))
        first, end = int(store.offsets[row]), int(store.offsets[row + 1])
        expected["item_ids"].append(store.item_ids[start:stop].tolist() + padding)
        expected["lengths"].append(stop - start)
        expected["user_ids"].append(row + 1)
        expected["seen"].append(sorted(set(store.item_ids[first : end - held_out].tolist())))
        if store.timestamps is not None:
            expected["timestamps"].append(store.timestamps[start:stop].tolist() + padding)
        if stage != "predict":
            expected["targets"].append(store.item_ids[start + 1 : stop + 1].tolist() + padding)
    return expected


def contents(batch: SequenceBatch) -> dict[str, list[Any]]:
    """A batch as lists; what it lacks is empty."""
    history, seen = batch.history, batch.seen
    bounds = seen.offsets.tolist()
    return {
        "item_ids": history.item_ids.tolist(),
        "lengths": history.lengths.tolist(),
        "timestamps": [] if history.timestamps is None else history.timestamps.tolist(),
        "targets": [] if batch.targets is None else batch.targets.tolist(),
        "user_ids": batch.user_ids.tolist(),
        "seen": [seen.item_ids[a:b].tolist() for a, b in itertools.pairwise(bounds)],
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, EventStore]:
    """The same histories with times (True) and without."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        times: write_histories(folder / str(times), random_histories(12), times=times)
        for times in (True, False)
    }


@settings(deadline=None, max_examples=80)
@given(
    stage=st.sampled_from(["train", "validate", "test", "predict"]),
    times=st.booleans(),
    max_length=st.integers(1, 30),
    data=st.data(),
)
def test_batches_equal_a_loop_over_users(
    stores: dict[bool, EventStore], stage: str, times: bool, max_length: int, data: st.DataObject
):
    stride = data.draw(st.none() | st.integers(1, max_length))
    dataset = stage_dataset(stores[times], stage, max_length, stride)
    numbers = data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=9))
    batch = dataset[np.array(numbers)]
    assert contents(batch) == collate_slowly(stores[times], dataset.windows, numbers, stage)
    assert len(batch) == len(numbers)
    tensors = (batch.history.item_ids, batch.history.lengths, batch.user_ids, batch.seen.item_ids)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert (batch.targets is None) == (stage == "predict")
    assert (batch.history.timestamps is None) == (not times)


@pytest.fixture
def two_users(tmp_path: Path) -> EventStore:
    return write_histories(tmp_path / "two", [[1, 2, 3, 4, 5, 6], [7, 8, 9]])


def test_training_by_hand(two_users: EventStore):
    batch = stage_dataset(two_users, "train", 2)[np.array([0])]
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
    batch = stage_dataset(two_users, stage, 3)[np.array([0, 1])]
    assert batch.history.item_ids.tolist() == items
    assert batch.targets is not None
    assert batch.targets.tolist() == targets
    assert batch.last_targets.tolist() == last
    assert batch.seen.item_ids.tolist() == seen
    assert batch.history.valid.tolist() == [[item > 0 for item in row] for row in items]


def test_prediction_shows_the_whole_history_and_no_target(two_users: EventStore):
    batch = stage_dataset(two_users, "predict", 10)[np.array([1, 0])]
    assert batch.history.item_ids.tolist() == [[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert batch.targets is None
    assert batch.seen.item_ids.tolist() == [7, 8, 9, 1, 2, 3, 4, 5, 6]


def test_loader_processes_give_the_batches_of_the_main_process(stores: dict[bool, EventStore]):
    dataset = stage_dataset(stores[True], "validate", 6)

    def batches(num_workers: int) -> list[dict[str, list[Any]]]:
        sampler = BatchSampler(dataset.windows.lengths, batch_size=5, shuffle=False)
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            # The strictest way to start a process: all that it gets is pickled.
            multiprocessing_context="spawn" if num_workers else None,
        )
        loaded = list(loader)
        assert all(isinstance(batch, SequenceBatch) for batch in loaded)
        return [contents(batch) for batch in loaded]

    in_main = batches(0)
    assert len(in_main) == 3
    assert batches(2) == in_main
