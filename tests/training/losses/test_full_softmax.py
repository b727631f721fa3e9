from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    NUM_ITEMS,
    assert_equal_with_gradients,
    random_batch,
    random_item_vectors,
    random_states,
)
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.errors import InputError
from seqrec.training.losses import FullSoftmax
from seqrec.training.losses.chunked_cross_entropy import chunked_cross_entropy
from seqrec.types import SequenceBatch


def plain(batch: SequenceBatch, states: Tensor, vectors: Tensor) -> Tensor:
    """Cross-entropy on the scores of all items at once."""
    valid = batch.history.valid
    return F.cross_entropy(states[valid] @ vectors[1:].T, batch.targets[valid] - 1)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from([None, 1, 5, 30, 77, 200, 1000]),
    st.integers(0, 2),
)
def test_loss_and_gradients_equal_plain_cross_entropy(
    lengths: list[int], num_items: int, chunk: int | None, extra_padding: int
):
    batch = random_batch(lengths, extra_padding, num_items)
    assert_equal_with_gradients(
        FullSoftmax(chunk=chunk),
        random_states(batch),
        batch,
        random_item_vectors(num_items),
        lambda states, vectors: plain(batch, states, vectors),
    )


def test_only_events_with_a_target_are_scored(monkeypatch):
    """A filter that keeps one event in twenty leaves a twentieth of the scores to compute."""
    batch, rows = random_batch([60, 40], num_items=NUM_ITEMS), []

    def counted(states: Tensor, *args: object, **kwargs: object) -> Tensor:
        rows.append(len(states))
        return chunked_cross_entropy(states, *args, **kwargs)

    monkeypatch.setattr("seqrec.training.losses.full_softmax.chunked_cross_entropy", counted)
    kept = torch.zeros_like(batch.targets)
    kept.flatten()[batch.history.valid.flatten().nonzero().flatten()[::20]] = 1
    some = replace(batch, targets=batch.targets * kept)
    states, vectors = random_states(batch), random_item_vectors()
    loss = FullSoftmax()(states, some, Scorer(vectors))
    assert rows == [5]
    here = kept.bool()
    torch.testing.assert_close(loss, F.cross_entropy(states[here] @ vectors[1:].T, batch.targets[here] - 1))


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_catalogue_of_one_item_costs_nothing(chunk: int | None):
    batch = random_batch([3, 1], num_items=1)
    states, vectors = random_states(batch).requires_grad_(), random_item_vectors(1).requires_grad_()
    loss = FullSoftmax(chunk=chunk)(states, batch, Scorer(vectors))
    assert loss.item() == 0
    assert all(gradient.eq(0).all() for gradient in torch.autograd.grad(loss, (states, vectors)))


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_scores_stay_finite(chunk: int | None, scale: float):
    batch = random_batch([4, 2])
    states = (random_states(batch).float() * scale).requires_grad_()
    vectors = random_item_vectors().float().requires_grad_()
    loss = FullSoftmax(chunk=chunk)(states, batch, Scorer(vectors))
    torch.testing.assert_close(loss, plain(batch, states, vectors))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (states, vectors)))


@pytest.mark.parametrize("chunk", [None, 10])
def test_a_certain_target_has_a_small_exact_cost(chunk: int | None):
    batch = random_batch([1], num_items=1)
    states = torch.tensor([[[30.0]]], dtype=torch.float64, requires_grad=True)
    vectors = torch.zeros(30, 1, dtype=torch.float64)
    vectors[1] = 1
    loss = FullSoftmax(chunk=chunk)(states, batch, Scorer(vectors))
    assert loss.item() == pytest.approx(28 * torch.exp(torch.tensor(-30.0)).item(), rel=1e-2)


def test_gradients_of_a_frozen_side_are_left_out():
    batch = random_batch([3, 2])
    for chunk in (None, 10):
        for frozen in (0, 1):
            leaves = [random_states(batch), random_item_vectors()]
            expected = [leaf.clone().requires_grad_() for leaf in leaves]
            leaves[1 - frozen].requires_grad_()
            FullSoftmax(chunk=chunk)(leaves[0], batch, Scorer(leaves[1])).backward()
            plain(batch, *expected).backward()
            assert leaves[frozen].grad is None
            torch.testing.assert_close(leaves[1 - frozen].grad, expected[1 - frozen].grad)


def test_chunk_bounds_what_is_held(monkeypatch: pytest.MonkeyPatch):
    from seqrec.ops import cross_entropy as module

    monkeypatch.setenv("SEQREC_CROSS_ENTROPY_BACKEND", "reference")
    made = []
    whole = module._scores

    def watched(*arguments: object) -> Tensor:
        scores = whole(*arguments)
        made.append(scores.numel())
        return scores

    monkeypatch.setattr(module, "_scores", watched)
    batch = random_batch([6, 5, 6, 6], num_items=40)
    for chunk in (45, 100, 200, 1000):
        made.clear()
        states = random_states(batch).requires_grad_()
        FullSoftmax(chunk=chunk)(states, batch, Scorer(random_item_vectors(40))).backward()
        assert max(made) <= chunk
        assert sum(made) == 23 * 40


def test_padding_vector_gets_no_gradient():
    batch = random_batch([3, 2])
    vectors = random_item_vectors().requires_grad_()
    FullSoftmax()(random_states(batch), batch, Scorer(vectors)).backward()
    assert vectors.grad[0].eq(0).all()
    assert vectors.grad[1:].ne(0).all()


def test_no_budget_is_refused():
    with pytest.raises(InputError, match="chunk=0 must be at least 1, or None"):
        FullSoftmax(chunk=0)


def test_the_history_is_not_read():
    assert not FullSoftmax().needs_seen
