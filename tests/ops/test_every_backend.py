"""Every backend of every op: equal to `reference` in float64, and what all of them promise besides."""

import contextlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import CONVOLUTION, OPS, SCAN, SCANS, SSD, cases, weights, without

from seqrec.errors import InputError
from seqrec.ops.ssd import chunked

NAN, INF = float("nan"), float("inf")
SIZES = {
    SCAN: st.fixed_dictionaries(
        {"B": st.integers(0, 5), "L": st.integers(0, 70), "D": st.integers(1, 37), "N": st.integers(1, 20)}
    ),
    SSD: st.builds(
        lambda heads_per_group, **sizes: sizes | {"H": heads_per_group * sizes["G"]},
        heads_per_group=st.integers(1, 3),
        B=st.integers(0, 4),
        L=st.integers(0, 150),
        P=st.integers(1, 9),
        G=st.integers(1, 3),
        N=st.integers(1, 20),
    ),
    CONVOLUTION: st.fixed_dictionaries(
        {"B": st.integers(0, 4), "L": st.integers(0, 70), "D": st.integers(1, 37), "W": st.integers(1, 7)}
    ),
}


@pytest.fixture(params=cases(OPS))
def case(request):
    """An op and one of its backends."""
    op, backend = request.param
    op.require(backend, ("valid", "start"))
    return op, backend


@pytest.fixture(params=cases(SCANS))
def scan(request):
    """A scan and one of its backends."""
    op, backend = request.param
    op.require(backend)
    return op, backend


def check_values_and_gradients(op, backend, data):
    given_names = data.draw(st.sets(st.sampled_from(op.optional)))
    activate, sizes, seed = (
        data.draw(st.booleans()),
        data.draw(SIZES[op]),
        data.draw(st.integers(0, 999)),
    )
    op.require(backend, given_names)
    inputs = without(op.make(**sizes, seed=seed, flags=True), *set(op.optional) - given_names)
    if op in SCANS and not activate:
        # Step sizes that let the state grow would compare how errors grow, not the backends.
        inputs["delta"] = inputs["delta"].detach().abs()
        inputs.pop("delta_bias", None)
    expected = op.run(inputs, "reference", torch.float64, activate)
    # Inputs are near 1, but the few sums of a small convolution may cancel to much less.
    least = 1 if op is CONVOLUTION else None
    op.assert_close(op.run(inputs, backend, activate=activate), expected, least=least)
    if op is CONVOLUTION:
        op.assert_close(op.run(inputs, "shifted", torch.float64, activate), expected, 1e-12, least)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("case", cases(OPS, leave_out=["triton"]))
def test_values_and_gradients_equal_the_float64_reference(case, data):
    check_values_and_gradients(*case, data)


@given(data=st.data())
@settings(max_examples=8, deadline=None)  # Each takes seconds in the interpreter.
@pytest.mark.kernels
@pytest.mark.slow
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_tritons_values_and_gradients_equal_the_float64_reference(op, data):
    check_values_and_gradients(op, "triton", data)


SMALLEST = {
    SCAN: {"B": 1, "L": 5, "D": 2, "N": 2},
    SSD: {"B": 1, "L": 5, "H": 2, "P": 2, "N": 2},
    CONVOLUTION: {"B": 1, "L": 5, "D": 2, "W": 3},
}


@pytest.mark.kernels
@pytest.mark.parametrize(
    "given", [(), ("valid",), ("start",), ("initial_state",)], ids=["values", "padding", "packed", "states"]
)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_triton_at_the_smallest_sizes_equals_the_float64_reference(op, given):
    """Outputs, last state and gradients; what is longer, or repeats this, is slow in the interpreter."""
    op.require("triton", given)
    inputs = op.make(**SMALLEST[op], flags=True)
    inputs |= {"valid": torch.tensor([[True, True, False, True, False]])}
    inputs |= {"start": torch.tensor([[False, True, False, False, True]])}
    inputs = without(inputs, *({"valid", "start", "initial_state"} - set(given)))
    op.assert_reference(inputs, "triton")
    if given == ("valid",):
        dirty = {name: inputs[name].detach().clone() for name in op.events}
        for value in dirty.values():
            value[0, 2] = NAN
        clean, result = op.run(inputs, "triton"), op.run(inputs | dirty, "triton")
        assert all(torch.equal(result[name], clean[name]) for name in clean)


