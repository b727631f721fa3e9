"""Every backend against `reference` in float64, and what each promises beside that."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_problems import LARGER, OF_EVENTS, OPTIONAL, assert_close, make_inputs, require, run, without
from torch._dynamo.testing import CompileCounterWithBackend

from seqrec.errors import InputError
from seqrec.ops import selective_scan
from seqrec.ops.ssd import SSD_BACKENDS, chunked, ssd_scan, ssd_step

every_backend = pytest.mark.parametrize("name", SSD_BACKENDS.names)
ALWAYS = {"delta_softplus": True, "return_last_state": True}


@pytest.fixture(params=SSD_BACKENDS.names)
def backend(request):
    require(request.param)
    return request.param


@pytest.fixture
def flagged(backend):
    require(backend, ("valid", "start"))
    return backend


def detached(**sizes):
    return {name: value.detach() for name, value in make_inputs(**sizes).items()}


@given(
    sizes=st.fixed_dictionaries(
        {
            "B": st.integers(0, 4),
            "L": st.integers(0, 150),
            "P": st.integers(1, 9),
            "G": st.integers(1, 3),
            "N": st.integers(1, 20),
        }
    ),
    heads_a_group=st.integers(1, 3),
    given_names=st.sets(st.sampled_from(OPTIONAL)),
    delta_softplus=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
@every_backend
def test_values_and_gradients_equal_the_float64_reference(
    name, sizes, heads_a_group, given_names, delta_softplus, seed
):
    require(name, given_names)
    inputs = make_inputs(**sizes, H=heads_a_group * sizes["G"], seed=seed, flags=True)
    inputs = without(inputs, *set(OPTIONAL) - given_names)
    if not delta_softplus:
        # Step sizes that let the state grow would compare how errors grow, not the backends.
        inputs["delta"] = inputs["delta"].detach().abs()
        inputs.pop("delta_bias", None)
    expected = run(inputs, "reference", torch.float64, delta_softplus)
    assert_close(run(inputs, name, delta_softplus=delta_softplus), expected)


def test_many_events_states_and_channels_equal_the_float64_reference(backend):
    inputs = make_inputs(B=1, L=700, H=6, P=33, G=2, N=70)
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


def test_slow_and_fast_heads_over_many_events_equal_the_float64_reference(backend):
    inputs = make_inputs(B=1, L=2000, H=4, P=3, N=2)
    inputs |= {"A": torch.tensor([-1e-4, -0.1, -16.0, -200.0]), "delta": inputs["delta"].detach() - 2}
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


@pytest.mark.parametrize("numbers", [1, 2**14, 2**30])
def test_chunks_may_be_computed_a_few_at_a_time_or_all_at_once(monkeypatch, numbers):
    inputs = make_inputs(B=2, L=4 * chunked.CHUNK_EVENTS + 1, flags=True)
    expected = run(inputs, "reference", torch.float64)
    monkeypatch.setattr(chunked, "CPU_NUMBERS", numbers)
    assert_close(run(inputs, "chunked"), expected)


def test_the_scan_is_a_selective_scan_whose_channels_share_their_decay(backend):
    inputs = make_inputs(B=2, L=100, H=2, P=3, N=4, flags=True)
    require(backend, ("valid", "start"))
    wide = {name: inputs[name].flatten(2) for name in ("x", "z")}
    wide |= {name: inputs[name].squeeze(2) for name in ("B", "C")}
    wide |= {name: inputs[name].repeat_interleave(3, -1) for name in ("delta", "D", "delta_bias")}
    wide |= {"A": inputs["A"].repeat_interleave(3).unsqueeze(1).expand(6, 4), "u": wide.pop("x")}
    wide |= {"initial_state": inputs["initial_state"].flatten(1, 2)}
    wide |= {name: inputs[name] for name in ("valid", "start")}
    expected, expected_last = selective_scan(**wide, **ALWAYS, backend="reference")
    y, last = ssd_scan(**inputs, **ALWAYS, backend=backend)
    torch.testing.assert_close(y.flatten(2), expected)
    torch.testing.assert_close(last.flatten(1, 2), expected_last)


@every_backend
def test_gradcheck_in_float64(name, monkeypatch):
    if reason := SSD_BACKENDS[name].why_unusable("cpu", torch.float64):
        pytest.skip(reason)
    monkeypatch.setattr(chunked, "CHUNK_EVENTS", 8)
    inputs = make_inputs(B=2, L=19, H=2, P=2, N=2, dtype=torch.float64)

    def outputs(*values):
        return ssd_scan(**dict(zip(inputs, values, strict=True)), **ALWAYS, backend=name)

    assert torch.autograd.gradcheck(outputs, tuple(inputs.values()), fast_mode=True)


def test_only_the_reference_has_second_derivatives():
    inputs = make_inputs()
    y = ssd_scan(**inputs, backend="reference")
    (dx,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    dx.sum().backward()
    assert inputs["A"].grad.isfinite().all()
    # The gradient that arrives is constant, so that nothing but the scan can refuse.
    y = ssd_scan(**inputs, backend="chunked")
    with pytest.raises(NotImplementedError, match="second derivative; use backend='reference'"):
        torch.autograd.grad(y.sum(), inputs["x"], create_graph=True)


@pytest.mark.parametrize("split", [0, 1, 63, 64, 149, 150])
def test_splitting_anywhere_and_carrying_the_state_equals_the_whole(backend, split):
    inputs = detached(**LARGER)
    state, parts = inputs.pop("initial_state"), []
    whole, last = ssd_scan(**inputs, initial_state=state, **ALWAYS, backend=backend)
    for part in (slice(0, split), slice(split, None)):
        events = {name: inputs[name][:, part] for name in OF_EVENTS}
        y, state = ssd_scan(**{**inputs, **events}, initial_state=state, **ALWAYS, backend=backend)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_outputs_ignore_future_events_whatever_they_are(backend, value):
    inputs = detached(**LARGER)
    before = ssd_scan(**inputs, delta_softplus=True, backend=backend)
    for name in OF_EVENTS:
        inputs[name][:, 20:] += value
    after = ssd_scan(**inputs, delta_softplus=True, backend=backend)
    assert torch.equal(before[:, :20], after[:, :20])


def test_step_size_zero_leaves_the_state_as_it_is(backend):
    inputs = make_inputs(**LARGER)
    inputs["delta"] = torch.zeros_like(inputs["delta"])
    del inputs["delta_bias"]
    _, last = ssd_scan(**inputs, return_last_state=True, backend=backend)
    assert torch.equal(last, inputs["initial_state"])


def test_padding_anywhere_is_as_if_it_were_not_there(flagged):
    inputs = make_inputs(**{**LARGER, "B": 1})
    valid = torch.rand(1, LARGER["L"], generator=torch.Generator().manual_seed(0)) < 0.5
    kept = {name: x[:, valid[0]] if name in OF_EVENTS else x for name, x in inputs.items()}
    y, last = ssd_scan(**inputs, valid=valid, **ALWAYS, backend=flagged)
    y_kept, last_kept = ssd_scan(**kept, **ALWAYS, backend=flagged)
    torch.testing.assert_close(y[:, valid[0]], y_kept)
    torch.testing.assert_close(last, last_kept)
    assert not y[:, ~valid[0]].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_nothing_depends_on_what_stands_in_the_padding(flagged, value):
    inputs = make_inputs(**LARGER, flags=True)
    clean = run(inputs, flagged)
    for name in OF_EVENTS:
        padding = ~inputs["valid"].view(*inputs["valid"].shape, *[1] * (inputs[name].dim() - 2))
        result = run(inputs | {name: inputs[name].detach().masked_fill(padding, value)}, flagged)
        assert all(torch.equal(result[key], clean[key]) for key in clean), name
    assert not clean["x"][~inputs["valid"]].any()


def test_packed_histories_equal_each_alone(flagged):
    inputs = make_inputs(**{**LARGER, "B": 1})
    begins = [0, 1, 13, 64, 100, LARGER["L"]]
    start = torch.zeros(1, LARGER["L"], dtype=torch.bool)
    start[0, begins[1:-1]] = True
    y, last = ssd_scan(**inputs, start=start, **ALWAYS, backend=flagged)
    for begin, end in itertools.pairwise(begins):
        part = {name: inputs[name][:, begin:end] for name in OF_EVENTS}
        state = inputs["initial_state"] if begin == 0 else None
        alone, last_alone = ssd_scan(**{**inputs, **part, "initial_state": state}, **ALWAYS, backend=flagged)
        torch.testing.assert_close(y[:, begin:end], alone)
    torch.testing.assert_close(last, last_alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "delta", "B", "C", "z", "initial_state"])
def test_what_is_not_finite_stays_in_its_packed_history(flagged, name, value):
    inputs = make_inputs(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, [10, 20, 70]] = True
    clean = run(inputs | {"start": start}, flagged)
    dirty = inputs[name].detach().clone()
    dirty[(0, 15) if name != "initial_state" else (0,)] = value
    result = run(inputs | {"start": start, name: dirty}, flagged)
    begin, at, end = (10, 15, 20) if name != "initial_state" else (0, 0, 10)
    assert not result["y"][0, at].isfinite().any()
    assert torch.equal(result["y"][:, begin:at], clean["y"][:, begin:at])
    for key in ("y", "x", "delta", "B", "C", "z"):
        for part in (slice(0, begin), slice(end, None)):
            assert torch.equal(result[key][:, part], clean[key][:, part]), key
    assert torch.equal(result["last"], clean["last"])
    assert torch.equal(result["initial_state"][1], clean["initial_state"][1])


def test_start_at_the_first_event_drops_the_initial_state(flagged):
    inputs = make_inputs(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, 0] = True
    for value in (1.0, float("nan")):
        state = inputs["initial_state"].detach() * value
        result = run(inputs | {"start": start, "initial_state": state}, flagged)
        assert_close(result, run(without(inputs, "initial_state"), "reference", torch.float64))
        assert not result["initial_state"].any()


@pytest.mark.parametrize("optional", [OPTIONAL[:3], ()])
def test_steps_equal_the_scan(optional):
    inputs = without(
        make_inputs(**LARGER, dtype=torch.float64), *set(OPTIONAL) - {*optional, "initial_state"}
    )
    expected, last = ssd_scan(
        **inputs, delta_softplus=bool(optional), return_last_state=True, backend="reference"
    )
    state, outputs = inputs.pop("initial_state"), []
    for t in range(LARGER["L"]):
        event = {name: x[:, t] if name in OF_EVENTS else x for name, x in inputs.items()}
        y, state = ssd_step(**event, state=state, delta_softplus=bool(optional))
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected)
    torch.testing.assert_close(state, last)


def an_event(**sizes):
    inputs = make_inputs(**sizes)
    event = {key: value[:, 0] if key in OF_EVENTS else value for key, value in inputs.items()}
    event["state"] = event.pop("initial_state")
    return event


def test_a_step_keeps_half_precision_outside_and_float32_inside():
    event = an_event(dtype=torch.bfloat16)
    y, state = ssd_step(**event)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ssd_step(**event), (y, state), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "state", "D", "z", "delta_bias"])
def test_a_wrong_shape_of_a_step_names_the_argument(name):
    event = an_event()
    assert ssd_step(**event)[0].shape == (2, 2, 3)
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        ssd_step(**event | {name: torch.zeros(*event[name].shape, 1)})
    with pytest.raises(InputError, match=r"^x must be \(B, H, P\)"):
        ssd_step(**event | {"x": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    "sizes", [{"L": 0}, {"B": 0}, {"L": 1}, {"L": 64}, {"H": 1, "P": 1, "N": 1}, {"N": 0}, {"P": 0}]
)
def test_empty_and_smallest_sizes(backend, sizes):
    inputs = make_inputs(**{"B": 2, "L": 3, "H": 2, "P": 3, "N": 2, **sizes})
    assert_close(run(inputs, backend), run(inputs, "reference", torch.float64))


def test_inputs_need_not_be_contiguous(backend):
    inputs = detached(**LARGER)
    views = {}
    for name, value in inputs.items():
        # The last axis outermost in memory, and every second number.
        strided = value.movedim(-1, 0).contiguous()
        views[name] = torch.stack([strided, strided], -1)[..., 0].movedim(0, -1)
        assert not views[name].is_contiguous(), name
    expected = ssd_scan(**inputs, delta_softplus=True, backend=backend)
    torch.testing.assert_close(ssd_scan(**views, delta_softplus=True, backend=backend), expected)


def test_gradients_need_not_be_contiguous(backend):
    inputs, other = make_inputs(**LARGER), make_inputs(**LARGER)
    y = ssd_scan(**inputs, delta_softplus=True, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y.backward(weights)
    strided = weights.movedim(1, -1).contiguous().movedim(-1, 1)
    ssd_scan(**other, delta_softplus=True, backend=backend).backward(strided)
    assert_close(
        {name: value.grad for name, value in other.items()},
        {name: value.grad.double() for name, value in inputs.items()},
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_float32(backend, dtype):
    inputs = make_inputs(**LARGER, dtype=dtype)
    y, last = ssd_scan(**inputs, **ALWAYS, backend=backend)
    y.sum().backward()
    assert y.dtype == inputs["x"].grad.dtype == dtype
    assert last.dtype == torch.float32
    wide = {name: value.detach().float() for name, value in inputs.items()}
    torch.testing.assert_close(y, ssd_scan(**wide, delta_softplus=True, backend=backend).to(dtype))


def test_autocast_lowers_neither_the_recurrence_nor_its_gradients(backend):
    inputs = make_inputs(**LARGER)
    expected = run(inputs, backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = run(inputs, backend)
    for name in expected:
        assert torch.equal(result[name], expected[name]), name


def test_a_nan_stays_in_its_row(backend):
    inputs = make_inputs(**{**LARGER, "B": 3})
    clean = run(inputs, backend)
    for name in OF_EVENTS:
        dirty = {key: value.detach().clone() for key, value in inputs.items()}
        dirty[name][1, 10] = float("nan")
        result = run(dirty, backend)
        assert result["y"][1, 10].isnan().all(), name
        for key in ("y", "last", "x", "delta", "B", "C", "z", "initial_state"):
            assert torch.equal(result[key][[0, 2]], clean[key][[0, 2]]), (name, key)


def test_a_nan_of_one_head_stays_in_it_and_is_not_hidden(backend):
    inputs = make_inputs(**LARGER)
    clean = run(inputs, backend)
    dirty = {key: value.detach().clone() for key, value in inputs.items()}
    dirty["delta"][0, 100, 1] = float("nan")
    result = run(dirty, backend)
    others = [0, 2, 3]
    for key in ("y", "x", "delta", "z"):
        assert torch.equal(result[key][:, :, others], clean[key][:, :, others]), key
    assert torch.equal(result["y"][0, :100], clean["y"][0, :100])
    assert result["y"][0, 100:, 1].isnan().all()
    assert result["last"][0, 1].isnan().all()
    assert result["delta"][0, :101, 1].isnan().any()
    assert result["B"][0, :101, 0].isnan().any()
    assert result["A"][1].isnan()
    assert result["A"][others].isfinite().all()


@pytest.mark.parametrize("name", ["B", "C"])
def test_a_nan_of_one_group_stays_in_its_heads(backend, name):
    inputs = make_inputs(**LARGER)
    clean = run(inputs, backend)
    dirty = inputs[name].detach().clone()
    dirty[0, 100, 1] = float("nan")
    result = run(inputs | {name: dirty}, backend)
    for key in ("y", "x", "delta", "z"):
        assert torch.equal(result[key][:, :, :2], clean[key][:, :, :2]), key
    for key in ("B", "C"):
        assert torch.equal(result[key][:, :, 0], clean[key][:, :, 0]), key
    assert result["y"][0, 100, 2:].isnan().all()


@pytest.mark.parametrize("at", [15, None])
def test_a_gradient_that_is_not_a_number_reaches_its_history_and_no_other(flagged, at):
    inputs, clean = make_inputs(**LARGER), make_inputs(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, [10, 20, 70]] = True
    for values, factor in ((clean, 1.0), (inputs, float("nan"))):
        y, last = ssd_scan(**values, start=start, **ALWAYS, backend=flagged)
        dy, dlast = torch.ones_like(y), torch.ones_like(last)
        if at is None:
            dlast[0] *= factor
        else:
            dy[0, at] *= factor
        torch.autograd.backward((y, last), (dy, dlast))
    begin, end, newest = (10, 20, 15) if at is not None else (70, LARGER["L"], LARGER["L"] - 1)
    for name in ("x", "delta", "B"):
        result, expected = inputs[name].grad, clean[name].grad
        assert result[0, begin : newest + 1].isnan().all(), name
        assert torch.equal(result[1], expected[1]), name
        for part in (slice(0, begin), slice(end, None)):
            assert torch.equal(result[0, part], expected[0, part]), name
    assert inputs["A"].grad.isnan().all()
    assert torch.equal(inputs["initial_state"].grad, clean["initial_state"].grad)


def test_what_begins_with_the_first_event_sends_nothing_to_the_initial_state(flagged):
    inputs = detached(**LARGER)
    start = torch.zeros(2, LARGER["L"], dtype=torch.bool)
    start[:, 0] = True
    inputs["x"][0, 5] = float("nan")
    result = run(inputs | {"start": start}, flagged)
    assert result["y"][0, 5:].isnan().all()
    assert torch.equal(result["initial_state"], torch.zeros_like(result["initial_state"]))


@pytest.mark.parametrize("size", [-1e30, -1e4, -100.0, -80.0, -20.0, 20.0, 89.0, 1e4, 1e20, 1e30])
def test_extreme_step_sizes_give_what_the_reference_gives(backend, size):
    inputs = make_inputs(**LARGER)
    delta = inputs["delta"].detach().clone()
    delta[0, ::3] = size
    inputs |= {"delta": delta, "z": inputs["z"].detach() * 200}
    expected = run(inputs, "reference", torch.float64)
    assert all(value.isfinite().all() for value in expected.values())
    assert_close(run(inputs, backend), expected, tolerance=1e-4)


def test_events_behind_a_huge_step_keep_their_digits(backend):
    # What decays them is lost where decays come from differences of cumulative sums.
    inputs = detached(**LARGER)
    inputs["delta"][:, 5] = 1e6
    inputs["x"][:, 5] = 1e-6
    expected = run(inputs, "reference", torch.float64)
    result = run(inputs, backend)
    assert_close({"y": result["y"][:, 6:]}, {"y": expected["y"][:, 6:]})
    assert_close({"x": result["x"][:, 6:]}, {"x": expected["x"][:, 6:]})


def test_growing_states_overflow_where_the_reference_does(backend):
    inputs = make_inputs(B=1, L=3, H=2, P=2, N=1)
    inputs["A"] = torch.tensor([1e3, 1.0])
    y = ssd_scan(**inputs, delta_softplus=True, backend=backend)
    expected = ssd_scan(**inputs, delta_softplus=True, backend="reference")
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y[:, :, 0].isfinite().any()


def test_only_the_last_state_may_be_used(backend):
    inputs, expected = make_inputs(**LARGER), make_inputs(**LARGER)
    for values, name in ((inputs, backend), (expected, "reference")):
        ssd_scan(**values, **ALWAYS, backend=name)[1].sum().backward()
    torch.testing.assert_close(inputs["x"].grad, expected["x"].grad, rtol=1e-4, atol=1e-5)


def test_inputs_without_gradient(backend):
    inputs = detached()
    assert not ssd_scan(**inputs, backend=backend).requires_grad
    A = inputs.pop("A").requires_grad_()
    ssd_scan(A=A, **inputs, backend=backend).sum().backward()
    assert A.grad.abs().sum() > 0


def test_inputs_are_not_written_to(backend):
    inputs = make_inputs(**LARGER)
    copies = {name: value.detach().clone() for name, value in inputs.items()}
    y, last = ssd_scan(**inputs, **ALWAYS, backend=backend)
    (y.sum() + last.sum()).backward()
    assert all(torch.equal(inputs[name], copies[name]) for name in inputs)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_a_wrong_shape_names_the_argument(name):
    inputs = make_inputs()
    wrong = torch.zeros(*inputs[name].shape, 1)
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        ssd_scan(**inputs | {name: wrong})


def test_wrong_dimensions_groups_and_kinds_of_number():
    inputs = make_inputs()
    with pytest.raises(InputError, match=r"^x must be \(B, L, H, P\), got \(2, 3\)"):
        ssd_scan(**inputs | {"x": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"^B has 3 groups, which must divide the 2 heads of x"):
        ssd_scan(**inputs | {"B": torch.zeros(2, 7, 3, 4)})
    with pytest.raises(InputError, match=r"^B has 0 groups"):
        ssd_scan(**inputs | {"B": torch.zeros(2, 7, 0, 4)})
    with pytest.raises(InputError, match=r"C must be real numbers on cpu, got torch\.int64"):
        ssd_scan(**inputs | {"C": torch.zeros(2, 7, 1, 4, dtype=torch.int64)})


@pytest.mark.parametrize("name", ["valid", "start"])
def test_flags_of_events_are_truth_values_of_each_event(name):
    inputs = make_inputs()
    with pytest.raises(InputError, match=rf"^{name} must be \(2, 7\), got \(2, 6\)"):
        ssd_scan(**inputs, **{name: torch.ones(2, 6, dtype=torch.bool)})
    with pytest.raises(InputError, match=rf"^{name} must be bool on cpu, got torch\.float32"):
        ssd_scan(**inputs, **{name: torch.ones(2, 7)})


@pytest.mark.parametrize(
    ("variable", "argument", "chosen"),
    [("", "auto", "chunked"), ("reference", "auto", "reference"), ("reference", "chunked", "chunked")],
)
def test_the_argument_comes_before_the_environment_and_that_before_auto(
    monkeypatch, variable, argument, chosen
):
    monkeypatch.setenv(SSD_BACKENDS.variable, variable)
    inputs = without(make_inputs(), "D", "z")
    y = ssd_scan(**inputs, backend=argument)
    # Only the reference has second derivatives.
    refusal = contextlib.nullcontext() if chosen == "reference" else pytest.raises(NotImplementedError)
    with refusal:
        torch.autograd.grad(y.sum(), inputs["x"], create_graph=True)


def test_an_unknown_backend_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv(SSD_BACKENDS.variable, "fast")
    with pytest.raises(InputError, match=r"SEQREC_SSD_BACKEND='fast' is unknown; known: auto, chunked"):
        ssd_scan(**make_inputs())


def test_torch_compile_traces_through_the_chunked_scan_once_for_all_lengths():
    def loss(**inputs):
        return ssd_scan(**inputs, delta_softplus=True, backend="chunked").square().sum()

    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=graphs, fullgraph=True, dynamic=True)
    for length in (70, 200, 130):
        compiled_inputs, inputs = make_inputs(L=length), make_inputs(L=length)
        compiled(**compiled_inputs).backward()
        loss(**inputs).backward()
        for name in inputs:
            torch.testing.assert_close(compiled_inputs[name].grad, inputs[name].grad)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("flags", [False, True])
def test_registration_of_the_chunked_scan_passes_opcheck(flags):
    inputs = make_inputs(L=70)
    start = torch.arange(70) % 30 == 4
    inputs["delta"] = F.softplus(inputs["delta"]).detach().requires_grad_()
    real = [inputs[name] for name in ("x", "delta", "A", "B", "C", "initial_state")]
    given = (*real, start.expand(len(inputs["x"]), -1) if flags else None)
    torch.library.opcheck(torch.ops.seqrec.ssd_chunked_fwd, given)
    y, last, spoilt, states = torch.ops.seqrec.ssd_chunked_fwd(
        *(None if v is None else v.detach() for v in given)
    )
    detached_real = [value.detach() for value in real[:5]]
    torch.library.opcheck(
        torch.ops.seqrec.ssd_chunked_bwd, (y, last, *detached_real, given[-1], spoilt, states)
    )
