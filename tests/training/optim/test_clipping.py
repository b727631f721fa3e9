from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.ops.row_gradients import row_gradient
from seqrec.training.optim import clip_gradients


def with_gradients(sparse: Tensor) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with a sparse, a dense and no gradient, and the same with all gradients dense."""
    torch.manual_seed(0)
    shapes = (tuple(sparse.shape), (3, 2), (4,))
    ours = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    theirs = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    dense = torch.randn(3, 2)
    ours[0].grad, theirs[0].grad = sparse, sparse.to_dense()
    ours[1].grad, theirs[1].grad = dense.clone(), dense.clone()
    return ours, theirs


@pytest.fixture
def repeated_rows(sparse_gradient: Callable[..., Tensor]) -> Tensor:
    values = torch.tensor([[3.0, -1.0], [2.0, 0.5], [4.0, 0.1], [-2.5, 0.0]])
    return sparse_gradient([5, 1, 5, 1], values, 7)


def assert_equal_gradients(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        if expected.grad is None:
            assert mine.grad is None
        else:
            assert mine.grad is not None
            torch.testing.assert_close(mine.grad.to_dense(), expected.grad)


@pytest.mark.parametrize("max_norm", [0.01, 3.0, 1000.0])
def test_the_norm_is_that_of_the_gradients_made_dense(repeated_rows: Tensor, max_norm: float):
    ours, theirs = with_gradients(repeated_rows)
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(clip_gradients(ours, max_norm=max_norm), expected)
    assert_equal_gradients(ours, theirs)
    assert ours[0].grad is not None
    assert ours[0].grad.is_sparse
    assert ours[0].grad.is_coalesced()


@pytest.mark.parametrize("max_value", [0.4, 6.0])
def test_values_are_those_of_the_gradients_made_dense(repeated_rows: Tensor, max_value: float):
    ours, theirs = with_gradients(repeated_rows)
    nn.utils.clip_grad_value_(theirs, max_value)
    assert clip_gradients(ours, max_value=max_value) is None
    assert_equal_gradients(ours, theirs)


def test_the_parameters_may_be_an_iterator(repeated_rows: Tensor):
    ours, theirs = with_gradients(repeated_rows)
    nn.utils.clip_grad_norm_(theirs, 0.5)
    clip_gradients(iter(ours), max_norm=0.5)
    assert_equal_gradients(ours, theirs)


def test_a_distinct_gradient_is_clipped_too():
    table = nn.Parameter(torch.zeros(6, 2))
    table.grad = row_gradient(torch.tensor([1, 4]), torch.tensor([[3.0, 0.0], [0.0, 4.0]]), table.shape)
    norm = clip_gradients([table], max_norm=1.0)
    assert norm is not None
    assert norm.item() == pytest.approx(5.0)
    torch.testing.assert_close(table.grad.to_dense().norm(), torch.tensor(1.0), rtol=1e-5, atol=0)


def test_gradients_of_bfloat16_keep_their_type_beside_others():
    table, weight = nn.Parameter(torch.zeros(5, 2, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(2))
    values = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 8.0]]).to(torch.bfloat16)
    table.grad = torch.sparse_coo_tensor(torch.tensor([[2, 1, 1]]), values, (5, 2), check_invariants=True)
    weight.grad = torch.tensor([4.0, 0.0])
    norm = clip_gradients([table, weight], max_norm=6.5)
    assert norm is not None
    assert norm.item() == 13.0
    assert table.grad.dtype == torch.bfloat16
    assert table.grad.to_dense()[1:3].tolist() == [[0.0, 6.0], [1.5, 0.0]]
    assert weight.grad.tolist() == pytest.approx([2.0, 0.0])


def test_without_a_limit_nothing_happens(repeated_rows: Tensor):
    ours, _ = with_gradients(repeated_rows)
    assert clip_gradients(ours, max_norm=None, max_value=None) is None
    assert ours[0].grad is repeated_rows


def test_without_gradients_the_norm_is_zero():
    assert clip_gradients([nn.Parameter(torch.ones(2))], max_norm=1.0) == torch.tensor(0.0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_is_returned_as_it_is(repeated_rows: Tensor, bad: float):
    ours, _ = with_gradients(repeated_rows)
    repeated_rows._values()[0, 0] = bad
    norm = clip_gradients(ours, max_norm=1.0)
    assert norm is not None
    assert not norm.isfinite()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_norm": 0.0}, "max_norm=0.0 must be above 0"),
        ({"max_value": -1.0}, "max_value=-1.0 must be above 0"),
        ({"max_norm": 1.0, "max_value": 2.0}, "max_norm=1.0 and max_value=2.0 exclude each other: give one"),
    ],
)
def test_limits_out_of_range_are_refused(limits: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        clip_gradients([nn.Parameter(torch.ones(2))], **limits)
