"""Models with dense parameters and a table with row-sparse gradients, driven by one optimiser."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.specs import from_spec, to_spec
from seqrec.training.optim import (
    Adam,
    AdamW,
    CombinedOptimizer,
    LazyAdam,
    LazyAdamOptimizer,
    OptimizerFactory,
    RowwiseAdagrad,
    RowwiseAdagradOptimizer,
    TableOptimizer,
    clip_gradients,
    describe_optimizer,
    sparse_tables,
)

both = pytest.mark.parametrize("kind", [Adam, AdamW])
every_table = pytest.mark.parametrize("table", [None, LazyAdam(0.02, betas=(0.5, 0.6)), RowwiseAdagrad(0.3)])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()


def assert_equal_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, weight), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, other), name


@both
def test_each_parameter_is_in_one_group_that_is_its_parts_own(kind: type[Adam], make_mixed: Callable):
    model = make_mixed()
    optimizer = kind(0.03, betas=(0.7, 0.8)).build(model)
    assert isinstance(optimizer, CombinedOptimizer)
    dense, rows = optimizer.parts
    assert type(dense) is getattr(torch.optim, kind.__name__)
    assert type(rows) is LazyAdamOptimizer
    groups = [group for part in optimizer.parts for group in part.param_groups]
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    assert {(group["lr"], tuple(group["betas"])) for group in groups} == {(0.03, (0.7, 0.8))}
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert [id(p) for p in rows.param_groups[0]["params"]] == [id(model.items.weight)]


def test_table_settings_reach_the_table_alone(make_mixed: Callable):
    lazy = LazyAdam(0.02, betas=(0.5, 0.6), eps=1e-3, stochastic_rounding=False)
    dense, rows = Adam(0.1, table=lazy).build(make_mixed()).param_groups
    assert (dense["lr"], tuple(dense["betas"])) == (0.1, (0.9, 0.98))
    del rows["params"]
    expected = {"lr": 0.02, "betas": (0.5, 0.6), "eps": 1e-3, "stochastic_rounding": False, "seed": 0}
    assert rows == expected
    adagrad = RowwiseAdagrad(0.3, eps=1e-4, initial_accumulator=0.2, stochastic_rounding=False)
    optimizer = Adam(0.1, table=adagrad).build(make_mixed())
    assert type(optimizer.parts[1]) is RowwiseAdagradOptimizer
    (rows,) = optimizer.parts[1].param_groups
    del rows["params"]
    expected = {"lr": 0.3, "eps": 1e-4, "initial_accumulator": 0.2, "stochastic_rounding": False, "seed": 0}
    assert rows == expected


@both
def test_training_equals_that_of_two_optimizers(kind: type[Adam], make_mixed: Callable, item_batches: Callable):
    ours, theirs = make_mixed(), make_mixed()
    train(ours, kind(0.05).build(ours), item_batches(6))
    dense = [p for name, p in theirs.named_parameters() if name != "items.weight"]
    decayed = [p for p in dense if p is theirs.layer.weight]
    kept = [p for p in dense if p is not theirs.layer.weight]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    pair = [
        torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98))
        if kind is AdamW
        else torch.optim.Adam(dense, lr=0.05, betas=(0.9, 0.98)),
        torch.optim.SparseAdam([theirs.items.weight], lr=0.05, betas=(0.9, 0.98)),
    ]
    for batch in item_batches(6):
        theirs.zero_grad()
        theirs(batch).backward()
        for optimizer in pair:
            optimizer.step()
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, other, msg=name)


@every_table
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_to_the_same_bits(
    table: TableOptimizer | None, dtype: torch.dtype, make_mixed: Callable, item_batches: Callable
):
    batches = item_batches(9)
    model = make_mixed(dtype=dtype)
    optimizer = AdamW(0.05, table=table).build(model)
    train(model, optimizer, batches[:4])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, batches[4:])
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make_mixed(seed=1, dtype=dtype)
    resumed = AdamW(0.9, table=table).build(other)
    # A step before loading leaves nothing behind.
    train(other, resumed, batches[:1])
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert [group["lr"] for part in resumed.parts for group in part.param_groups] == [
        group["lr"] for group in optimizer.param_groups
    ]
    train(other, resumed, batches[4:])
    assert_equal_weights(other, model)


def test_state_and_groups_are_shared_before_and_after_loading(make_mixed: Callable, item_batches: Callable):
    model = make_mixed()
    optimizer = Adam().build(model)
    train(model, optimizer, item_batches(1))
    for lr in (0.7, 0.6):
        assert set(optimizer.state) == set(model.parameters())
        for part in optimizer.parts:
            assert part.state is optimizer.state
        for group in optimizer.param_groups:
            group["lr"] = lr
        assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {lr}
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def test_a_copy_is_an_optimizer_of_its_own(make_mixed: Callable, item_batches: Callable):
    model = make_mixed()
    optimizer = Adam().build(model)
    train(model, optimizer, item_batches(1))
    other_model, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, item_batches(3))
    train(other_model, other, item_batches(3))
    assert_equal_weights(other_model, model)
    assert other.parts[0].state is other.state
    assert other.parts[0].state is not optimizer.state


def test_a_closure_is_called_once_with_gradients(make_mixed: Callable, item_batches: Callable):
    model, stepped = make_mixed(), make_mixed()
    optimizer = Adam().build(model)
    (batch,) = item_batches(1)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        return loss

    assert torch.equal(optimizer.step(closure), stepped(batch))
    assert calls == [True]
    train(stepped, Adam().build(stepped), [batch])
    assert_equal_weights(model, stepped)
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


@both
def test_a_model_without_sparse_tables_has_torchs_optimizer(kind: type[Adam]):
    assert type(kind().build(nn.Linear(2, 2))) is getattr(torch.optim, kind.__name__)


@both
def test_a_model_of_sparse_tables_alone_has_the_row_optimizer(kind: type[Adam]):
    assert type(kind().build(nn.Embedding(4, 2, sparse=True))) is LazyAdamOptimizer


@both
def test_a_table_optimizer_without_a_table_is_refused(kind: type[Adam]):
    message = "optimizer.table=RowwiseAdagrad is for tables with row-sparse gradients, and this model has none"
    with pytest.raises(InputError, match=message):
        kind(table=RowwiseAdagrad()).build(nn.Embedding(3, 2))


def test_a_frozen_or_shared_table_is_found_as_it_should():
    first, second = nn.Embedding(3, 2, sparse=True), nn.Embedding(3, 2, sparse=True)
    second.weight = first.weight
    assert [id(w) for w in sparse_tables(nn.ModuleList([first, second]))] == [id(first.weight)]
    first.weight.requires_grad_(False)
    assert sparse_tables(first) == []


def test_a_checkpoint_of_a_model_without_sparse_tables_is_refused(make_mixed: Callable):
    saved = Adam().build(nn.Linear(2, 2)).state_dict()
    with pytest.raises(InputError, match=r"has 1 groups of parameters, this model's has 2: resume with"):
        Adam().build(make_mixed()).load_state_dict(saved)


def test_a_group_of_no_part_is_refused(make_mixed: Callable):
    optimizer = Adam().build(make_mixed())
    with pytest.raises(TypeError, match="add the group to one of `parts`"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


SCALE = 2.0**10


def scaled_step(
    model: nn.Module, factory: OptimizerFactory, batch: Tensor, *, bad: str | None = None
) -> torch.amp.GradScaler:
    """One step with scaled gradients and clipping, as Lightning's fp16 precision makes it."""
    optimizer = factory.build(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(model(batch)).backward()
    if bad is not None:
        gradient = model.get_parameter(bad).grad
        assert gradient is not None
        (gradient._values() if gradient.is_sparse else gradient).view(-1)[0] = torch.inf
    scaler.unscale_(optimizer)
    clip_gradients(model.parameters(), max_norm=0.01)
    scaler.step(optimizer)
    scaler.update()
    return scaler


@both
@every_table
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_step_is_the_plain_one(
    kind: type[Adam],
    table: TableOptimizer | None,
    dtype: torch.dtype,
    make_mixed: Callable,
    item_batches: Callable,
):
    (batch,) = item_batches(1)
    scaled, plain = make_mixed(dtype=dtype), make_mixed(dtype=dtype)
    scaled_step(scaled, kind(0.05, table=table), batch)
    optimizer = kind(0.05, table=table).build(plain)
    plain(batch).backward()
    clip_gradients(plain.parameters(), max_norm=0.01)
    optimizer.step()
    for (name, weight), other in zip(scaled.named_parameters(), plain.parameters(), strict=True):
        assert not torch.equal(weight, make_mixed(dtype=dtype).get_parameter(name))
        torch.testing.assert_close(weight, other, msg=name)


@pytest.mark.parametrize("bad", ["items.weight", "layer.weight"])
def test_an_infinite_gradient_in_either_part_skips_the_step(bad: str, make_mixed: Callable, item_batches: Callable):
    model = make_mixed()
    scaler = scaled_step(model, Adam(0.05), item_batches(1)[0], bad=bad)
    assert_equal_weights(model, make_mixed())
    assert scaler.get_scale() == SCALE / 2


def test_no_optimizer_unscales_gradients_in_its_step(make_mixed: Callable):
    for model in (make_mixed(), nn.Linear(2, 2)):
        assert not getattr(Adam().build(model), "_step_supports_amp_scaling", False)


@both
@pytest.mark.parametrize(("asked", "expected"), [(None, True), (True, True), (False, None)])
def test_the_fused_kernel_is_the_default(kind: type[Adam], asked: bool | None, expected: bool | None):
    (group, *_) = kind(fused=asked).build(nn.Linear(2, 2)).param_groups
    assert group["fused"] is expected


def test_where_torch_has_no_fused_kernel_its_default_is_taken():
    model = nn.Linear(2, 2, device="meta")
    assert Adam().build(model).param_groups[0]["fused"] is None
    with pytest.raises(InputError, match=r"fused=True needs .* cpu or cuda, these are on meta: leave fused out"):
        Adam(fused=True).build(model)


@both
@every_table
def test_settings_of_tables_survive_as_a_spec(kind: type[Adam], table: TableOptimizer | None):
    settings = kind(0.5, table=table, fused=False)
    rebuilt = from_spec(to_spec(settings))
    assert type(rebuilt.table) is type(table)
    assert to_spec(rebuilt) == to_spec(settings)
    rebuilt.build(nn.ModuleList([nn.Linear(2, 2), nn.Embedding(3, 2, sparse=True)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LazyAdam(0.0), "lr=0.0 must be above 0"),
        (lambda: LazyAdam(betas=(0.9, 1.0)), "betas=(0.9, 1.0) must be at least 0 and below 1"),
        (lambda: LazyAdam(eps=0.0), "eps=0.0 must be above 0"),
        (lambda: RowwiseAdagrad(float("nan")), "lr=nan must be above 0"),
        (lambda: RowwiseAdagrad(eps=-1.0), "eps=-1.0 must be above 0"),
        (lambda: RowwiseAdagrad(initial_accumulator=-0.1), "initial_accumulator=-0.1 must be at least 0"),
    ],
)
def test_values_of_tables_out_of_range_are_refused(make: Callable[[], TableOptimizer], message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_an_optimiser_says_what_it_is(make_mixed: Callable):
    assert (
        describe_optimizer(Adam(table=RowwiseAdagrad()).build(make_mixed()))
        == "fused Adam, RowwiseAdagradOptimizer of tables"
    )
    assert describe_optimizer(AdamW(fused=False).build(nn.Linear(2, 2))) == "AdamW"
