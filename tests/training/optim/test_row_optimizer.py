from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqrec.errors import InputError
from seqrec.ops.row_gradients import row_gradient
from seqrec.training.optim import LazyAdamOptimizer, RowOptimizer, RowwiseAdagradOptimizer
from seqrec.training.optim.lazy_adam import _decay_by_adding, _decay_by_writing

Make = Callable[..., RowOptimizer]


def row_adam(tables: list[Tensor], **arguments: object) -> LazyAdamOptimizer:
    return LazyAdamOptimizer(tables, **{"lr": 0.05, "betas": (0.9, 0.98), **arguments})


def row_adagrad(tables: list[Tensor], **arguments: object) -> RowwiseAdagradOptimizer:
    return RowwiseAdagradOptimizer(tables, **{"lr": 0.05, **arguments})


every_rule = pytest.mark.parametrize("make", [row_adam, row_adagrad])


def table_of(rows: int = 20, width: int = 3, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype))


def gradients(count: int, rows: int = 20, width: int = 3, drawn: int = 12) -> list[Tensor]:
    """Uncoalesced gradients with repeated rows, of which some rows of the table never occur."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        row_ids = torch.randint(1, rows // 2, (1, drawn), generator=generator)
        values = torch.randn(drawn, width, generator=generator)
        made.append(torch.sparse_coo_tensor(row_ids, values, (rows, width), check_invariants=True))
    return made


def run(optimizer: torch.optim.Optimizer, sequence: list[Tensor]) -> None:
    (table,) = optimizer.param_groups[0]["params"]
    for gradient in sequence:
        table.grad = gradient.to(table.dtype)
        optimizer.step()


def saved_and_loaded(state_dict: dict) -> dict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.6)])
def test_row_adam_is_torchs_sparse_adam_at_each_step(betas: tuple[float, float]):
    ours, theirs = table_of(), table_of()
    optimizers = (
        LazyAdamOptimizer([ours], lr=0.03, betas=betas, eps=1e-3),
        torch.optim.SparseAdam([theirs], lr=0.03, betas=betas, eps=1e-3),
    )
    for step, gradient in enumerate(gradients(12)):
        for optimizer in optimizers:
            # A step size that changes, as schedules make it.
            optimizer.param_groups[0]["lr"] = 0.03 / (1 + step)
            run(optimizer, [gradient])
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        for name, expected in optimizers[1].state[theirs].items():
            torch.testing.assert_close(optimizers[0].state[ours][name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.98])
def test_moments_are_the_same_whether_rows_are_added_to_or_written(beta: float):
    generator = torch.Generator().manual_seed(3)
    averages, values = torch.randn(9, 4, generator=generator), torch.randn(3, 4, generator=generator)
    row_ids, found = torch.tensor([1, 4, 8]), []
    for decay in (_decay_by_adding, _decay_by_writing):
        kept = averages.clone()
        rows = decay(kept, row_ids, values, beta)
        assert torch.equal(kept[[0, 2, 3, 5, 6, 7]], averages[[0, 2, 3, 5, 6, 7]])
        torch.testing.assert_close(kept[row_ids], rows)
        found.append(rows)
    torch.testing.assert_close(found[0], beta * averages[row_ids] + (1 - beta) * values)
    torch.testing.assert_close(found[1], found[0])


def test_row_adam_counts_steps_without_rows_as_torch_does():
    empty = row_gradient(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), torch.Size([20, 3]))
    first, second = gradients(2)
    ours, theirs = table_of(), table_of()
    run(row_adam([ours]), [first, empty, second])
    run(torch.optim.SparseAdam([theirs], lr=0.05, betas=(0.9, 0.98)), [first, empty, second])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_row_adagrad_is_its_formula_row_by_row(start: float):
    table = table_of(dtype=torch.float64)
    weights, sums = table.detach().clone(), [start] * 20
    sequence = gradients(8)
    run(RowwiseAdagradOptimizer([table], lr=0.2, eps=1e-3, initial_accumulator=start), sequence)
    for gradient in sequence:
        dense = gradient.to_dense().double()
        for row in {int(row) for row in gradient._indices()[0]}:
            sums[row] += sum(float(g) ** 2 for g in dense[row]) / 3
            for column in range(3):
                weights[row, column] -= 0.2 * float(dense[row, column]) / (sums[row] ** 0.5 + 1e-3)
    torch.testing.assert_close(table.detach(), weights, rtol=1e-6, atol=1e-9)


def test_row_adagrad_keeps_one_float32_a_row():
    table = table_of(dtype=torch.bfloat16)
    optimizer = row_adagrad([table], initial_accumulator=0.5)
    run(optimizer, gradients(1))
    state = optimizer.state[table]
    assert set(state) == {"step", "sum"}
    assert (state["sum"].shape, state["sum"].dtype) == ((20,), torch.float32)
    assert state["sum"][10:].eq(0.5).all()


@every_rule
def test_rows_without_a_gradient_keep_weights_and_state(make: Make):
    table = table_of()
    before = table.detach().clone()
    optimizer = make([table])
    first, second = gradients(2, drawn=4)
    run(optimizer, [first])
    after_first = copy.deepcopy(optimizer.state[table])
    touched = set(second._indices()[0].tolist())
    still = [row for row in range(20) if row not in touched]
    run(optimizer, [second])
    for name in optimizer.state_names:
        assert torch.equal(optimizer.state[table][name][still], after_first[name][still])
        assert not torch.equal(optimizer.state[table][name], after_first[name])
    assert torch.equal(table[10:], before[10:])


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_padding_row_is_never_touched(make: Make, dtype: torch.dtype):
    embedding = nn.Embedding(9, 3, padding_idx=0, sparse=True, dtype=dtype)
    optimizer = make([embedding.weight])
    before = embedding.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        embedding(torch.tensor([[0, 3, 0], [3, 5, 0]])).sum().backward()
        optimizer.step()
    assert not embedding.weight[0].any()
    assert {name: bool(optimizer.state[embedding.weight][name][0].any()) for name in optimizer.state_names} == (
        dict.fromkeys(optimizer.state_names, False)
    )
    assert not torch.equal(embedding.weight[[3, 5]], before[[3, 5]])
    assert torch.equal(embedding.weight[[1, 2, 4]], before[[1, 2, 4]])


class NewStorages(TorchDispatchMode):
    """Largest tensor that operations make outside the given memory."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not tensor.is_sparse:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.largest = max(self.largest, storage.nbytes())
        return out


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_makes_nothing_of_the_tables_size(make: Make, dtype: torch.dtype):
    rows, width, drawn = 20_000, 4, 12
    table = table_of(rows, width, dtype)
    optimizer = make([table])
    first, second = gradients(2, rows, width, drawn)
    run(optimizer, [first])
    table.grad = second.to(dtype)
    known = [table, *(v for v in optimizer.state[table].values() if isinstance(v, Tensor))]
    with NewStorages(known) as made:
        optimizer.step()
    assert 0 < made.largest <= drawn * max(width * 4, 8)


