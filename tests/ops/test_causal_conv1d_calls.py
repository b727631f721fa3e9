"""How the convolution may be called: sizes, layouts, kinds of number, refusals, tracing."""

import pytest
import torch
from conv_problems import LARGER, ON_CPU, make_inputs, require, run
from scan_problems import assert_close, without

from seqrec.errors import InputError
from seqrec.ops import causal_conv1d


@pytest.fixture(params=ON_CPU)
def backend(request):
    require(request.param)
    return request.param


@pytest.fixture
def cpp():
    require("cpp")


@pytest.mark.parametrize("sizes", [{"L": 0}, {"B": 0}, {"L": 1}, {"D": 1, "W": 1}, {"D": 0}, {"W": 20}])
@pytest.mark.parametrize("flags", [True, False])
def test_empty_and_smallest_sizes(backend, sizes, flags):
    inputs = make_inputs(**{"B": 2, "L": 3, "D": 5, "W": 2, **sizes}, flags=flags)
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


def test_only_padding(backend):
    inputs = make_inputs()
    valid = torch.zeros(2, 9, dtype=torch.bool)
    result = run(inputs | {"valid": valid}, backend)
    assert not result["out"].any()
    assert torch.equal(result["last"], inputs["initial_state"])
    assert not any(result[name].any() for name in ("x", "weight", "bias"))