def check_half_precision(op, backend, inputs, dtype, tolerance):
    """Activations have 16 bits, and weights 32, as under autocast; compared with float64 of the same numbers."""
    narrow = {
        name: x.detach().to(dtype).requires_grad_() if name in (*op.events, *op.narrow_states) else x
        for name, x in inputs.items()
    }
    expected = op.run(narrow, "reference", torch.float64)
    y, last = op(narrow, backend)
    torch.autograd.backward((y, last), (weights(y), weights(last)))
    real = {name: x for name, x in narrow.items() if x.is_floating_point()}
    assert all(x.grad.dtype == x.dtype for x in real.values())
    assert y.dtype == dtype
    op.assert_close({"y": y, "last": last, **{name: x.grad for name, x in real.items()}}, expected, tolerance)
    if op in SCANS:
        assert last.dtype == torch.float32
        op.assert_close({"last": last}, {"last": expected["last"]}, tolerance=1e-5)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_triton_keeps_states_and_sums_of_half_precision_in_float32(op, dtype):
    op.require("triton")
    # The interpreter cuts off the digits of bfloat16 that a GPU rounds.
    inputs = without(op.make(**SMALLEST[op]), "valid", "start")
    check_half_precision(op, "triton", inputs, dtype, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_cpp_keeps_states_and_sums_of_half_precision_in_float32(op, dtype, flags):
    op.require("cpp")
    check_half_precision(op, "cpp", op.make(**op.larger, flags=flags), dtype, torch.finfo(dtype).eps)


@pytest.mark.parametrize("op", [SCAN, CONVOLUTION], ids=lambda op: op.name)
def test_cpp_rounds_bfloat16_as_torch_does_and_no_number_stays_none(variant, op):
    inputs = op.detached(**op.larger, dtype=torch.bfloat16)
    wide = {name: x.float() for name, x in inputs.items()}
    y, expected = op(inputs, "cpp")[0], op(wide, "cpp")[0]
    assert torch.equal(y, expected.bfloat16())
    inputs[op.events[0]][1, 4] = NAN
    y = op(inputs, "cpp")[0]
    assert y[1, 4].isnan().all()
    assert not y[0].isnan().any()


def test_many_events_states_and_channels_equal_the_float64_reference(case):
    op, backend = case
    op.assert_reference(op.make(**op.largest), backend)


GRADIENT_SIZES = {
    SCAN: {"B": 2, "L": 35, "D": 2, "N": 2},
    SSD: {"B": 2, "L": 19, "H": 2, "P": 2, "N": 2},
    CONVOLUTION: {"B": 2, "L": 6, "D": 2, "W": 3},
}
TWICE = [(op, "reference") for op in OPS] + [(CONVOLUTION, "shifted")]


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("plain", [False, True])
def test_gradcheck_in_float64(op, plain, flags, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_EVENTS", 8)
    backend = op.plain if plain else "reference"
    inputs = op.make(**GRADIENT_SIZES[op], dtype=torch.float64, flags=flags)
    fixed = {name: inputs.pop(name) for name in ("valid", "start") if flags}

    def outputs(*values):
        return op({**dict(zip(inputs, values, strict=True)), **fixed}, backend)

    assert torch.autograd.gradcheck(outputs, tuple(inputs.values()), fast_mode=True)
    if (op, backend) in TWICE:
        assert torch.autograd.gradgradcheck(outputs, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("total", [torch.sum, lambda y: y.square().sum()], ids=["constant", "square"])
def test_a_second_derivative_is_right_or_refused_and_does_not_vanish(case, total):
    op, backend = case
    inputs = op.make(B=1, L=2)
    y = op(inputs, backend)[0]
    label = {"cpp": "compiled"}.get(backend, backend)
    message = f"the {label} (scan|convolution) has no second derivative; use backend='reference'"
    twice = (op, backend) in TWICE
    with contextlib.nullcontext() if twice else pytest.raises(NotImplementedError, match=message):
        (gradient,) = torch.autograd.grad(total(y), inputs[op.events[0]], create_graph=True)
        gradient.sum().backward()
    if twice:
        assert inputs[op.sizing].grad.isfinite().all()


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("split", range(6))
def test_splitting_anywhere_and_carrying_the_state_equals_the_whole(case, split, flags):
    op, backend = case
    inputs, end = op.make(**op.larger, flags=flags), op.splits[split]
    expected = op.run(inputs, backend)
    state, parts = inputs["initial_state"], []
    for part in (slice(0, end), slice(end, None)):
        y, state = op(op.cut(inputs, part) | {"initial_state": state}, backend)
        parts.append(y)
    y = torch.cat(parts, 1)
    torch.testing.assert_close(y, expected["y"])
    torch.testing.assert_close(state, expected["last"])
    torch.autograd.backward((y, state), (weights(y), weights(state)))
    gradients = {name: x.grad for name, x in inputs.items() if x.requires_grad}
    if op is CONVOLUTION:
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
    op.assert_close(gradients, {name: expected[name].double() for name in gradients})


@pytest.mark.parametrize("value", [1.0, NAN, INF])
def test_outputs_ignore_future_events_whatever_they_are(case, value):
    op, backend = case
    inputs = op.detached(**op.larger)
    before, _ = op(inputs, backend)
    for name in op.events:
        inputs[name][:, 20:] += value
    after, _ = op(inputs, backend)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


def test_step_size_zero_leaves_the_state_as_it_is(scan):
    op, backend = scan
    inputs = without(op.make(**op.larger), "delta_bias")
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    _, last = op(inputs, backend, activate=False)
    assert torch.equal(last, inputs["initial_state"])


def test_padding_anywhere_is_as_if_it_were_not_there(case):
    op, backend = case
    inputs = op.make(**{**op.larger, "B": 1})
    valid = torch.rand(1, op.larger["L"], generator=torch.Generator().manual_seed(0)) < 0.5
    y, last = op(inputs | {"valid": valid}, backend)
    y_kept, last_kept = op(op.cut(inputs, valid[0]), backend)
    torch.testing.assert_close(y[:, valid[0]], y_kept)
    torch.testing.assert_close(last, last_kept)
    assert not y[:, ~valid[0]].any()


def test_only_padding_leaves_the_state_as_it_is(case):
    op, backend = case
    inputs = op.make(**op.larger)
    result = op.run(inputs | {"valid": torch.zeros(2, op.larger["L"], dtype=torch.bool)}, backend)
    assert not result.pop("y").any()
    assert torch.equal(result.pop("last"), inputs["initial_state"])
    assert not any(gradient.any() for gradient in without(result, "initial_state").values())


@pytest.mark.parametrize("value", [NAN, INF, 1e30])
def test_nothing_depends_on_what_stands_in_the_padding(case, value):
    op, backend = case
    inputs = op.make(**op.larger, flags=True)
    clean = op.run(inputs, backend)
    for name in op.events:
        padding = ~inputs["valid"].view(*inputs["valid"].shape, *[1] * (inputs[name].dim() - 2))
        result = op.run(inputs | {name: inputs[name].detach().masked_fill(padding, value)}, backend)
        assert all(torch.equal(result[key], clean[key]) for key in clean), name
    assert not clean[op.events[0]][~inputs["valid"]].any()


def test_packed_histories_equal_each_alone(case):
    op, backend = case
    inputs = op.make(**{**op.larger, "B": 1})
    y, last = op(inputs | {"start": op.starts(*op.begins[1:-1], batch=1)}, backend)
    for begin, end in itertools.pairwise(op.begins):
        part = op.cut(inputs, slice(begin, end))
        alone, last_alone = op(part if begin == 0 else without(part, "initial_state"), backend)
        torch.testing.assert_close(y[:, begin:end], alone)
    torch.testing.assert_close(last, last_alone)


@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_not_finite_stays_in_its_packed_history(case, value):
    op, backend = case
    inputs = op.make(**op.larger) | {"start": op.starts(10, 20, 30)}
    clean = op.run(inputs, backend)
    for name in (*op.events, "initial_state"):
        begin, at, end = (0, 0, 10) if name == "initial_state" else (10, 15, 20)
        dirty = inputs[name].detach().clone()
        dirty[0 if name == "initial_state" else (0, 15)] = value
        result = op.run(inputs | {name: dirty}, backend)
        assert not result["y"][0, at].isfinite().any(), name
        assert value == INF or result["y"][0, at].isnan().all(), name
        assert torch.equal(result["y"][:, begin:at], clean["y"][:, begin:at]), name
        for key in ("y", *op.events):
            assert torch.equal(result[key][1], clean[key][1]), (name, key)
            for part in (slice(0, begin), slice(end, None)):
                assert torch.equal(result[key][:, part], clean[key][:, part]), (name, key)
        assert torch.equal(result["last"], clean["last"]), name
        rows = slice(1, None) if name == "initial_state" else slice(None)
        assert torch.equal(result["initial_state"][rows], clean["initial_state"][rows]), name


def test_start_at_the_first_event_drops_the_initial_state_whatever_it_is(case):
    op, backend = case
    inputs = op.make(**op.larger)
    expected = op.run(without(inputs, "initial_state"), backend)
    for value in (1.0, NAN):
        state = inputs["initial_state"].detach() * value
        result = op.run(inputs | {"start": op.starts(0), "initial_state": state}, backend)
        assert not result.pop("initial_state").any()
        assert torch.equal(result["y"], expected["y"])
        op.assert_close(result, {name: x.double() for name, x in expected.items()}, tolerance=1e-6)


def test_a_nan_stays_in_its_row(case):
    op, backend = case
    inputs = op.make(**{**op.larger, "B": 3})
    clean = op.run(inputs, backend)
    for name in op.events:
        dirty = inputs[name].detach().clone()
        dirty[1, 10] = NAN
        result = op.run(inputs | {name: dirty}, backend)
        assert result["y"][1, 10].isnan().all(), name
        for key in ("y", "last", *op.events, "initial_state"):
            assert torch.equal(result[key][[0, 2]], clean[key][[0, 2]]), (name, key)


@pytest.mark.parametrize("optional", [("D", "z", "delta_bias"), ()])
@pytest.mark.parametrize("op", SCANS, ids=lambda op: op.name)
def test_steps_equal_the_scan(op, optional):
    inputs = without(op.make(**op.larger, dtype=torch.float64), *set(op.optional) - {*optional, "initial_state"})
    expected, last = op(inputs, "reference", activate=bool(optional))
    state, outputs = inputs.pop("initial_state"), []
    for t in range(op.larger["L"]):
        y, state = op.step(**op.cut(inputs, t), state=state, delta_softplus=bool(optional))
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("op", SCANS, ids=lambda op: op.name)
def test_a_step_keeps_half_precision_outside_and_float32_inside(op):
    event = op.event(dtype=torch.bfloat16)
    y, state = op.step(**event)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(op.step(**event), (y, state), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "state", "D", "z", "delta_bias"])
@pytest.mark.parametrize("op", SCANS, ids=lambda op: op.name)
def test_a_wrong_shape_of_a_step_names_the_argument(op, name):
    event, first = op.event(), op.events[0]
    assert op.step(**event)[0].shape == event[first].shape
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        op.step(**event | {name: torch.zeros(*event[name].shape, 1)})
    for wrong in (event[first].unsqueeze(1), event[first][0]):
        with pytest.raises(InputError, match=rf"^{first} must be \(B, {'D' if op is SCAN else 'H, P'}\)"):
            op.step(**event | {first: wrong})


@pytest.mark.parametrize("flags", [False, True])
def test_empty_and_smallest_sizes(case, flags):
    op, backend = case
    small = {SCAN: {"D": 5, "N": 2}, SSD: {"H": 2, "P": 3, "N": 2}, CONVOLUTION: {"D": 5, "W": 2}}[op]
    for sizes in op.edges:
        op.assert_reference(op.make(**{"B": 2, "L": 3, **small, **sizes}, flags=flags), backend)


def test_inputs_need_not_be_contiguous(case):
    op, backend = case
    inputs = {name: x.detach() for name, x in op.make(**op.larger, flags=True).items()}
    views = {}
    for name, value in inputs.items():
        # The last axis outermost in memory, and every second number.
        strided = value.movedim(-1, 0).contiguous()
        views[name] = torch.stack([strided, strided], -1)[..., 0].movedim(0, -1)
        assert not views[name].is_contiguous(), name
    torch.testing.assert_close(op(views, backend), op(inputs, backend))


def test_gradients_need_not_be_contiguous(case):
    op, backend = case
    inputs, other = op.make(**op.larger), op.make(**op.larger)
    y, _ = op(inputs, backend)
    y.backward(weights(y))
    op(other, backend)[0].backward(weights(y).movedim(1, -1).contiguous().movedim(-1, 1))
    expected = {name: x.grad.double() for name, x in inputs.items() if x.grad is not None}
    op.assert_close({name: x.grad for name, x in other.items() if x.grad is not None}, expected)
    assert expected.keys() >= {*op.events, op.sizing}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(case, dtype):
    op, backend = case
    inputs = op.make(**op.larger, dtype=dtype)
    y, last = op(inputs, backend)
    (y.sum() + last.sum()).backward()
    assert y.dtype == inputs[op.events[0]].grad.dtype == dtype
    assert last.dtype == (dtype if op is CONVOLUTION else torch.float32)
    wide = {name: value.detach().float() for name, value in inputs.items()}
    torch.testing.assert_close(y, op(wide, backend)[0].to(dtype))
    if op is CONVOLUTION:
        assert torch.equal(last, inputs["x"][:, -3:])


def test_autocast_lowers_neither_values_nor_gradients(case):
    op, backend = case
    inputs = op.make(**op.larger)
    expected = op.run(inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = op.run(inputs, backend)
    for name in expected:
        assert torch.equal(result[name], expected[name]), name


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_double_precision_stays_on_its_own_backends(op):
    inputs = op.make(dtype=torch.float64)
    assert op(inputs, "auto")[0].dtype == torch.float64
    for name in set(op.backends.names) - {op.plain, "reference"}:
        device = {"cpp": "cpu", "triton": "cuda"}.get(name, "cuda")
        with pytest.raises(InputError, match=rf"backend='{name}' runs float32 on {device}.*, got torch\.float64 on"):
            op(inputs, name)


@pytest.mark.parametrize("size", [-1e30, -1e4, -100.0, -80.0, -20.0, 20.0, 89.0, 1e4, 1e20, 1e30])
def test_extreme_step_sizes_give_what_the_reference_gives(scan, size):
    op, backend = scan
    inputs = op.make(**op.larger)
    delta = inputs["delta"].detach().clone()
    delta[0, ::3] = size
    inputs |= {"delta": delta, "z": inputs["z"].detach() * 200}
    expected = op.run(inputs, "reference", torch.float64)
    assert all(value.isfinite().all() for value in expected.values())
    op.assert_close(op.run(inputs, backend), expected, tolerance=1e-4)


def test_growing_states_overflow_where_the_reference_does(scan):
    op, backend = scan
    inputs = op.make(B=1, L=3, N=1, **({"D": 2} if op is SCAN else {"H": 2, "P": 2}))
    inputs["A"] = torch.tensor([1e3, 1.0]).view_as(inputs["A"])
    y, expected = (op(inputs, name)[0] for name in (backend, "reference"))
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y.select(2, 0).isfinite().any()


@pytest.mark.parametrize("used", [0, 1], ids=["y", "last"])
def test_one_of_the_results_may_be_left_unused(case, used):
    op, backend = case
    gradients = []
    for name in (backend, "reference"):
        inputs = op.make(**op.larger)
        output = op(inputs, name)[used]
        (output.square() if op is CONVOLUTION else output).sum().backward()
        gradients.append([inputs[op.events[0]].grad, inputs["initial_state"].grad])
    for actual, expected in zip(*gradients, strict=True):
        if expected is None:
            assert actual is None or not actual.any()
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_inputs_without_gradient(case):
    op, backend = case
    inputs = op.detached()
    assert not op(inputs, backend)[0].requires_grad
    name = "weight" if op is CONVOLUTION else "A"
    parameter = inputs.pop(name).requires_grad_()
    op(inputs | {name: parameter}, backend)[0].sum().backward()
    assert parameter.grad.abs().sum() > 0


def test_inputs_are_not_written_to(case):
    op, backend = case
    inputs = op.make(**op.larger, flags=True)
    copies = {name: value.detach().clone() for name, value in inputs.items()}
    y, last = op(inputs, backend)
    (y.sum() + last.sum()).backward()
    assert all(torch.equal(inputs[name], copies[name]) for name in inputs)


def test_a_wrong_shape_names_the_argument(case):
    op, backend = case
    inputs = op.make()
    for name in without(inputs, op.events[0]):
        shape = inputs[name].shape
        wrong = [torch.zeros(*shape, 1)]
        if name != op.sizing:
            wrong.append(torch.zeros(*shape[:-1], shape[-1] + 1))
        elif len(shape) == 2:
            wrong.append(torch.zeros(4, 4))
        for tensor in wrong:
            with pytest.raises(InputError, match=rf"^{name} must be \("):
                op(inputs | {name: tensor}, backend)


@pytest.mark.parametrize(
    ("op", "name", "shape", "message"),
    [
        (SCAN, "u", (2, 3), r"^u must be \(B, L, D\)"),
        (SSD, "x", (2, 3), r"^x must be \(B, L, H, P\), got \(2, 3\)"),
        (SSD, "B", (2, 7, 3, 4), r"^B has 3 groups, which must divide the 2 heads of x"),
        (SSD, "B", (2, 7, 0, 4), r"^B has 0 groups"),
        (CONVOLUTION, "x", (2, 3), r"^x must be \(B, L, D\), got \(2, 3\)"),
        (CONVOLUTION, "weight", (5, 0), r"^weight must be \(D, W\) with D = 5 from x and at least one tap"),
    ],
)
def test_wrong_dimensions_are_refused(op, name, shape, message):
    with pytest.raises(InputError, match=message):
        op(op.make() | {name: torch.zeros(shape)}, "auto")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_integers_are_refused(op):
    inputs = op.make()
    name = "weight" if op is CONVOLUTION else "C"
    with pytest.raises(InputError, match=rf"^{name} must be real numbers on cpu, got torch\.int64"):
        op(inputs | {name: torch.zeros(inputs[name].shape, dtype=torch.int64)}, "auto")


@pytest.mark.parametrize("name", ["valid", "start"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_flags_of_events_are_truth_values_of_each_event(op, name):
    inputs = op.make(L=7)
    with pytest.raises(InputError, match=rf"^{name} must be \(2, 7\), got \(2, 6\)"):
        op(inputs | {name: torch.ones(2, 6, dtype=torch.bool)}, "auto")
    with pytest.raises(InputError, match=rf"^{name} must be bool on cpu, got torch\.float32"):
        op(inputs | {name: torch.ones(2, 7)}, "auto")


@pytest.mark.parametrize(
    ("variable", "argument", "chosen"),
    [("", "auto", "chunked"), ("reference", "auto", "reference"), ("reference", "chunked", "chunked")],
)
@pytest.mark.parametrize("op", SCANS, ids=lambda op: op.name)
def test_the_argument_comes_before_the_environment_and_that_before_auto(monkeypatch, op, variable, argument, chosen):
    monkeypatch.setenv(op.backends.variable, variable)
    inputs = op.make()
    y, _ = op(inputs, argument)
    # Only the reference has second derivatives.
    with contextlib.nullcontext() if chosen == "reference" else pytest.raises(NotImplementedError):
        (gradient,) = torch.autograd.grad(y.sum(), inputs[op.events[0]], create_graph=True)
        gradient.sum().backward()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_unknown_backend_is_refused_with_the_known_ones(monkeypatch, op):
    monkeypatch.setenv(op.backends.variable, "fast")
    known = ", ".join(["auto", *sorted(op.backends.names)])
    with pytest.raises(InputError, match=rf"^{op.backends.variable}='fast' is unknown; known: {known}$"):
        op(op.make(), "auto")


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("case", cases([SCAN, CONVOLUTION], ["chunked", "shifted", "reference"]))
def test_torch_compile_traces_through_the_kernels(case, flags):
    op, backend = case
    op.require(backend)
    auto = op.backends.choose("auto", "cpu", torch.float32).name

    def loss(**inputs):
        return op(inputs, "auto" if backend == auto else backend)[0].square().sum()

    sizes = {"B": 1, "L": 3} if backend == "triton" else {}
    traced, inputs = op.make(**sizes, flags=flags), op.make(**sizes, flags=flags)
    torch.compile(loss, backend="aot_eager", fullgraph=True)(**traced).backward()
    loss(**inputs).backward()
    for name, x in inputs.items():
        if x.requires_grad:
            torch.testing.assert_close(traced[name].grad, x.grad)