def test_a_step_draws_nothing_from_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(row_adam([table_of(dtype=torch.bfloat16)]), gradients(3))
    assert torch.equal(torch.rand(4), expected)


@every_rule
def test_bfloat16_weights_depend_on_the_seed_and_on_the_tables_place(make: Make):
    def trained(seed: int, places: int) -> list[Tensor]:
        tables = [table_of(dtype=torch.bfloat16) for _ in range(places)]
        optimizer = make(tables, seed=seed)
        for gradient in gradients(4):
            for table in tables:
                table.grad = gradient.to(torch.bfloat16)
            optimizer.step()
        return tables

    first, second = trained(0, 2)
    assert torch.equal(first, trained(0, 1)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first, trained(1, 1)[0])


@every_rule
def test_bfloat16_follows_float32_where_updates_are_below_its_last_place(make: Make):
    # 400 updates of 1e-4 to weights of 1, whose last place is 2^-7.
    step = torch.sparse_coo_tensor(torch.tensor([[1, 2]]), torch.ones(2, 64), (3, 64), check_invariants=True)
    ends = {}
    for name, dtype, stochastic in (
        ("float32", torch.float32, True),
        ("stochastic", torch.bfloat16, True),
        ("nearest", torch.bfloat16, False),
    ):
        table = nn.Parameter(torch.ones(3, 64, dtype=dtype))
        optimizer = make([table], lr=1e-4, stochastic_rounding=stochastic)
        for number in range(400):
            # Adagrad divides by the root of the number of steps, which is taken back here.
            optimizer.param_groups[0]["lr"] = 1e-4 * ((number + 1) ** 0.5 if make is row_adagrad else 1)
            run(optimizer, [step])
        ends[name] = table[1:].double().mean().item()
    assert ends["float32"] == pytest.approx(1 - 0.04, abs=1e-4)
    assert ends["nearest"] == 1.0
    assert ends["stochastic"] == pytest.approx(ends["float32"], abs=5e-3)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_optimizer_goes_on_to_the_same_bits(make: Make, dtype: torch.dtype):
    sequence = gradients(9)
    table = table_of(dtype=dtype)
    optimizer = make([table])
    run(optimizer, sequence[:4])
    other = nn.Parameter(table.detach().clone())
    resumed = make([other], lr=9.0)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert all(resumed.state[other][name].dtype == torch.float32 for name in optimizer.state_names)
    run(optimizer, sequence[4:])
    run(resumed, sequence[4:])
    assert torch.equal(other, table)
    for name in (*optimizer.state_names, "step"):
        assert torch.equal(torch.as_tensor(resumed.state[other][name]), torch.as_tensor(optimizer.state[table][name]))


def test_an_optimizer_that_never_stepped_loads():
    optimizer = row_adam([table_of()])
    optimizer.load_state_dict(saved_and_loaded(row_adam([table_of()]).state_dict()))
    assert not optimizer.state
    run(optimizer, gradients(1))


def test_the_state_of_another_rule_is_refused():
    optimizer = row_adam([table_of()])
    run(optimizer, gradients(1))
    with pytest.raises(InputError, match="keeps exp_avg, exp_avg_sq, step, not step, sum: resume with"):
        row_adagrad([table_of()]).load_state_dict(optimizer.state_dict())


@every_rule
def test_a_dense_gradient_is_refused(make: Make):
    table = table_of()
    table.grad = torch.zeros_like(table)
    with pytest.raises(InputError, match=r"dense gradient.*SampledSoftmax.*item_table\.sparse: false"):
        make([table]).step()


def test_a_table_of_half_precision_is_refused():
    with pytest.raises(InputError, match=r"table of torch\.float16 .*: use float32 or bfloat16"):
        row_adam([table_of(dtype=torch.float16)])


@every_rule
def test_tables_without_a_gradient_wait(make: Make):
    tables = [table_of(), table_of()]
    optimizer = make(tables)
    tables[1].grad = gradients(1)[0]
    optimizer.step()
    assert torch.equal(tables[0], table_of())
    assert not torch.equal(tables[1], table_of())
    assert tables[0] not in optimizer.state


@every_rule
def test_a_closure_gives_loss_and_gradients(make: Make):
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = make([embedding.weight])
    before = embedding.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 4])).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(before[[1, 4]].square().sum().item())
    assert not torch.equal(embedding.weight, before)