def test_inputs_need_not_be_contiguous(backend):
    inputs = make_inputs(**LARGER, flags=True)
    expected = run(inputs, backend)
    wide = torch.randn(2, LARGER["L"], 3 * LARGER["D"])
    part = wide[..., LARGER["D"] : 2 * LARGER["D"]]
    part.copy_(inputs["x"].detach())
    views = {
        "x": part,
        "weight": inputs["weight"].detach().t().contiguous().t(),
        "bias": torch.stack([inputs["bias"].detach()] * 2, 1)[:, 0],
        "initial_state": inputs["initial_state"].detach().transpose(1, 2).contiguous().transpose(1, 2),
        "valid": inputs["valid"].t().contiguous().t(),
        "start": torch.stack([inputs["start"]] * 2, 2)[..., 1],
    }
    assert not any(view.is_contiguous() for view in views.values())
    given = {"silu": True, "return_last_state": True, "backend": backend}
    for x in (part, part.transpose(1, 2).contiguous().transpose(1, 2)):
        leaf = x.requires_grad_()
        out, last = causal_conv1d(**views | {"x": leaf}, **given)
        assert torch.equal(out, expected["out"])
        assert torch.equal(last, expected["last"])
        # The gradient of a sum is not contiguous either.
        (dx,) = torch.autograd.grad(out.sum(), leaf)
        again = inputs["x"].detach().requires_grad_()
        out, _ = causal_conv1d(**inputs | {"x": again}, **given)
        torch.testing.assert_close(dx, torch.autograd.grad(out, again, torch.ones_like(out))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(backend, dtype):
    inputs = make_inputs(**LARGER, dtype=dtype)
    out, last = causal_conv1d(**inputs, silu=True, return_last_state=True, backend=backend)
    (out.sum() + last.sum()).backward()
    assert out.dtype == last.dtype == inputs["x"].grad.dtype == dtype
    wide = {name: value.detach().float() for name, value in inputs.items()}
    expected = causal_conv1d(**wide, silu=True, backend=backend).to(dtype)
    torch.testing.assert_close(out, expected)
    assert torch.equal(last, inputs["x"][:, -3:])


def test_double_precision_stays_on_its_own_backends():
    inputs = make_inputs(dtype=torch.float64)
    assert causal_conv1d(**inputs).dtype == torch.float64
    with pytest.raises(InputError, match=r"backend='cpp' runs float32 on cpu, got torch\.float64 on cpu"):
        causal_conv1d(**inputs, backend="cpp")


def test_autocast_does_not_lower_the_sums(backend):
    inputs = make_inputs(**LARGER)
    expected = causal_conv1d(**inputs, silu=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(causal_conv1d(**inputs, silu=True, backend=backend), expected)


def test_extreme_values_through_silu(backend):
    inputs = make_inputs(**LARGER)
    inputs["x"] = inputs["x"].detach() * torch.logspace(-20, 20, LARGER["L"]).view(1, -1, 1)
    # The error of each output is small beside the largest of its sum.
    expected = run(inputs, "reference", torch.float64)
    result = run(inputs, backend)
    assert all(value.isfinite().all() for value in result.values())
    assert_close(result, expected)


@pytest.mark.parametrize("used", ["out", "last"])
def test_one_of_the_results_may_be_left_unused(backend, used):
    gradients = []
    for name in (backend, "reference"):
        inputs = make_inputs(**LARGER)
        out, last = causal_conv1d(**inputs, silu=True, return_last_state=True, backend=name)
        (out if used == "out" else last).square().sum().backward()
        gradients.append((inputs["x"].grad, inputs["initial_state"].grad))
    for actual, expected in zip(*gradients, strict=True):
        if expected is None:
            assert actual is None or not actual.any()
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_inputs_without_gradient(backend):
    inputs = {name: value.detach() for name, value in make_inputs().items()}
    assert not causal_conv1d(**inputs, backend=backend).requires_grad
    weight = inputs.pop("weight").requires_grad_()
    causal_conv1d(weight=weight, **inputs, backend=backend).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_second_derivative_of_the_compiled_convolution_is_refused(cpp):
    inputs = make_inputs()
    out = causal_conv1d(**inputs, backend="cpp")
    (dx,) = torch.autograd.grad(out.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative; use backend='reference'"):
        dx.sum().backward()


@pytest.mark.parametrize("name", ["bias", "initial_state", "weight"])
def test_a_wrong_shape_names_the_argument(name):
    inputs = make_inputs()
    wrong = torch.zeros(4, 4) if name == "weight" else torch.zeros(*inputs[name].shape, 1)
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        causal_conv1d(**inputs | {name: wrong})


def test_wrong_dimensions_and_kinds_of_number():
    inputs = make_inputs()
    with pytest.raises(InputError, match=r"^x must be \(B, L, D\), got \(2, 3\)"):
        causal_conv1d(**inputs | {"x": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"^weight must be \(D, W\) with D = 5 from x and at least one tap"):
        causal_conv1d(**inputs | {"weight": torch.zeros(5, 0)})
    with pytest.raises(InputError, match=r"^weight must be real numbers on cpu, got torch\.int64"):
        causal_conv1d(**inputs | {"weight": torch.zeros(5, 4, dtype=torch.int64)})


@pytest.mark.parametrize("name", ["valid", "start"])
def test_flags_of_events_are_truth_values_of_each_event(name):
    inputs = make_inputs()
    with pytest.raises(InputError, match=rf"^{name} must be \(2, 9\), got \(2, 8\)"):
        causal_conv1d(**inputs, **{name: torch.ones(2, 8, dtype=torch.bool)})
    with pytest.raises(InputError, match=rf"^{name} must be bool on cpu, got torch\.float32"):
        causal_conv1d(**inputs, **{name: torch.ones(2, 9)})


def test_the_environment_decides_auto(monkeypatch):
    monkeypatch.setenv("SEQREC_CONV_BACKEND", "best")
    with pytest.raises(InputError, match=r"^SEQREC_CONV_BACKEND='best' is unknown; known: auto"):
        causal_conv1d(**make_inputs())


@pytest.mark.parametrize("flags", [True, False])
def test_registration_passes_opcheck(cpp, flags):
    inputs = make_inputs(flags=flags)
    x, weight, bias, state = (inputs[name] for name in ("x", "weight", "bias", "initial_state"))
    valid, start = inputs.get("valid"), inputs.get("start")
    torch.library.opcheck(torch.ops.seqrec.causal_conv1d_fwd, (x, weight, bias, True, state, valid, start))
    torch.library.opcheck(torch.ops.seqrec.causal_conv1d_fwd, (x, weight, None, False, None, None, None))
    values = [value.detach() for value in (x, weight, bias)]
    given = (*values, True, state.detach(), valid, start)
    out, last = torch.ops.seqrec.causal_conv1d_fwd(*given)
    torch.library.opcheck(torch.ops.seqrec.causal_conv1d_bwd, (out, last, *given))


def test_torch_compile_traces_through_the_compiled_convolution(cpp):
    def loss(**inputs):
        return causal_conv1d(**inputs, silu=True).square().sum()

    traced, inputs = make_inputs(flags=True), make_inputs(flags=True)
    torch.compile(loss, backend="aot_eager", fullgraph=True)(**traced).backward()
    loss(**inputs).backward()
    for name in without(inputs, "valid", "start"):
        torch.testing.assert_close(traced[name].grad, inputs[name].grad)
