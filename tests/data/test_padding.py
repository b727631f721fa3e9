"""Padded batches have the events, targets and seen items of the batch that was copied last, and nothing else."""

from __future__ import annotations

import pytest
import torch
from graphed_runs import NUM_ITEMS, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.padding import LEAST_EVENTS, PaddedBatch, padded_size
from seqrec.training.negatives.negative_sampler import seen_draws
from seqrec.training.negatives.uniform import draw_unseen
from seqrec.types import SequenceBatch


@pytest.mark.parametrize(("most", "sizes"), [(1000, 11), (5000, 16), (50, 3)])
def test_few_sizes_stand_for_all(most: int, sizes: int):
    found = [padded_size(size, most=most) for size in range(1, most + 1)]
    assert len(set(found)) == sizes
    assert max(found) == most
    for size, padded in enumerate(found, start=1):
        assert size <= padded <= max(LEAST_EVENTS, 1.5 * size)


def padded_and_copied(lengths: list[int], seed: int) -> tuple[PaddedBatch, SequenceBatch]:
    """A padded batch with traces of a longer one, and the batch that it holds."""
    generator = torch.Generator().manual_seed(seed)
    longer, batch = make_batch([9] * len(lengths), generator), make_batch(lengths, generator)
    padded = PaddedBatch.like(longer, num_events=12, num_seen=60)
    for each in (longer, batch):
        padded.fill(each)
    return padded, batch


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 1000))
def test_a_padded_batch_is_the_batch_that_was_copied_last(lengths: list[int], seed: int):
    padded, batch = padded_and_copied(lengths, seed)
    assert batch.targets is not None
    assert padded.targets is not None
    longest = max(lengths)
    for own, new in ((padded.history.item_ids, batch.history.item_ids), (padded.targets, batch.targets)):
        assert torch.equal(own[:, :longest], new)
        assert not own[:, longest:].any()
    assert torch.equal(padded.history.lengths, batch.history.lengths)
    assert torch.equal(padded.weight, batch.weight)
    count = int(batch.seen.offsets[-1])
    assert torch.equal(padded.seen.offsets, batch.seen.offsets)
    assert torch.equal(padded.seen.item_ids[:count], batch.seen.item_ids)
    assert torch.equal(padded.seen.rows[:count], batch.seen.rows)
    assert (padded.seen.rows[count:] == len(batch)).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 1000))
def test_samplers_draw_the_same_from_padded_seen_items(lengths: list[int], seed: int):
    padded, batch = padded_and_copied(lengths, seed)
    rows = torch.arange(len(lengths)).repeat_interleave(50)
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand((len(rows), 2), dtype=torch.float64, generator=generator)
    drawn = draw_unseen(uniforms, rows, batch.seen, NUM_ITEMS)
    assert torch.equal(draw_unseen(uniforms, rows, padded.seen, NUM_ITEMS), drawn)
    items = torch.randint(1, NUM_ITEMS + 1, (len(rows), 3), generator=generator)
    assert torch.equal(seen_draws(items, rows, padded.seen), seen_draws(items, rows, batch.seen))
