from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, DistributedSampler

from seqrec.data.batching import BatchSampler
from seqrec.errors import InputError

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=120).map(np.array)
SHAPES: dict[str, Any] = {
    "lengths": LENGTHS,
    "batch_size": st.integers(1, 9),
    "world_size": st.integers(1, 3),
}


def ranks_batches(
    lengths: np.ndarray, *, world_size: int = 1, epoch: int = 0, **settings: Any
) -> list[list[list[int]]]:
    """Batches of each rank."""
    batches = []
    for rank in range(world_size):
        sampler = BatchSampler(lengths, rank=rank, world_size=world_size, **settings)
        sampler.set_epoch(epoch)
        batches.append([batch.tolist() for batch in sampler])
        assert len(sampler) == len(batches[-1])
    return batches


def flat(batches: list[list[list[int]]]) -> list[int]:
    return [number for rank in batches for batch in rank for number in batch]


@settings(deadline=None)
@given(**SHAPES, bucket=st.booleans(), epoch=st.integers(0, 3))
def test_each_epoch_trains_on_every_window_and_ranks_get_equally_many_batches(
    lengths: np.ndarray, batch_size: int, world_size: int, bucket: bool, epoch: int
):
    batches = ranks_batches(
        lengths, batch_size=batch_size, world_size=world_size, bucket=bucket, epoch=epoch, shuffle=True
    )
    numbers, total = flat(batches), batch_size * world_size
    assert set(numbers) == set(range(len(lengths)))
    # Only a last global batch that is too small to give each rank a window is filled up.
    rest = len(lengths) % total
    assert len(numbers) == len(lengths) + (world_size - rest if 0 < rest < world_size else 0)
    assert {len(rank) for rank in batches} == {-(-len(lengths) // total)}
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)


@settings(deadline=None)
@given(**SHAPES, bucket=st.booleans())
def test_evaluation_judges_every_window_exactly_once(
    lengths: np.ndarray, batch_size: int, world_size: int, bucket: bool
):
    batches = ranks_batches(
        lengths, batch_size=batch_size, world_size=world_size, bucket=bucket, shuffle=False
    )
    assert sorted(flat(batches)) == list(range(len(lengths)))
    sizes = [len(rank) for rank in batches]
    assert max(sizes) - min(sizes) <= 1
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)


def test_evaluation_begins_with_the_longest_windows():
    lengths = np.array([3, 9, 1, 9, 4])
    assert ranks_batches(lengths, batch_size=2, shuffle=False) == [[[1, 3], [4, 0], [2]]]


@pytest.mark.parametrize("bucket", [True, False])
def test_seed_and_epoch_alone_fix_the_order(bucket: bool):
    lengths = np.random.default_rng(0).integers(1, 50, 300)

    def order(**changes: Any) -> list[list[list[int]]]:
        return ranks_batches(lengths, **{"batch_size": 4, "shuffle": True, "bucket": bucket, **changes})

    first = order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) == first
    assert order(seed=1, epoch=3) != first
    assert order(seed=2, epoch=2) != first


def test_evaluations_order_is_the_same_in_each_epoch():
    lengths = np.random.default_rng(0).integers(1, 50, 100)
    assert ranks_batches(lengths, batch_size=7, shuffle=False, epoch=5, seed=3) == ranks_batches(
        lengths, batch_size=7, shuffle=False
    )


def test_bucketing_saves_most_of_the_padding_and_keeps_batches_in_random_order():
    lengths = np.random.default_rng(0).geometric(0.02, 2000)

    def padding(batches: list[list[int]]) -> int:
        return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)

    (bucketed,) = ranks_batches(lengths, batch_size=16, shuffle=True, bucket=True)
    (shuffled,) = ranks_batches(lengths, batch_size=16, shuffle=True, bucket=False)
    assert padding(bucketed) < padding(shuffled) / 4
    longest = np.array([lengths[batch].max() for batch in bucketed])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        BatchSampler(np.array([1, 2]), batch_size=0, shuffle=True)


@pytest.mark.parametrize("mode", [RunningStage.TRAINING, RunningStage.VALIDATING, RunningStage.PREDICTING])
def test_lightning_does_not_divide_the_windows_between_ranks_again(mode: RunningStage):
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False
    )
    numbers = np.arange(6)

    def prepared(loader: DataLoader) -> DataLoader:
        return trainer._data_connector._prepare_dataloader(loader, shuffle=False, mode=mode)

    # Lightning takes an ordinary loader apart, which shows that it would do so here.
    assert isinstance(prepared(DataLoader(numbers)).batch_sampler.sampler, DistributedSampler)
    sampler = BatchSampler(numbers + 1, batch_size=2, shuffle=False, rank=1, world_size=2)
    assert prepared(DataLoader(numbers, batch_size=None, sampler=sampler)).sampler is sampler
