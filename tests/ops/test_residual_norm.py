"""A residual sum and its layer norm in one pass: the values and gradients of torch and of dropout by counter."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops import dropout, residual_norm

module = sys.modules["seqrec.ops.residual_norm"]  # the package has the function under this name
SEED = torch.tensor([987654321])


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    sizes = {"branch": shape, "x": shape, "weight": shape[-1:], "bias": shape[-1:]}
    normal = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    return {name: (each + 3 * (name == "x")).to(dtype).requires_grad_() for name, each in normal.items()}


def results(given: dict[str, Tensor], backend: str, **options: object) -> list[Tensor]:
    """Sum, norm, and by fixed weights on both of them the gradients of all that is given."""
    given = {name: each.detach().requires_grad_() for name, each in given.items()}
    outputs = residual_norm(**{"x": None, **given}, backend=backend, **options)
    weights = [torch.linspace(-1, 2, x.numel(), dtype=torch.float64).cos().view_as(x).to(x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, list(given.values()), [weights[0], weights[1].flip(0)])]


def assert_reference(given: dict[str, Tensor], **options: object) -> None:
    wide = {name: each.double() for name, each in given.items()}
    for found, expected in zip(results(given, "cpp", **options), results(wide, "reference", **options), strict=True):
        if expected.numel():
            torch.testing.assert_close(
                found.double(), expected, rtol=0, atol=1e-6 * max(5, float(expected.detach().abs().max()))
            )


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize(
    "shape", [(1, 16), (7, 64), (3, 37, 64), (1030, 32), (5, 48), (33, 80), (130, 128), (16,), (0, 16)], ids=str
)
def test_every_variant_that_runs_here_equals_the_float64_reference(variant: None, shape: tuple[int, ...], share: float):
    given = draw(*shape)
    assert_reference(given, dropout=share, seed=SEED if share else None)
    assert_reference({name: x for name, x in given.items() if name != "x"}, dropout=share, seed=SEED if share else None)


@pytest.mark.usefixtures("cpp")
def test_what_is_dropped_is_what_dropout_drops():
    given = draw(500, 48)
    out, _ = residual_norm(**given, dropout=0.3, seed=SEED, backend="cpp")
    assert torch.equal(out, given["x"] + dropout(given["branch"], 0.3, seed=SEED))
    torch.manual_seed(4)
    by_torchs_seed = residual_norm(**given, dropout=0.3, backend="cpp")
    torch.manual_seed(4)
    torch.testing.assert_close(by_torchs_seed, residual_norm(**given, dropout=0.3, backend="reference"))
    assert not torch.equal(by_torchs_seed[0], out)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("summed", [True, False])
def test_gradcheck_in_float64(share: float, summed: bool):
    given = draw(3, 5, dtype=torch.float64)
    if not summed:
        del given["x"]

    def outputs(*values: Tensor) -> tuple[Tensor, Tensor]:
        return residual_norm(**{"x": None, **dict(zip(given, values, strict=True))}, dropout=share, seed=SEED)

    assert torch.autograd.gradcheck(outputs, tuple(given.values()))
    assert torch.autograd.gradgradcheck(outputs, tuple(given.values()))


@pytest.mark.usefixtures("cpp")
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch):
    given, found = draw(20_001, 64), []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(results(given, "cpp", dropout=0.2, seed=SEED))
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("used", [0, 1], ids=["sum", "norm"])
def test_one_of_the_results_may_be_left_unused(used: int, share: float):
    gradients = []
    for backend in ("cpp", "reference"):
        given = draw(40, 32)
        residual_norm(**given, dropout=share, seed=SEED, backend=backend)[used].square().sum().backward()
        gradients.append([torch.zeros_like(x) if x.grad is None else x.grad for x in given.values()])
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("cpp")
def test_what_is_frozen_gets_no_gradient_and_nothing_is_written_to():
    for frozen in ("branch", "x", "weight", "bias"):
        given = draw(40, 32)
        given[frozen].requires_grad_(False)
        before = {name: each.detach().clone() for name, each in given.items()}
        sum(each.sum() for each in residual_norm(**given, dropout=0.3, backend="cpp")).backward()
        assert [name for name, each in given.items() if each.grad is None] == [frozen]
        assert all(torch.equal(each, before[name]) for name, each in given.items())
    with torch.no_grad():
        assert not residual_norm(**given, backend="cpp")[1].requires_grad


@pytest.mark.usefixtures("cpp")
def test_strides_do_not_matter():
    given = {name: x.detach() for name, x in draw(30, 4, 32).items()}
    views = {name: torch.stack([x.movedim(-1, 0)] * 2, -1)[..., 0].movedim(0, -1) for name, x in given.items()}
    assert not views["branch"].is_contiguous()
    for one, other in zip(results(views, "cpp"), results(given, "cpp"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("cpp")
def test_what_is_dropped_may_be_infinite_and_a_missing_number_spoils_its_event_alone():
    given = {name: x.detach() for name, x in draw(64, 16).items()}
    given["branch"].fill_(float("inf"))
    kept = residual_norm(**given, dropout=0.5, seed=SEED, backend="cpp")[0].isfinite()
    assert torch.equal(kept, dropout(torch.ones(64, 16), 0.5, seed=SEED) == 0)
    given["branch"].zero_()[3, 5] = float("nan")
    rows = residual_norm(**given, backend="cpp")[1].isnan().all(1)
    assert rows.nonzero().tolist() == [[3]]
    given["x"] = torch.full((64, 16), 1e4)
    assert torch.equal(residual_norm(**given, backend="cpp")[1][0], given["bias"])


@pytest.mark.usefixtures("cpp")
def test_auto_takes_the_library_for_many_numbers_alone(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda *given: calls.append(given[0].shape[-1]) or forward(*given))
    for shape in ((2048, 32), (2047, 32), (4000, 40)):
        residual_norm(**draw(*shape))
    residual_norm(**draw(2048, 32, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        residual_norm(**draw(2048, 32))
    monkeypatch.setenv("SEQREC_DROPOUT_BACKEND", "torch")
    residual_norm(**draw(2048, 32), dropout=0.1)
    assert calls == [32]
    residual_norm(**draw(2048, 32))
    assert calls == [32, 32]


def test_half_precision_and_autocast_are_those_of_torch():
    given = draw(4096, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out, norm = residual_norm(given["branch"].bfloat16(), *list(given.values())[1:])
    assert (out.dtype, norm.dtype) == (torch.float32, torch.float32)
    narrow = {name: x.bfloat16() for name, x in given.items()}
    assert {x.dtype for x in residual_norm(**narrow)} == {torch.bfloat16}


@pytest.mark.parametrize("call", ["export", "compile"])
def test_exported_and_compiled_programs_contain_torchs_own(call: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "call", None)
    given = {name: x.detach() for name, x in draw(4096, 32).items()}
    layer = torch.nn.Module()
    layer.forward = lambda given: residual_norm(**given)
    run: Callable[..., object]
    if call == "export":
        run = torch.export.export(layer, (given,), strict=False).module()
    else:
        run = torch.compile(layer.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(given), residual_norm(**given, backend="reference"))


@pytest.mark.usefixtures("cpp")
def test_a_second_derivative_is_refused():
    given = draw(4, 16)
    _, norm = residual_norm(**given, backend="cpp")
    with pytest.raises(NotImplementedError, match="compiled residual norm has no second derivative"):
        torch.autograd.grad(norm.sum(), given["x"], create_graph=True)


def test_what_does_not_fit_is_refused():
    given = draw(4, 16)
    for name in ("x", "weight", "bias"):
        with pytest.raises(InputError, match=rf"^{name} must be \("):
            residual_norm(**given | {name: torch.zeros(4, 17)})
    with pytest.raises(InputError, match="dropout=1 must be at least 0 and below 1"):
        residual_norm(**given, dropout=1)
    with pytest.raises(InputError, match=r"seed must be \(1,\) int64 on cpu"):
        residual_norm(**given, dropout=0.5, seed=torch.zeros(2))
    if module.RESIDUAL_NORM_BACKENDS["cpp"].missing() is None:
        with pytest.raises(InputError, match="backend='cpp' has no width that is no multiple of 16"):
            residual_norm(**draw(4, 17), backend="cpp")
