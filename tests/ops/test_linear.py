"""Linear maps by oneDNN: the values, gradients and second derivatives of torch's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops import linear

module = sys.modules["seqrec.ops.linear"]  # the package has the function under this name
REASON = module.LINEAR_BACKENDS["onednn"].missing()
NEEDS_ONEDNN = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def results(leaves: list[Tensor], backend: str, **options: bool) -> list[Tensor]:
    """Outputs, and gradients of a weighted sum of their squares."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = linear(*leaves, backend=backend)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out.square() * weights).sum(), leaves, **options), *leaves]


@NEEDS_ONEDNN
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), max_size=2),
    rows=st.integers(1, 300),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 200),
    bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_torch(shape: list[int], rows: int, inputs: int, outputs: int, bias: bool):
    generator = torch.Generator().manual_seed(rows)
    sizes = [(*shape, rows, inputs), (outputs, inputs), (outputs,)][: 2 + bias]
    leaves = [torch.randn(size, generator=generator) for size in sizes]
    found = results(leaves, "onednn")
    expected = results([leaf.double() for leaf in leaves], "reference")
    for one, other in zip(found, expected, strict=True):
        largest = float(other.detach().abs().max())
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5 * largest)


@NEEDS_ONEDNN
def test_second_derivatives_are_those_of_torch():
    leaves = [torch.randn(7, 5), torch.randn(6, 5), torch.randn(6)]
    seconds = []
    for backend in ("onednn", "reference"):
        _, *gradients, x, weight, bias = results(leaves, backend, create_graph=True)
        seconds.append(torch.autograd.grad(sum(each.square().sum() for each in gradients), [x, weight, bias]))
    for one, other in zip(*seconds, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@NEEDS_ONEDNN
def test_strides_do_not_matter():
    x, weight = torch.randn(40, 30), torch.randn(30, 20)
    torch.testing.assert_close(linear(x[:, ::2], weight[::2].T, backend="onednn"), x[:, ::2] @ weight[::2])


@NEEDS_ONEDNN
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen: int):
    leaves = [torch.randn(3, 2), torch.randn(4, 2), torch.randn(4)]
    for place, leaf in enumerate(leaves):
        leaf.requires_grad_(place != frozen)
    linear(*leaves, backend="onednn").sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [place == frozen for place in range(3)]


def assert_sums(gradient: Tensor, x: Tensor) -> None:
    weight, bias = module.weight_gradient(gradient, x, bias=True)
    exact = gradient.double().T @ x.double(), gradient.double().sum(0)
    for found, expected in zip((weight, bias), exact, strict=True):
        assert float((found - expected).abs().max()) <= 1e-6 * len(x) ** 0.5 * 10
    assert module.weight_gradient(gradient, x)[1] is None


@pytest.mark.parametrize("sizes", [(3, 70, 20), (2000, 70, 20), (15, 900, 100), (40_001, 5, 17), (0, 3, 2)], ids=str)
def test_the_gradient_of_the_weight_is_a_product(sizes: tuple[int, int, int]):
    rows, outputs, inputs = sizes
    gradient, x = torch.randn(rows, outputs), torch.randn(rows, inputs)
    assert_sums(gradient, x)
    assert_sums(torch.randn(rows, 3 * outputs)[:, 1::3], torch.randn(rows, inputs + 3)[:, 2:-1])
    assert_sums(torch.randn(outputs, rows).T, torch.randn(1, inputs).expand(rows, -1))


def test_every_variant_that_runs_here_sums_rows(variant: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LEAST_WORK", 0)
    for sizes in ((1, 1, 1), (300, 33, 21), (5000, 16, 64)):
        assert_sums(torch.randn(sizes[0], sizes[1]), torch.randn(sizes[0], sizes[2]))


def test_threads_change_no_bit_of_sums(cpp: None, monkeypatch: pytest.MonkeyPatch):
    gradient, x, found = torch.randn(30_000, 64), torch.randn(30_000, 64), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(module.weight_gradient(gradient, x, bias=True))
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


def test_without_the_compiled_library_torch_sums_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "load_error", lambda: "not here")
    monkeypatch.setattr(module, "call", None)
    assert_sums(torch.randn(2000, 70), torch.randn(2000, 20))


