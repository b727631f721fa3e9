"""Every backend against `reference` in float64, that against torch's convolution, and what each promises beside."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conv_problems import LARGER, ON_CPU, OPTIONAL, make_inputs, require, run
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_problems import assert_close, without

from seqrec.ops import causal_conv1d
from seqrec.ops.causal_conv1d import compiled

NAN = float("nan")


@pytest.fixture(params=ON_CPU)
def backend(request):
    require(request.param)
    return request.param


@pytest.fixture
def cpp():
    require("cpp")


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_reference_equals_torch(length, taps):
    inputs = make_inputs(L=length, W=taps, dtype=torch.float64)
    out, last = causal_conv1d(**inputs, silu=True, return_last_state=True, backend="reference")
    rows = torch.cat([inputs["initial_state"], inputs["x"]], 1).transpose(1, 2)
    expected = F.silu(F.conv1d(rows, inputs["weight"].unsqueeze(1), inputs["bias"], groups=5))
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert torch.equal(last, rows.transpose(1, 2)[:, length:])


def test_a_hand_worked_example_with_padding_and_starts():
    x = torch.tensor([1.0, 2.0, NAN, 4.0, 5.0, NAN, 7.0, 8.0, NAN]).view(1, 9, 1)
    valid = ~x[..., 0].isnan()
    start = torch.zeros(1, 9, dtype=torch.bool)
    start[0, [4, 5]] = True
    weight = torch.tensor([[100.0, 10.0, 1.0]])
    state = torch.tensor([[[8.0], [9.0]]])
    out, last = causal_conv1d(
        x,
        weight,
        initial_state=state,
        return_last_state=True,
        valid=valid,
        start=start,
        backend="reference",
    )
    assert out.flatten().tolist() == [891, 912, 0, 124, 5, 0, 7, 78, 0]
    assert last.flatten().tolist() == [7, 8]


odd_problems = given(
    sizes=st.fixed_dictionaries(
        {"B": st.integers(0, 4), "L": st.integers(0, 70), "D": st.integers(1, 37), "W": st.integers(1, 7)}
    ),
    given_names=st.sets(st.sampled_from(OPTIONAL)),
    silu=st.booleans(),
    seed=st.integers(0, 999),
)


@odd_problems
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("name", [name for name in ON_CPU if name not in ("reference", "triton")])
def test_values_and_gradients_equal_the_float64_reference(name, sizes, given_names, silu, seed):
    check_values_and_gradients(name, sizes, given_names, silu, seed)


@odd_problems
@settings(max_examples=8, deadline=None)  # Each takes part of a second in the interpreter.
def test_tritons_values_and_gradients_equal_the_float64_reference(sizes, given_names, silu, seed):
    check_values_and_gradients("triton", sizes, given_names, silu, seed)


def check_values_and_gradients(name, sizes, given_names, silu, seed):
    require(name, given_names)
    inputs = without(make_inputs(**sizes, seed=seed, flags=True), *set(OPTIONAL) - given_names)
    expected = run(inputs, "reference", torch.float64, silu)
    # RecommendOptions are near 1, but the few sums of a small problem may cancel to much less.
    assert_close(run(inputs, name, silu=silu), expected, least=1)
    assert_close(run(inputs, "shifted", torch.float64, silu), expected, tolerance=1e-12, least=1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 6])
def test_gradients_meet_where_pieces_of_a_row_do(cpp, monkeypatch, taps, seed):
    # Short pieces, so that windows reach over several and padding fills some.
    monkeypatch.setattr(compiled, "PIECE", 3)
    inputs = make_inputs(B=3, L=40, D=18, W=taps, seed=seed, flags=True)
    inputs["valid"][:, 10:24] = False
    inputs["valid"][0, :8] = False
    inputs["start"] &= torch.rand(3, 40, generator=torch.Generator().manual_seed(seed)) < 0.4
    for names in ((), ("start",), ("valid",), ("valid", "start")):
        given = without(inputs, *names)
        assert_close(run(given, "cpp"), run(given, "reference", torch.float64))


@pytest.mark.parametrize("threads", [2, 5])
def test_sums_do_not_depend_on_the_number_of_threads(cpp, monkeypatch, threads):
    inputs = make_inputs(B=2, L=1500, D=100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = run(inputs, "cpp")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    together = run(inputs, "cpp")
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("name", ["reference", "shifted"])
def test_gradcheck_to_the_second_derivative_in_float64(name):
    inputs = make_inputs(B=2, L=6, D=2, W=3, dtype=torch.float64, flags=True)
    flags = {key: inputs.pop(key) for key in ("valid", "start")}

    def outputs(*values):
        given = dict(zip(inputs, values, strict=True))
        return causal_conv1d(**given, **flags, silu=True, return_last_state=True, backend=name)

    assert torch.autograd.gradcheck(outputs, tuple(inputs.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(outputs, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("split", [0, 1, 2, 21, 43, 45])
def test_splitting_anywhere_and_carrying_the_state_equals_the_whole(backend, split, flags):
    inputs = make_inputs(**LARGER, flags=flags)
    expected = run(inputs, backend)
    inputs = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    state, parts = inputs["initial_state"], []
    for part in (slice(0, split), slice(split, None)):
        events = {name: inputs[name][:, part] for name in ("x", "valid", "start") if name in inputs}
        out, state = causal_conv1d(
            **{**inputs, **events, "initial_state": state}, silu=True, return_last_state=True, backend=backend
        )
        parts.append(out)
    out = torch.cat(parts, 1)
    torch.testing.assert_close(out, expected["out"])
    torch.testing.assert_close(state, expected["last"])
    weights = [torch.linspace(-1, 2, x.numel()).cos().view(x.shape) for x in (out, state)]
    torch.autograd.backward((out, state), weights)
    for name in ("x", "weight", "bias", "initial_state"):
        torch.testing.assert_close(inputs[name].grad, expected[name], rtol=1e-4, atol=1e-5)


def test_outputs_ignore_future_events(backend):
    inputs = {name: value.detach() for name, value in make_inputs(**LARGER).items()}
    before = causal_conv1d(**inputs, backend=backend)
    inputs["x"][:, 20:] += 1
    after = causal_conv1d(**inputs, backend=backend)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])


def test_output_sees_as_many_events_as_taps(backend):
    inputs = make_inputs(W=3)
    out = causal_conv1d(**inputs, backend=backend)
    (dx,) = torch.autograd.grad(out[0, 6].sum(), inputs["x"])
    assert dx[0].abs().sum(1).nonzero().flatten().tolist() == [4, 5, 6]
    assert not dx[1].any()


def test_padding_anywhere_is_as_if_it_were_not_there(backend):
    inputs = make_inputs(**{**LARGER, "B": 1})
    valid = torch.rand(1, LARGER["L"], generator=torch.Generator().manual_seed(0)) < 0.5
    given = {"silu": True, "return_last_state": True, "backend": backend}
    out, last = causal_conv1d(**inputs, valid=valid, **given)
    out_kept, last_kept = causal_conv1d(**{**inputs, "x": inputs["x"][:, valid[0]]}, **given)
    torch.testing.assert_close(out[:, valid[0]], out_kept)
    torch.testing.assert_close(last, last_kept)
    assert not out[:, ~valid[0]].any()


@pytest.mark.parametrize("value", [NAN, float("inf"), 1e30])
def test_nothing_depends_on_what_stands_in_the_padding(backend, value):
    inputs = make_inputs(**LARGER, flags=True)
    clean = run(inputs, backend)
    dirty = inputs["x"].detach().masked_fill(~inputs["valid"].unsqueeze(-1), value)
    result = run(inputs | {"x": dirty}, backend)
    assert all(torch.equal(result[key], clean[key]) for key in clean)
    assert not clean["x"][~inputs["valid"]].any()


def test_packed_histories_equal_each_alone(backend):
    inputs = make_inputs(**{**LARGER, "B": 1})
    begins = [0, 1, 3, 13, 40, LARGER["L"]]
    start = torch.zeros(1, LARGER["L"], dtype=torch.bool)
    start[0, begins[1:-1]] = True
    given = {"silu": True, "return_last_state": True, "backend": backend}
    out, last = causal_conv1d(**inputs, start=start, **given)
    for begin, end in itertools.pairwise(begins):
        state = inputs["initial_state"] if begin == 0 else None
        part = {"x": inputs["x"][:, begin:end], "initial_state": state}
        alone, last_alone = causal_conv1d(**{**inputs, **part}, **given)
        torch.testing.assert_close(out[:, begin:end], alone)
    torch.testing.assert_close(last, last_alone)


def test_a_nan_stays_in_its_packed_history_and_row(backend):
    inputs = make_inputs(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, [10, 17, 43]] = True
    clean = run(inputs | {"start": start}, backend)
    dirty = inputs["x"].detach().clone()
    dirty[0, 16] = dirty[0, 42] = NAN
    result = run(inputs | {"start": start, "x": dirty}, backend)
    assert result["out"][0, [16, 42]].isnan().all()
    for key in ("out", "x"):
        for part in (slice(0, 10), slice(17, 39), slice(43, None)):
            assert torch.equal(result[key][0, part], clean[key][0, part]), key
        assert torch.equal(result[key][1], clean[key][1])
    assert torch.equal(result["last"], clean["last"])
    assert torch.equal(result["initial_state"], clean["initial_state"])


def test_a_nan_in_a_state_that_no_event_sees_reaches_nothing(backend):
    inputs = make_inputs()
    start = torch.zeros(2, 9, dtype=torch.bool)
    start[:, 0] = True
    clean = run(inputs | {"start": start}, backend)
    state = torch.full_like(inputs["initial_state"], NAN)
    result = run(inputs | {"start": start, "initial_state": state}, backend)
    assert all(torch.equal(result[name], clean[name]) for name in clean)
