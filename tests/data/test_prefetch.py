"""Batches that a thread makes ahead come in order, with the iterator's errors, and no earlier than they are needed."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prefetch import AHEAD, PrefetchedBatches, prefetched
from seqrec.data.sources import Synthetic
from seqrec.types import History, RaggedItems, SequenceBatch

CPU = torch.device("cpu")


def batch(number: int) -> SequenceBatch:
    item_ids = torch.full((1, 2), number)
    return SequenceBatch(
        History(item_ids, torch.tensor([2])), item_ids, torch.tensor([number]), RaggedItems.from_rows(list(item_ids))
    )


class Numbered(Iterator[SequenceBatch]):
    def __init__(self, count: int, *, fails_at: int | None = None) -> None:
        self.made = 0
        self.count = count
        self.fails_at = fails_at

    def __next__(self) -> SequenceBatch:
        if self.made == self.fails_at:
            raise OSError("the disk is gone")
        if self.made == self.count:
            raise StopIteration
        self.made += 1
        return batch(self.made)


def wait_for(numbered: Numbered, made: int) -> None:
    for _ in range(1000):
        if numbered.made == made:
            return
        time.sleep(0.005)
    raise AssertionError(f"{numbered.made} batches were made, expected {made}")


def test_batches_come_in_order_and_a_few_are_made_ahead():
    numbered = Numbered(6)
    ahead = PrefetchedBatches(numbered, CPU)
    time.sleep(0.05)
    assert numbered.made == 0
    assert int(next(ahead).user_ids) == 1
    wait_for(numbered, 1 + AHEAD)
    assert [int(each.user_ids) for each in ahead] == [2, 3, 4, 5, 6]
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_error_takes_the_place_of_its_batch():
    ahead = PrefetchedBatches(Numbered(6, fails_at=2), CPU)
    assert [int(next(ahead).user_ids) for _ in range(2)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_the_thread_ends_if_the_epoch_is_left_early():
    others = set(threading.enumerate())
    ahead = PrefetchedBatches(Numbered(100), CPU)
    next(ahead)
    (thread,) = set(threading.enumerate()) - others
    del ahead
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_pairs_keep_their_keys_while_batches_are_made_ahead():
    numbered = Numbered(6)
    pairs = prefetched(((number, each) for number, each in enumerate(numbered, start=1)), CPU)
    assert next(pairs)[0] == 1
    wait_for(numbered, 1 + AHEAD)
    found = [(key, int(each.user_ids)) for key, each in pairs]
    assert found == [(number, number) for number in range(2, 7)]


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.process)])
def test_epochs_are_those_of_a_loader_that_makes_nothing_ahead(tmp_path: Path, num_workers: int):
    found = []
    for device in (None, CPU):
        data = SequenceDataModule(
            Synthetic(num_users=30, num_items=40, mean_events=9),
            store=str(tmp_path / "store"), batch_size=4, max_length=8, num_workers=num_workers,
        )  # fmt: skip
        loader = data.train_dataloader()
        loader.device = device
        # Lightning makes an iterator before it sets the epoch, and leaves epochs early.
        unused = iter(loader)
        loader.sampler.set_epoch(3)
        users = [next(unused).user_ids.tolist(), next(unused).user_ids.tolist()]
        for epoch in (4, 5):
            loader.sampler.set_epoch(epoch)
            users += [each.user_ids.tolist() for each in loader]
        found.append(users)
    assert found[0] == found[1]
