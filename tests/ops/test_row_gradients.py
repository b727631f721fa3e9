from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from seqrec.ops.row_gradients import collected_lookups, look_up, row_gradient, sum_rows, sums_at_each_row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_repeated_rows_are_summed_in_order_of_their_numbers(sparse_gradient: Callable, dtype: torch.dtype):
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [-1.0, 0.5]], dtype=dtype)
    row_ids, sums = sum_rows(sparse_gradient([7, 2, 7, 5], values, 9))
    assert row_ids.tolist() == [2, 5, 7]
    assert sums.tolist() == [[3.0, 4.0], [-1.0, 0.5], [6.0, 8.0]]
    assert sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_sums_of_bfloat16_are_made_in_float32(sparse_gradient: Callable):
    # Each 1 is below half of the last place of 512 in bfloat16.
    values = torch.tensor([[512.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16)
    assert sum_rows(sparse_gradient([1, 1, 1, 1], values, 3))[1].tolist() == [[515.0]]


def test_a_gradient_whose_rows_are_distinct_is_passed_on_without_copying():
    values = torch.randn(3, 2)
    gradient = row_gradient(torch.tensor([1, 4, 6]), values, torch.Size([8, 2]))
    assert gradient.is_coalesced()
    row_ids, sums = sum_rows(gradient)
    assert row_ids.tolist() == [1, 4, 6]
    assert sums.data_ptr() == values.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 4000])
def test_each_row_gets_the_sum_of_all_rows_with_its_number(dtype: torch.dtype, count: int):
    torch.manual_seed(0)
    # One row is repeated hundreds of times, and its values are far larger than those of the others.
    row_ids = torch.randint(0, 300, (1, count)).where(torch.rand(1, count) < 0.9, 7)
    values = torch.randn(count, 6) * torch.where(row_ids[0] == 7, 1e4, 1e-3).unsqueeze(1)
    gradient = torch.sparse_coo_tensor(row_ids, values.to(dtype), (310, 6), check_invariants=True)
    numbers, sums = sums_at_each_row(gradient)
    assert numbers.tolist() == sorted(row_ids[0].tolist())
    assert sums.dtype == torch.float32
    distinct, expected = sum_rows(gradient.double())
    torch.testing.assert_close(sums.double(), expected[torch.searchsorted(distinct, numbers)], rtol=1e-5, atol=1e-9)
    for number in numbers.unique():
        (found,) = sums[numbers == number].unique(dim=0)
        assert found.shape == (6,)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_becomes_nan_and_no_other_row(wrong: float):
    row_ids, values = torch.tensor([[5, 3, 1, 3, 0, 5]]), torch.arange(12.0).view(6, 2)
    expected = sums_at_each_row(torch.sparse_coo_tensor(row_ids, values, (7, 2), check_invariants=True))[1]
    values[1, 0] = wrong
    numbers, sums = sums_at_each_row(torch.sparse_coo_tensor(row_ids, values, (7, 2), check_invariants=True))
    assert numbers.tolist() == [0, 1, 3, 3, 5, 5]
    assert sums[numbers == 3].isnan().all()
    assert torch.equal(sums[numbers != 3], expected[numbers != 3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_on_a_gpu_are_those_on_cpu(dtype: torch.dtype):
    torch.manual_seed(0)
    row_ids, values = torch.randint(1, 50, (1, 400)), torch.randn(400, 6).to(dtype)
    gradient = torch.sparse_coo_tensor(row_ids, values, (60, 6), check_invariants=True)
    for sums in (sum_rows, sums_at_each_row):
        for found, expected in zip(sums(gradient.cuda()), sums(gradient), strict=True):
            torch.testing.assert_close(found.cpu(), expected)


def test_a_lookup_has_the_gradient_of_an_embedding_with_padding():
    table, row_ids, weights = torch.randn(6, 3), torch.tensor([[2, 0, 5], [2, 2, 0]]), torch.randn(2, 3, 3)
    found = []
    for look in (look_up, lambda *x: F.embedding(x[1], x[0], padding_idx=0, sparse=True)):
        leaf = table.clone().requires_grad_()
        rows = look(leaf, row_ids)
        (rows * weights).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.is_sparse
        found.append((rows.detach(), leaf.grad.to_dense()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_collected_lookups_have_the_parts_of_the_gradient():
    table, row_ids = torch.randn(6, 3, requires_grad=True), torch.tensor([4, 0, 4])
    with collected_lookups() as found:
        (look_up(table, row_ids) * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert table.grad is None
    (lookup,) = found
    assert lookup.table is table
    assert lookup.rows.grad is not None
    places, values = lookup.gradient_parts(lookup.rows.grad)
    assert places.tolist() == [4, 0, 4]
    assert values.tolist() == [[1.0] * 3, [0.0] * 3, [3.0] * 3]
    look_up(table, row_ids).sum().backward()
    assert table.grad is not None
