"""What every registered objective must do; a new one writes only what is peculiar to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from loss_problems import NUM_ITEMS, random_batch, random_item_vectors, random_states
from torch import Tensor

import seqrec.training.losses
from seqrec.catalogue.scorer import Scorer
from seqrec.specs import from_spec, to_spec
from seqrec.training.losses import GBCE, LOSSES, Loss, SampledSoftmax
from seqrec.training.negatives import PopularityNegatives, UniformNegatives
from seqrec.types import SequenceBatch

CONFIGS = Path(__file__).parents[3] / "configs" / "fragments" / "loss"
COUNTS = torch.arange(NUM_ITEMS + 1) * 3
every_loss = pytest.mark.parametrize("name", list(LOSSES))


def ready(name: str) -> Loss:
    """The objective with its defaults, but for draws that a catalogue of twelve items has room for."""
    loss = GBCE(UniformNegatives(5)) if name == "GBCE" else LOSSES[name]()
    loss.use_item_counts(COUNTS)
    return loss


def seeded(loss: Loss, states: Tensor, batch: SequenceBatch, vectors: Tensor) -> Tensor:
    torch.manual_seed(0)
    return loss(states, batch, Scorer(vectors))


@every_loss
@pytest.mark.parametrize("lengths", [[1], [5, 1, 3], [2, 2]])
def test_loss_is_a_finite_scalar(name: str, lengths: list[int]):
    batch = random_batch(lengths)
    loss = seeded(ready(name), random_states(batch), batch, random_item_vectors())
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.isfinite()
    # A batch of one event has no other target to compete with.
    assert loss > 0 or (name == "InBatchSoftmax" and lengths == [1])


@every_loss
def test_padding_changes_neither_loss_nor_gradients(name: str):
    results = []
    for extra_padding in (0, 5):
        batch = random_batch([4, 2, 1], extra_padding)
        states, vectors = random_states(batch), random_item_vectors().requires_grad_()
        states[~batch.history.valid] = torch.nan
        states.requires_grad_()
        loss = seeded(ready(name), states, batch, vectors)
        by_states, by_vectors = torch.autograd.grad(loss, (states, vectors))
        valid = batch.history.valid
        assert by_states[~valid].eq(0).all()
        assert by_states[valid].ne(0).any(1).all()
        assert by_vectors[0].eq(0).all()
        results.append((loss, by_states[valid], by_vectors))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@every_loss
def test_events_without_a_target_cost_nothing(name: str):
    """A batch with a filter of targets is one whose rows contain only the selected events, in value and gradients."""
    batch = random_batch([6, 4, 3])
    assert batch.targets is not None
    kept = torch.zeros_like(batch.targets, dtype=torch.bool)
    for row, positions in enumerate([[1, 4, 5], [2], [0, 1]]):
        kept[row, positions] = True
    states, vectors = random_states(batch), random_item_vectors()
    selected, compact = replace(batch, targets=batch.targets * kept), random_batch([3, 1, 2])
    fewer = replace(compact, targets=torch.zeros_like(compact.targets), seen_events=batch.seen_events)
    fewer_states = torch.full((*compact.history.item_ids.shape, states.shape[-1]), 1e3, dtype=torch.float64)
    fewer.targets[compact.history.valid] = batch.targets[kept]
    fewer_states[compact.history.valid] = states[kept]
    states[~kept] = torch.nan
    found, expected = (
        (each.requires_grad_(), table.requires_grad_(), seeded(ready(name), each, of, table))
        for each, table, of in (
            (states, vectors.clone(), selected),
            (fewer_states, vectors.clone(), fewer),
        )
    )
    torch.testing.assert_close(found[2], expected[2], rtol=1e-12, atol=0)
    by_states, by_vectors = torch.autograd.grad(found[2], found[:2])
    wanted_states, wanted_vectors = torch.autograd.grad(expected[2], expected[:2])
    assert by_states[~kept].eq(0).all()
    torch.testing.assert_close(by_states[kept], wanted_states[compact.history.valid], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(by_vectors, wanted_vectors, rtol=1e-12, atol=1e-14)


@every_loss
def test_gradients_equal_finite_differences(name: str):
    batch, loss = random_batch([3, 1]), ready(name)
    states, vectors = random_states(batch), random_item_vectors()
    states[~batch.history.valid] = 0
    assert torch.autograd.gradcheck(
        lambda s, v: seeded(loss, s, batch, v), (states.requires_grad_(), vectors.requires_grad_())
    )


@every_loss
def test_a_seed_repeats_the_loss(name: str):
    batch = random_batch([4, 3])
    results = [seeded(ready(name), random_states(batch), batch, random_item_vectors()) for _ in range(2)]
    assert torch.equal(*results)


@every_loss
def test_a_step_down_the_gradient_lowers_the_loss(name: str):
    batch, loss = random_batch([4, 3]), ready(name)
    states, vectors = random_states(batch).requires_grad_(), random_item_vectors().requires_grad_()
    before = seeded(loss, states, batch, vectors)
    by_states, by_vectors = torch.autograd.grad(before, (states, vectors))
    after = seeded(loss, states - 0.01 * by_states, batch, vectors - 0.01 * by_vectors)
    assert after < before


@every_loss
def test_bfloat16_autocast_stays_near_float32(name: str):
    batch, loss = random_batch([6, 6, 5]), ready(name)
    states, vectors = random_states(batch).float(), random_item_vectors().float()
    exact = seeded(loss, states, batch, vectors)
    vectors.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        # What an encoder gives under autocast.
        found = seeded(loss, states.bfloat16(), batch, vectors)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.02)
    assert torch.autograd.grad(found, vectors)[0].dtype == torch.float32


@every_loss
def test_sixteen_bit_states_and_tables_are_summed_in_float32(name: str):
    batch, loss = random_batch([6, 6, 5]), ready(name)
    states, vectors = random_states(batch).bfloat16(), random_item_vectors().bfloat16()
    # What is rounded is rounded already: all that follows is as exact as float32.
    exact = seeded(loss, states.double(), batch, vectors.double())
    found = seeded(loss, states, batch, vectors)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


@every_loss
def test_the_history_is_read_only_where_the_loss_says_so(name: str):
    batch, loss = random_batch([4, 2]), ready(name)
    seeded(loss, random_states(batch), batch, random_item_vectors())
    assert ("seen" in batch.__dict__) == loss.needs_seen


@every_loss
def test_counts_are_asked_for_only_where_they_are_needed(name: str):
    batch = random_batch([4, 2])
    loss = GBCE(UniformNegatives(5)) if name == "GBCE" else LOSSES[name]()
    if loss.needs_item_counts:
        with pytest.raises(ValueError, match="needs the items' counts"):
            loss(random_states(batch), batch, Scorer(random_item_vectors()))
    else:
        assert loss(random_states(batch), batch, Scorer(random_item_vectors())).isfinite()


@every_loss
def test_a_spec_rebuilds_the_loss(name: str):
    spec = to_spec(LOSSES[name]())
    rebuilt = from_spec(spec)
    assert type(rebuilt) is LOSSES[name]
    assert to_spec(rebuilt) == spec


@every_loss
def test_nothing_of_a_loss_goes_into_checkpoints(name: str):
    assert ready(name).state_dict() == {}


def test_a_spec_keeps_every_choice():
    loss = SampledSoftmax(PopularityNegatives(7, alpha=0.5, exclude_seen=False, shared=True), log_q=False)
    assert to_spec(from_spec(to_spec(loss)))["init_args"] == {
        "negatives": {
            "class_path": "seqrec.PopularityNegatives",
            "init_args": {"num_negatives": 7, "alpha": 0.5, "exclude_seen": False, "shared": True},
        },
        "log_q": False,
        "log_q_target": False,
        "next_targets": None,
    }


@every_loss
def test_a_loss_is_registered_and_exported_under_its_name(name: str):
    assert LOSSES[name].__name__ == name
    assert getattr(seqrec.training.losses, name) is LOSSES[name]
    assert name in seqrec.training.losses.__all__


def test_every_loss_has_a_config_that_says_no_more_than_its_name():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(LOSSES)
    for path in CONFIGS.glob("*.yaml"):
        assert yaml.safe_load(path.read_text()) == {"model": {"init_args": {"loss": {"class_path": path.stem}}}}
