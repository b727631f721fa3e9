"""Scores of chosen items: every backend gives the values and gradients of the plain product."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops import pair_scores

module = sys.modules["seqrec.ops.pair_scores"]  # the package has the function under this name


@pytest.fixture(scope="module", params=["torch", "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpp":
        request.getfixturevalue("cpp")
    return str(request.param)


def results(states: Tensor, vectors: Tensor, item_ids: Tensor, backend: str) -> list[Tensor]:
    """Scores, and gradients of a weighted sum of them."""
    leaves = [states.clone().requires_grad_(), vectors.clone().requires_grad_()]
    scores = pair_scores(*leaves, item_ids, backend=backend)
    weights = torch.linspace(-1, 2, scores.numel()).view_as(scores)
    return [scores.detach(), *torch.autograd.grad((scores * weights.to(scores.dtype)).sum(), leaves)]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    events=st.integers(0, 40),
    items=st.integers(1, 70),
    width=st.integers(1, 70),
    rows=st.integers(1, 9),
    block=st.sampled_from([1, 7, 16, 10_000]),
)
def test_values_and_gradients_are_those_of_the_plain_product(
    backend: str, events: int, items: int, width: int, rows: int, block: int
):
    generator = torch.Generator().manual_seed(events + items)
    states, vectors = (torch.randn(n, width, generator=generator) for n in (events, rows))
    item_ids = torch.randint(0, rows, (events, items), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_BLOCK", block)
        found = results(states, vectors, item_ids, backend)
    expected = results(states.double(), vectors.double(), item_ids, "reference")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [3, 16, 37])
def test_every_variant_that_runs_here_agrees(variant: None, width: int):
    case = torch.randn(50, width), torch.randn(30, width), torch.randint(0, 30, (50, 9))
    for one, other in zip(results(*case, "cpp"), results(*case, "reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_threads_change_no_bit(cpp: None, monkeypatch: pytest.MonkeyPatch):
    case = torch.randn(3000, 64), torch.randn(50, 64), torch.randint(0, 50, (3000, 8))
    found = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(results(*case, "cpp"))
    assert all(torch.equal(one, other) for more in found[1:] for one, other in zip(found[0], more, strict=True))


@pytest.mark.parametrize("item", [-1, 4])
def test_an_id_that_is_no_row_is_refused(backend: str, item: int):
    with pytest.raises(IndexError):
        pair_scores(torch.ones(1, 2), torch.ones(4, 2), torch.tensor([[0, item]]), backend=backend)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_gets_no_gradient(backend: str, frozen: int):
    leaves = [torch.randn(3, 2), torch.randn(4, 2)]
    leaves[1 - frozen].requires_grad_()
    pair_scores(*leaves, torch.tensor([[0, 1], [2, 3], [3, 3]]), backend=backend).sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad.shape == leaves[1 - frozen].shape


def test_sixteen_bit_tables_sum_gradients_in_float32():
    # 4,096 times the same item: a bfloat16 sum of ones stops at 256.
    states = torch.ones(64, 1)
    vectors = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    pair_scores(states, vectors, torch.ones(64, 64, dtype=torch.int64)).sum().backward()
    assert vectors.grad.tolist() == [[0], [4096]]
    assert vectors.grad.dtype == torch.bfloat16


def test_a_second_derivative_is_refused(backend: str):
    states, vectors = torch.ones(1, 2, requires_grad=True), torch.ones(3, 2)
    scores = pair_scores(states, vectors, torch.tensor([[1, 2]]), backend=backend)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(torch.autograd.grad(scores.sum(), states, create_graph=True)[0].sum(), states)


def test_a_backend_that_cannot_compute_this_is_refused():
    with pytest.raises(InputError, match=r"backend='cpp' .*got torch\.float64 on cpu"):
        pair_scores(torch.ones(1, 2).double(), torch.ones(3, 2).double(), torch.tensor([[1]]), backend="cpp")
    with pytest.raises(InputError, match="has no mixed dtypes"):
        pair_scores(torch.ones(1, 2).bfloat16(), torch.ones(3, 2), torch.tensor([[1]]), backend="cpp")


def test_a_compiled_model_has_the_same_gradients(cpp: None):
    case = torch.randn(20, 8), torch.randn(9, 8), torch.randint(0, 9, (20, 3))
    leaves = [x.clone().requires_grad_() for x in case[:2]]
    compiled = torch.compile(lambda s, v: pair_scores(s, v, case[2], backend="cpp").square().sum(), backend="aot_eager")
    plain = [x.clone().requires_grad_() for x in case[:2]]
    pair_scores(*plain, case[2], backend="reference").square().sum().backward()
    compiled(*leaves).backward()
    for one, other in zip(leaves, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
