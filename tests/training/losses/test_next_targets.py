"""Several positives a position: which they are, and objectives with them against loops over positions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    NUM_ITEMS,
    FixedNegatives,
    assert_equal_with_gradients,
    random_batch,
    random_item_vectors,
    random_states,
)
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.specs import from_spec, to_spec
from seqrec.training.losses import FullSoftmax, InBatchSoftmax, NextTargets, SampledSoftmax
from seqrec.training.losses.loss import select_events
from seqrec.types import SequenceBatch

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=3)


def timed_batch(lengths: list[int], kept: int) -> SequenceBatch:
    """A batch whose event i is at time 10 i, and whose targets are those with the bits of `kept`."""
    batch = random_batch(lengths, extra_padding=1)
    assert batch.targets is not None
    times = 10 * torch.arange(batch.targets.shape[1] + 1).expand(len(lengths), -1)
    is_kept = torch.tensor([kept >> place & 1 for place in range(batch.targets.numel())]).view_as(batch.targets)
    # At least one target: the first event's.
    is_kept[0, 0] = 1
    valid = batch.history.valid
    history = replace(batch.history, timestamps=times[:, :-1] * valid)
    return replace(batch, history=history, targets=batch.targets * is_kept, request_times=times[:, 1:] * valid)


def positives_slowly(batch: SequenceBatch, n: int, within: int | None) -> list[tuple[int, int, list[int]]]:
    """Row, position and positives of each event with a target."""
    found = []
    for row, targets in enumerate(batch.targets.tolist()):
        for position, target in enumerate(targets):
            if target:
                near = range(position, len(targets) if within is None else position + max(within // 10, 1))
                found.append((row, position, [targets[at] for at in near if at < len(targets) and targets[at]][:n]))
    return found


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(0, 2**20), st.integers(2, 4), st.sampled_from([None, 0, 9, 10, 25, 40]))
def test_positives_are_the_next_targets_within_a_time(lengths, kept: int, n: int, within: int | None):
    batch = timed_batch(lengths, kept)
    expected = [items for _, _, items in positives_slowly(batch, n, within)]
    events = select_events(random_states(batch), batch)
    found = NextTargets(n, within=within).positives(events, batch)
    assert [[item for item in row if item] for row in found.tolist()] == expected
    assert found[:, 0].equal(events.targets)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(0, 2**20), st.sampled_from([None, 20]), st.sampled_from([None, 7]))
def test_full_softmax_is_the_mean_over_each_positions_positives(lengths, kept: int, within, chunk):
    batch, wanted = timed_batch(lengths, kept), NextTargets(3, within=within)

    def plain(states: Tensor, vectors: Tensor) -> Tensor:
        costs = []
        for row, position, items in positives_slowly(batch, 3, within):
            logits = (vectors[1:] @ states[row, position]).expand(len(items), -1)
            costs.append(F.cross_entropy(logits, torch.tensor(items) - 1))
        return torch.stack(costs).mean()

    loss = FullSoftmax(chunk=chunk, next_targets=wanted)
    assert_equal_with_gradients(loss, random_states(batch), batch, random_item_vectors(), plain)


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(0, 2**20), st.sampled_from([None, 20]), st.booleans(), st.booleans(), st.booleans())
def test_sampled_softmax_lets_each_positive_compete_with_the_draws_of_others(
    lengths, kept: int, within, shared: bool, exclude_seen: bool, log_q: bool
):
    batch, wanted = timed_batch(lengths, kept), NextTargets(3, within=within)
    sampler = FixedNegatives(5, shared=shared, exclude_seen=exclude_seen)
    events = select_events(random_states(batch), batch)
    drawn = sampler.sample(events.rows, events.targets, batch.seen, NUM_ITEMS)
    seen = [set(batch.seen.item_ids[batch.seen.rows == row].tolist()) for row in range(len(lengths))]

    def plain(states: Tensor, vectors: Tensor) -> Tensor:
        costs = []
        for event, (row, position, items) in enumerate(positives_slowly(batch, 3, within)):
            logits = vectors @ states[row, position]
            own = drawn.item_ids if shared else drawn.item_ids[event]
            rivals = []
            for item in own.tolist():
                if item not in items and not (exclude_seen and item in seen[row]):
                    chance = item / (NUM_ITEMS * (NUM_ITEMS + 1) / 2)
                    rivals.append(logits[item] - (math.log(5 * chance) if log_q else 0))
            each = [torch.stack([logits[item], *rivals]).logsumexp(0) - logits[item] for item in items]
            costs.append(torch.stack(each).mean())
        return torch.stack(costs).mean()

    loss = SampledSoftmax(sampler, log_q=log_q, next_targets=wanted)
    assert_equal_with_gradients(loss, random_states(batch), batch, random_item_vectors(), plain)


def test_one_positive_is_the_loss_without_further_ones():
    batch, states = timed_batch([5, 2], -1), random_states(timed_batch([5, 2], -1))
    scorer = Scorer(random_item_vectors())
    for kind in (SampledSoftmax, InBatchSoftmax):
        values = []
        for loss in (kind(), kind(next_targets=NextTargets(2, within=0))):
            loss.use_item_counts(torch.arange(NUM_ITEMS + 1))
            torch.manual_seed(0)
            values.append(loss(states, batch, scorer))
        torch.testing.assert_close(*values)


def test_a_corrected_target_has_no_further_ones():
    with pytest.raises(InputError, match="corrects the score of one target"):
        SampledSoftmax(log_q_target=True, next_targets=NextTargets(2))


def test_a_log_without_times_has_no_time_within():
    batch = random_batch([3])
    loss = FullSoftmax(next_targets=NextTargets(2, within=5))
    with pytest.raises(InputError, match=r"next_targets\.within=5 needs timestamps"):
        loss(random_states(batch), batch, Scorer(random_item_vectors()))


@pytest.mark.parametrize(("arguments", "message"), [({"n": 1}, "n=1 must"), ({"n": 2, "within": -1}, "within=-1 must")])
def test_one_positive_and_a_time_before_are_refused(arguments: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        NextTargets(**arguments)


def test_a_spec_keeps_the_positives():
    spec = to_spec(FullSoftmax(next_targets=NextTargets(4, within=60)))
    assert spec["init_args"]["next_targets"] == {
        "class_path": "seqrec.NextTargets",
        "init_args": {"n": 4, "within": 60},
    }
    assert to_spec(from_spec(spec)) == spec