@NEEDS_ONEDNN
def test_auto_takes_it_for_large_products_alone(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(module, "_product", lambda *given: calls.append(len(given[0])) or given[0] @ given[1].T)
    with torch.no_grad():
        linear(torch.ones(10, 64), torch.ones(64, 64))
        linear(torch.ones(256, 64), torch.ones(64, 64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(torch.ones(256, 64), torch.ones(64, 64)).dtype == torch.bfloat16
        linear(torch.ones(256, 64).double(), torch.ones(64, 64).double())
    assert calls == [256]


def test_what_onednn_cannot_compute_is_refused():
    with pytest.raises(InputError, match=r"backend='onednn' .*got torch\.float64 on cpu"):
        linear(torch.ones(1, 2).double(), torch.ones(3, 2).double(), backend="onednn")
    with pytest.raises(InputError, match="has no mixed dtypes"):
        linear(torch.ones(1, 2), torch.ones(3, 2).double(), backend="onednn")


def test_exported_and_compiled_programs_contain_torchs_own(monkeypatch: pytest.MonkeyPatch):
    def fails(*given: Tensor | None) -> Tensor:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(module, "_product", fails)
    layer = torch.nn.Module()
    layer.forward = lambda x: linear(x, torch.ones(64, 64))
    x = torch.ones(512, 64)
    program = torch.export.export(layer, (x,), strict=False)
    for found in (program.module()(x), torch.compile(layer.forward, backend="eager")(x)):
        assert found.equal(torch.full((512, 64), 64.0))


class Without:
    """A namespace of torch's functions that lacks one, or has it with another meaning."""

    def __init__(self, functions: object, name: str, instead: Callable[..., Any] | None) -> None:
        self.functions, self.name, self.instead = functions, name, instead

    def __getattr__(self, name: str) -> Any:
        if name != self.name:
            return getattr(self.functions, name)
        if self.instead is None:
            raise AttributeError(f"no {name}")
        return self.instead


@pytest.fixture
def checked_anew() -> Iterator[None]:
    module._fault.cache_clear()
    yield
    module._fault.cache_clear()


def refuses(*given: object) -> Tensor:
    raise RuntimeError("expected 7 arguments")


CHANGED = {"gone": None, "of other arguments": refuses, "of other values": lambda x, *others: [x]}


@NEEDS_ONEDNN
@pytest.mark.usefixtures("checked_anew")
@pytest.mark.parametrize("instead", CHANGED.values(), ids=CHANGED)
def test_a_torch_without_the_product_is_found_and_torchs_own_used(
    instead: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch
):
    given = [torch.randn(300, 64), torch.randn(70, 64), torch.randn(70)]
    expected = torch.nn.functional.linear(*given)
    instead = (lambda x, *others: x) if instead is CHANGED["of other values"] else instead
    monkeypatch.setattr(torch.ops, "mkldnn", Without(torch.ops.mkldnn, "_linear_pointwise", instead))
    assert linear(*given).equal(expected)
    with pytest.raises(InputError, match=rf"backend='onednn' is unavailable: torch {re.escape(torch.__version__)}"):
        linear(*given, backend="onednn")


@NEEDS_ONEDNN
@pytest.mark.usefixtures("checked_anew")
@pytest.mark.parametrize("instead", CHANGED.values(), ids=CHANGED)
def test_a_torch_without_the_gradient_of_weights_is_found_and_torchs_own_used(
    instead: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.ops, "aten", Without(torch.ops.aten, "mkldnn_linear_backward_weights", instead))
    x, y, out = torch.randn(300, 70), torch.randn(300, 64), torch.randn(70, 64)
    expected = out.double() + x.double().T @ y.double()
    module.add_product(out, x, y)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)
    assert module.LINEAR_BACKENDS["onednn"].missing() is None, "linear maps need the other function alone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(300, 70, 64), (1, 2, 3), (0, 5, 4), (20, 1100, 1000)], ids=str)
def test_products_are_added_in_place(sizes: tuple[int, int, int], dtype: torch.dtype):
    rows, outputs, inputs = sizes
    x, y, out = torch.randn(rows, outputs).to(dtype), torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs)
    expected = out.double() + x.double().T @ y.double()
    module.add_product(out, x, y)
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@NEEDS_ONEDNN
def test_small_products_are_added_by_onednn(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(module, "_transposed_product", lambda x, y: calls.append(len(x)) or x.T @ y)
    for rows in (3, 5):
        module.add_product(torch.zeros(4, 4), torch.ones(rows, 4), torch.ones(rows, 4))
    module.add_product(torch.zeros(1025, 1024), torch.ones(7, 1025), torch.ones(7, 1024))
    assert calls == [3, 5]
