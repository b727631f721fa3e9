"""Bidirectional models: what training masks, the mask after a history, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import seqrec.models
from seqrec import FullSoftmax, NextTargets, evaluate
from seqrec.data.event_columns import EventColumn
from seqrec.encoders import SSD4Rec
from seqrec.encoders.event_time import EventTime
from seqrec.encoders.layers import MambaMixer
from seqrec.errors import InputError
from seqrec.models import MaskedItems, Popularity, SequentialRecommender
from seqrec.models.masked_items import masked_batch
from seqrec.types import History, SequenceBatch

NUM_ITEMS, MAX_LENGTH = 12, 6
MakeBatch = Callable[..., SequenceBatch]
both = pytest.mark.parametrize("name", ["BERT4Rec", "SSD4Rec"])


def build(name: str = "BERT4Rec", **arguments: Any) -> SequentialRecommender:
    torch.manual_seed(0)
    chosen = {"d_model": 16, "max_length": MAX_LENGTH, "dropout": 0.0} | arguments
    model: SequentialRecommender = getattr(seqrec.models, name)(NUM_ITEMS, **chosen).eval()
    return model


def test_masked_targets_become_item_0_and_the_loss_is_theirs(make_batch: MakeBatch):
    batch = make_batch([[3, 5, 7], [4]], [9, 8])
    hidden = torch.tensor([[True, False, True], [False, False, False]])
    shown, masked = masked_batch(batch, hidden)
    assert shown.item_ids.tolist() == [[3, 0, 7, 0], [4, 8, 0, 0]]
    assert shown.lengths.tolist() == [4, 2]
    assert masked.targets.tolist() == [[5, 0, 9], [0, 0, 0]]


def test_an_event_after_the_window_that_is_no_target_is_masked_without_a_loss(make_batch: MakeBatch):
    batch = make_batch([[3, 5, 7]], [0])
    assert not MaskedItems(share=1.0, last_only=0.0).draw(batch)[0, 2]
    shown, masked = masked_batch(batch, torch.tensor([[True, False, False]]))
    assert shown.item_ids.tolist() == [[3, 0, 7, 0]]
    assert masked.targets.tolist() == [[5, 0, 0]]


def test_shares_of_masks_are_those_asked_for_and_no_row_is_without_one(make_batch: MakeBatch):
    torch.manual_seed(0)
    batch = make_batch([list(range(1, 11))] * 4000, [11] * 4000)
    hidden = MaskedItems(share=0.3, last_only=0.25).draw(batch)
    assert hidden.any(1).all()
    # No draw at all leaves the newest target alone too.
    none = 0.7**10
    only = (hidden.sum(1) == 1) & hidden[:, -1]
    assert float(only.float().mean()) == pytest.approx(0.25 + 0.75 * (none + 0.3 * 0.7**9), abs=0.02)
    assert float(hidden[:, :-1].float().mean()) == pytest.approx(0.75 * 0.3, abs=0.01)
    filtered = replace(batch, targets=batch.targets * (torch.arange(10) == 4))
    assert torch.equal(MaskedItems(last_only=1.0).draw(filtered), filtered.is_target)
    assert not MaskedItems().draw(replace(batch, targets=0 * batch.targets)).any()


@both
@pytest.mark.parametrize("positions", [True, False])
@torch.no_grad()
def test_a_state_is_that_of_a_mask_after_the_history(name: str, positions: bool, make_batch: MakeBatch):
    model = build(name, positions=positions)
    batch = make_batch([[3, 5, 7, 9, 2, 4], [8, 1]], [1, 1])
    found = model.last_states(batch)
    for row, items in enumerate(([3, 5, 7, 9, 2, 4], [8, 1])):
        x = torch.cat([model.items.weight[items], model.mask.weight.unsqueeze(0)]) * 4.0
        if positions:
            x = x + model.positions.weight[: len(x)].flip(0)
        alone = History(torch.tensor([[*items, 0]]), torch.tensor([len(items) + 1]))
        torch.testing.assert_close(found[row], model.encoder(x.unsqueeze(0), alone)[0, -1])
        recommended = model.recommend(History(torch.tensor([items]), torch.tensor([len(items)])), 3)
        scores = model.items.weight[1:] @ found[row]
        scores[torch.tensor(items) - 1] = -torch.inf
        assert recommended.item_ids[0].tolist() == (scores.topk(3).indices + 1).tolist()


@torch.no_grad()
def test_a_training_step_has_the_loss_of_the_masked_items_alone(make_batch: MakeBatch):
    model, batch = build(loss=FullSoftmax(), positions=False), make_batch([[3, 5, 7], [4]], [9, 8])
    torch.manual_seed(5)
    loss = model.loss_of_batch(batch)
    torch.manual_seed(5)
    shown, masked = masked_batch(batch, model.masking.draw(batch))
    states = model(shown)[:, 1:][masked.is_target]
    expected = F.cross_entropy(states @ model.items.weight[1:].T, masked.targets[masked.is_target] - 1)
    torch.testing.assert_close(loss, expected)


@both
def test_training_learns_what_follows_and_beats_popularity(name: str, make_batch: MakeBatch):
    # Each user walks round the catalogue in steps of one.
    rows = [[(start + step) % NUM_ITEMS + 1 for step in range(3 + start % 5)] for start in range(60)]
    batch = make_batch([row[:-1] for row in rows], [row[-1] for row in rows])
    model = build(name, num_layers=1, loss=FullSoftmax()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss_of_batch(batch).backward()
        optimizer.step()
    counts = torch.bincount(torch.cat([torch.tensor(row) for row in rows]), minlength=NUM_ITEMS + 1)
    popular = evaluate(Popularity.from_counts(counts.numpy()), [batch])["NDCG@10"]
    assert evaluate(model, [batch])["NDCG@10"] > 0.9 > popular + 0.2


def test_directions_may_have_weights_of_their_own():
    def mixers(shared: bool) -> int:
        encoder = SSD4Rec(8, mixer="mamba", share_weights=shared)
        return sum(isinstance(part, MambaMixer) for part in encoder.modules())

    assert (mixers(True), mixers(False)) == (2, 4)
    with pytest.raises(InputError, match="beta=0 must be above 0"):
        SSD4Rec(8, beta=0)


def test_what_is_masked_is_part_of_a_checkpoint():
    model = build(masking=MaskedItems(share=0.4, last_only=0.0))
    rebuilt = SequentialRecommender.from_hyperparameters(dict(model.hparams))
    assert rebuilt.masking == model.masking
    assert build().masking == MaskedItems()
    assert (build("SASRec").masking, build("SASRec").mask) == (None, None)


@torch.no_grad()
def test_explanations_are_of_the_mask_after_the_history():
    model = build()
    found = model.explain(History(torch.tensor([[3, 5, 7]]), torch.tensor([3])), 4)

    def score(*items: int) -> float:
        states = model(History(torch.tensor([[*items, 0]]), torch.tensor([len(items) + 1])))
        return (states[0, -1] @ model.items.weight[4]).item()

    expected = [score(3, 5, 7) - score(5, 7), score(3, 5, 7) - score(3, 7), score(3, 5, 7) - score(3, 5)]
    torch.testing.assert_close(found.contributions, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build().init_state(1), "BERT4Rec sees newer events and cannot be streamed: .*such as MambaRec"),
        (lambda: build(positions=False).encoder.init_state(1, max_length=5), "cannot be streamed"),
        (lambda: build().step(torch.tensor([1]), None), "cannot be streamed"),
        (lambda: build().explain(History(torch.tensor([[3]]), torch.tensor([1])), 4, stream=True), "be streamed"),
        (lambda: build(loss=FullSoftmax(next_targets=NextTargets(2))), r"loss.next_targets predicts .* BERT4Rec sees"),
        (lambda: build(time=EventTime()), "time needs the time or .*: leave it out, or take a causal encoder"),
        (lambda: build(event_columns=[EventColumn("tab", "categorical", values=["a"])]), "event_columns needs"),
        (lambda: build("SASRec", masking=MaskedItems()), "masking is for bidirectional encoders, but SASRec is causal"),
        (lambda: build().encoder.read_gaps(1), "time.in_mixers=True needs the time of each event"),
        (lambda: MaskedItems(share=0), r"masking.share=0 must be above 0 and at most 1"),
        (lambda: MaskedItems(last_only=1.5), r"masking.last_only=1.5 must be between 0 and 1"),
        (lambda: build()(History(torch.ones(1, 8, dtype=torch.int64), torch.tensor([8]))), "7 events exceeds .*=6"),
    ],
)
def test_what_needs_causal_states_is_refused_with_the_fix(call: Callable[[], object], message: str):
    with pytest.raises(InputError, match=message):
        call()
