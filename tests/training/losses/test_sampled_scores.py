from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.catalogue.scorer import Scorer
from seqrec.training.losses import sampled_scores as module
from seqrec.training.losses.sampled_scores import pair_scores


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 7, 16, 10_000]))
def test_scores_and_gradients_equal_the_scorers(events: int, items: int, width: int, block: int):
    torch.manual_seed(0)
    leaves = [torch.randn(n, width, dtype=torch.float64).requires_grad_() for n in (events, 6)]
    item_ids = torch.randint(0, 6, (events, items))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_BLOCK", block)
        found = pair_scores(*leaves, item_ids)
        expected = Scorer(leaves[1]).score(leaves[0], item_ids)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
        weights = torch.randn_like(found)
        torch.testing.assert_close(
            torch.autograd.grad((found * weights).sum(), leaves),
            torch.autograd.grad((expected * weights).sum(), leaves),
            rtol=1e-13,
            atol=1e-13,
        )


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(frozen: int):
    leaves = [torch.randn(3, 2), torch.randn(4, 2)]
    leaves[1 - frozen].requires_grad_()
    pair_scores(*leaves, torch.tensor([[0, 1], [2, 3], [3, 3]])).sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad.shape == leaves[1 - frozen].shape


def test_sixteen_bit_tables_sum_gradients_in_float32():
    # 4,096 times the same item: a bfloat16 sum of ones stops at 256.
    states = torch.ones(64, 1)
    vectors = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    pair_scores(states, vectors, torch.ones(64, 64, dtype=torch.int64)).sum().backward()
    assert vectors.grad.tolist() == [[0], [4096]]
    assert vectors.grad.dtype == torch.bfloat16


def test_a_second_derivative_is_refused():
    states, vectors = torch.ones(1, 2, requires_grad=True), torch.ones(3, 2)
    scores = pair_scores(states, vectors, torch.tensor([[1, 2]]))
    with pytest.raises(NotImplementedError, match=r"have no second derivative.*without create_graph=True"):
        torch.autograd.grad(scores.sum(), states, create_graph=True)
