"""Every backend against `reference` in float64, and what each promises beside that."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_problems import LARGER, ON_CPU, OPTIONAL, assert_close, make_inputs, require, run, without

from seqrec.errors import InputError
from seqrec.ops import selective_scan
from seqrec.ops.selective_scan import selective_scan_step


@pytest.fixture(params=ON_CPU)
def backend(request):
    require(request.param)
    return request.param


odd_problems = given(
    sizes=st.fixed_dictionaries(
        {"B": st.integers(0, 5), "L": st.integers(0, 70), "D": st.integers(1, 37), "N": st.integers(1, 20)}
    ),
    given_names=st.sets(st.sampled_from(OPTIONAL)),
    delta_softplus=st.booleans(),
    seed=st.integers(0, 999),
)


@odd_problems
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", [name for name in ON_CPU if name != "triton"])
def test_values_and_gradients_equal_the_float64_reference(name, sizes, given_names, delta_softplus, seed):
    check_values_and_gradients(name, sizes, given_names, delta_softplus, seed)


@odd_problems
@settings(max_examples=8, deadline=None)  # Each takes seconds in the interpreter.
def test_tritons_values_and_gradients_equal_the_float64_reference(sizes, given_names, delta_softplus, seed):
    check_values_and_gradients("triton", sizes, given_names, delta_softplus, seed)


def check_values_and_gradients(name, sizes, given_names, delta_softplus, seed):
    require(name, given_names)
    inputs = without(make_inputs(**sizes, seed=seed, flags=True), *set(OPTIONAL) - given_names)
    if not delta_softplus:
        # Step sizes that let the state grow would compare how errors grow, not the backends.
        inputs["delta"] = inputs["delta"].detach().abs()
        inputs.pop("delta_bias", None)
    expected = run(inputs, "reference", torch.float64, delta_softplus)
    assert_close(run(inputs, name, delta_softplus=delta_softplus), expected)


def test_many_events_states_and_channels_equal_the_float64_reference(backend):
    inputs = make_inputs(B=1, L=300, D=130, N=70)
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_gradcheck_in_float64(name):
    inputs = make_inputs(B=2, L=35, D=2, N=2, dtype=torch.float64)

    def outputs(*values):
        given = dict(zip(inputs, values, strict=True))
        return selective_scan(**given, delta_softplus=True, return_last_state=True, backend=name)

    assert torch.autograd.gradcheck(outputs, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("split", [0, 1, 31, 32, 44, 45])
def test_splitting_anywhere_and_carrying_the_state_equals_the_whole(backend, split):
    inputs = {name: value.detach() for name, value in make_inputs(**LARGER).items()}
    state, parts = inputs.pop("initial_state"), []
    given = {"delta_softplus": True, "return_last_state": True, "backend": backend}
    whole, last = selective_scan(**inputs, initial_state=state, **given)
    for part in (slice(0, split), slice(split, None)):
        events = {name: inputs[name][:, part] for name in ("u", "delta", "B", "C", "z")}
        y, state = selective_scan(**{**inputs, **events}, initial_state=state, **given)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


def test_outputs_ignore_future_events(backend):
    inputs = {name: value.detach() for name, value in make_inputs(**LARGER).items()}
    before = selective_scan(**inputs, delta_softplus=True, backend=backend)
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name][:, 20:] += 1
    after = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert torch.equal(before[:, :20], after[:, :20])


def test_step_size_zero_leaves_the_state_as_it_is(backend):
    inputs = make_inputs(**LARGER)
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    del inputs["delta_bias"]
    _, last = selective_scan(**inputs, return_last_state=True, backend=backend)
    assert torch.equal(last, inputs["initial_state"])


@pytest.fixture
def flagged(backend):
    require(backend, ("valid", "start"))
    return backend


def test_padding_anywhere_is_as_if_it_were_not_there(flagged):
    inputs = make_inputs(**{**LARGER, "B": 1})
    valid = torch.rand(1, LARGER["L"], generator=torch.Generator().manual_seed(0)) < 0.5
    events = ("u", "delta", "B", "C", "z")
    kept = {name: x[:, valid[0]] if name in events else x for name, x in inputs.items()}
    given = {"delta_softplus": True, "return_last_state": True, "backend": flagged}
    y, last = selective_scan(**inputs, valid=valid, **given)
    y_kept, last_kept = selective_scan(**kept, **given)
    torch.testing.assert_close(y[:, valid[0]], y_kept)
    torch.testing.assert_close(last, last_kept)
    assert not y[:, ~valid[0]].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_nothing_depends_on_what_stands_in_the_padding(flagged, value):
    inputs = make_inputs(**LARGER, flags=True)
    clean = run(inputs, flagged)
    for name in ("u", "delta", "B", "C", "z"):
        dirty = inputs[name].detach().masked_fill(~inputs["valid"].unsqueeze(-1), value)
        result = run(inputs | {name: dirty}, flagged)
        assert all(torch.equal(result[key], clean[key]) for key in clean), name
    assert not clean["u"][~inputs["valid"]].any()


def test_packed_histories_equal_each_alone(flagged):
    inputs = make_inputs(**{**LARGER, "B": 1})
    given = {"delta_softplus": True, "return_last_state": True, "backend": flagged}
    begins = [0, 1, 13, 40, LARGER["L"]]
    start = torch.zeros(1, LARGER["L"], dtype=torch.bool)
    start[0, begins[1:-1]] = True
    y, last = selective_scan(**inputs, start=start, **given)
    for begin, end in itertools.pairwise(begins):
        part = {name: inputs[name][:, begin:end] for name in ("u", "delta", "B", "C", "z")}
        state = inputs["initial_state"] if begin == 0 else None
        alone, last_alone = selective_scan(**{**inputs, **part, "initial_state": state}, **given)
        torch.testing.assert_close(y[:, begin:end], alone)
    torch.testing.assert_close(last, last_alone)


def test_a_nan_stays_in_its_packed_history(flagged):
    inputs = make_inputs(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, [10, 20]] = True
    clean = run(inputs | {"start": start}, flagged)
    for name in ("u", "delta", "B"):
        dirty = inputs[name].detach().clone()
        dirty[0, 15] = float("nan")
        result = run(inputs | {"start": start, name: dirty}, flagged)
        assert result["y"][0, 15].isnan().all(), name
        for key in ("y", "u", "delta", "B", "C", "z"):
            for part in (slice(0, 10), slice(20, None)):
                assert torch.equal(result[key][:, part], clean[key][:, part]), (name, key)
        assert torch.equal(result["last"], clean["last"])


def test_start_at_the_first_event_drops_the_initial_state(flagged):
    inputs = make_inputs(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, 0] = True
    result = run(inputs | {"start": start}, flagged)
    without_state = run(without(inputs, "initial_state"), flagged)
    assert torch.equal(result["y"], without_state["y"])
    assert not result["initial_state"].any()


@pytest.mark.parametrize("optional", [OPTIONAL[:3], ()])
def test_steps_equal_the_scan(optional):
    inputs = without(
        make_inputs(**LARGER, dtype=torch.float64), *set(OPTIONAL) - {*optional, "initial_state"}
    )
    expected, last = selective_scan(
        **inputs, delta_softplus=bool(optional), return_last_state=True, backend="reference"
    )
    state, outputs = inputs.pop("initial_state"), []
    for t in range(LARGER["L"]):
        event = {name: x[:, t] if name in ("u", "delta", "B", "C", "z") else x for name, x in inputs.items()}
        y, state = selective_scan_step(**event, state=state, delta_softplus=bool(optional))
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "state", "D", "z", "delta_bias"])
def test_a_wrong_shape_of_a_step_names_the_argument(name):
    inputs = make_inputs()
    event = {key: x[:, 0] if key in ("u", "delta", "B", "C", "z") else x for key, x in inputs.items()}
    event["state"] = event.pop("initial_state")
    assert selective_scan_step(**event)[0].shape == (2, 3)
    wrong = torch.zeros(4, 4) if name == "A" else torch.zeros(*event[name].shape, 1)
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        selective_scan_step(**event | {name: wrong})
    with pytest.raises(InputError, match=r"^u must be \(B, D\)"):
        selective_scan_step(**event | {"u": inputs["u"]})


@pytest.mark.parametrize("sizes", [{"L": 0}, {"B": 0}, {"L": 1}, {"D": 1, "N": 1}, {"N": 0}])
def test_empty_and_smallest_sizes(backend, sizes):
    inputs = make_inputs(**{"B": 2, "L": 3, "D": 5, "N": 2, **sizes})
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


def test_inputs_need_not_be_contiguous(backend):
    inputs = make_inputs(**LARGER)
    strided = {
        name: value.detach().t() if value.dim() == 2 else value.detach() for name, value in inputs.items()
    }
    strided = {name: value.transpose(1, 2) if value.dim() == 3 else value for name, value in strided.items()}
    strided = {name: value.clone(memory_format=torch.contiguous_format) for name, value in strided.items()}
    views = {name: value.transpose(-1, -2) if value.dim() > 1 else value for name, value in strided.items()}
    views["D"] = torch.stack([inputs["D"].detach()] * 2, 1)[:, 0]
    assert not any(views[name].is_contiguous() for name in ("u", "A", "B", "D", "z", "initial_state"))
    expected = selective_scan(**inputs, delta_softplus=True, backend=backend)
    torch.testing.assert_close(selective_scan(**views, delta_softplus=True, backend=backend), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_float32(backend, dtype):
    inputs = make_inputs(**LARGER, dtype=dtype)
    y, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    y.sum().backward()
    assert y.dtype == inputs["u"].grad.dtype == dtype
    assert last.dtype == torch.float32
    wide = {name: value.detach().float() for name, value in inputs.items()}
    expected = selective_scan(**wide, delta_softplus=True, backend=backend).to(dtype)
    torch.testing.assert_close(y, expected)


def test_autocast_does_not_lower_the_recurrence(backend):
    inputs = make_inputs(**LARGER)
    expected = run(inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(inputs, backend)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_nan_stays_in_its_row(backend):
    inputs = make_inputs(**{**LARGER, "B": 3})
    clean = run(inputs, backend)
    for name in ("u", "delta", "B", "C", "z"):
        dirty = {key: value.detach().clone() for key, value in inputs.items()}
        dirty[name][1, 10] = float("nan")
        result = run(dirty, backend)
        assert result["y"][1, 10].isnan().all(), name
        for key in ("y", "last", "u", "delta", "B", "C", "z", "initial_state"):
            assert torch.equal(result[key][[0, 2]], clean[key][[0, 2]]), (name, key)


@pytest.mark.parametrize("size", [-1e30, -1e4, -100.0, -80.0, -20.0, 20.0, 89.0, 1e4, 1e20])
def test_extreme_step_sizes_give_what_the_reference_gives(backend, size):
    inputs = make_inputs(**LARGER)
    delta = inputs["delta"].detach().clone()
    delta[0, ::3] = size
    inputs |= {"delta": delta, "z": inputs["z"].detach() * 200}
    expected = run(inputs, "reference", torch.float64)
    assert all(value.isfinite().all() for value in expected.values())
    assert_close(run(inputs, backend), expected, tolerance=1e-4)


def test_growing_states_overflow_where_the_reference_does(backend):
    inputs = make_inputs(B=1, L=3, D=2, N=1)
    inputs["A"] = torch.tensor([[1e3], [1.0]])
    y = selective_scan(**inputs, delta_softplus=True, backend=backend)
    expected = selective_scan(**inputs, delta_softplus=True, backend="reference")
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y[..., 0].isfinite().any()


def test_only_the_last_state_may_be_used(backend):
    inputs = make_inputs(**LARGER)
    _, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    last.sum().backward()
    expected = make_inputs(**LARGER)
    _, last = selective_scan(**expected, delta_softplus=True, return_last_state=True, backend="reference")
    last.sum().backward()
    torch.testing.assert_close(inputs["u"].grad, expected["u"].grad, rtol=1e-4, atol=1e-5)


def test_inputs_without_gradient(backend):
    inputs = {name: value.detach() for name, value in make_inputs().items()}
    assert not selective_scan(**inputs, backend=backend).requires_grad
    A = inputs.pop("A").requires_grad_()
    selective_scan(A=A, **inputs, backend=backend).sum().backward()
    assert A.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_a_wrong_shape_names_the_argument(backend, name):
    inputs = make_inputs()
    inputs[name] = torch.zeros(*inputs[name].shape[:-1], inputs[name].shape[-1] + 1)
    if name == "A":
        inputs[name] = torch.zeros(4, 4)
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        selective_scan(**inputs, backend=backend)


def test_wrong_dimensions_of_u_and_kinds_of_number():
    inputs = make_inputs()
    with pytest.raises(InputError, match=r"u must be \(B, L, D\)"):
        selective_scan(**{**inputs, "u": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"C must be real numbers on cpu, got torch\.int64"):
        selective_scan(**{**inputs, "C": torch.zeros(2, 7, 4, dtype=torch.int64)})


@pytest.mark.parametrize("name", ["valid", "start"])
def test_flags_of_events_are_truth_values_of_each_event(name):
    inputs = make_inputs()
    with pytest.raises(InputError, match=rf"^{name} must be \(2, 7\), got \(2, 6\)"):
        selective_scan(**inputs, **{name: torch.ones(2, 6, dtype=torch.bool)})
    with pytest.raises(InputError, match=rf"^{name} must be bool on cpu, got torch\.float32"):
        selective_scan(**inputs, **{name: torch.ones(2, 7)})


def test_a_second_derivative_of_the_chunked_scan_is_refused_and_does_not_vanish():
    inputs = make_inputs()
    y = selective_scan(**inputs, backend="chunked")
    with pytest.raises(NotImplementedError, match="second derivative; use backend='reference'"):
        torch.autograd.grad(y.sum(), inputs["u"], create_graph=True)
