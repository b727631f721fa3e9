"""The gated delta rule: chunks against the reference, both against another implementation, and what they promise."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import GATED_DELTA, without

from seqrec.errors import InputError
from seqrec.ops import chunks, gated_delta_rule
from seqrec.ops.gated_delta import chunked, gated_delta_step

OP = GATED_DELTA
SIZES = st.fixed_dictionaries(
    {"B": st.integers(0, 3), "L": st.integers(0, 100), "H": st.integers(1, 3), "K": st.integers(1, 9)}
    | {"V": st.integers(1, 9)}
)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_values_and_gradients_of_chunks_equal_the_float64_reference(data):
    names = data.draw(st.sets(st.sampled_from(OP.optional)))
    inputs = OP.make(**data.draw(SIZES), seed=data.draw(st.integers(0, 999)), flags=True)
    inputs = without(inputs, *set(OP.optional) - names)
    expected = OP.run(inputs, "reference", torch.float64)
    OP.assert_close(OP.run(inputs, "chunked"), expected)
    OP.assert_close(OP.run(inputs, "chunked", torch.float64), expected, 1e-12)


@pytest.mark.parametrize("at_once", [1, 2**30])
def test_chunks_may_be_computed_one_at_a_time_or_all_at_once(monkeypatch, at_once):
    monkeypatch.setattr(chunks, "CPU_NUMBERS", at_once)
    OP.assert_reference(OP.make(**OP.larger, flags=True), "chunked")


def test_sizes_may_be_0():
    for sizes in OP.edges:
        OP.assert_reference(OP.make(**{"B": 2, "L": 3, **sizes}, flags=True), "chunked")


@pytest.mark.parametrize("backend", OP.backends.names)
def test_results_and_gradients_equal_those_of_another_library(backend):
    """torch_recurrent_gated_delta_rule is transformers' own slow path of Qwen3-Next."""
    library = pytest.importorskip(
        "transformers.models.qwen3_next.modeling_qwen3_next",
        reason="transformers, whose slow path this is compared with, is no dependency of the tests",
    )
    inputs = without(OP.make(B=2, L=75, H=2, K=8, V=6), "valid", "start")
    expected = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y, last = OP(inputs, backend)
    # It scales queries, and keeps the state transposed.
    their_y, their_last = library.torch_recurrent_gated_delta_rule(
        *(expected["q"] * 8**0.5, expected["k"], expected["v"]),
        g=expected["log_decay"],
        beta=expected["beta"],
        initial_state=expected["initial_state"].mT,
        output_final_state=True,
    )
    torch.testing.assert_close(y, their_y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, their_last.mT, rtol=1e-5, atol=1e-5)
    for one, other in ((y, last), (their_y, their_last.mT)):
        (one.sin().sum() + other.sin().sum()).backward()
    for name, x in inputs.items():
        torch.testing.assert_close(x.grad, expected[name].grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("backend", OP.backends.names)
def test_a_key_finds_the_value_that_was_last_stored_under_it(backend):
    keys = torch.eye(3)[[0, 1, 0, 2, 1, 0]].view(1, 6, 1, 3)
    values = torch.arange(1.0, 7).view(1, 6, 1, 1)
    ones = torch.ones(1, 6, 1)
    y, last = gated_delta_rule(keys, keys, values, 0 * ones, ones, return_last_state=True, backend=backend)
    torch.testing.assert_close(y, values)
    torch.testing.assert_close(last.flatten(), torch.tensor([6.0, 5.0, 4.0]))


def test_repeated_keys_keep_their_digits():
    inputs = OP.detached(**OP.larger)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"])
    inputs["beta"] = torch.ones_like(inputs["beta"])
    inputs["log_decay"] = inputs["log_decay"] * 1e-3
    OP.assert_reference(inputs, "chunked")


@pytest.mark.parametrize("decay", [-1e30, -100.0, -float("inf")])
def test_what_is_forgotten_at_once_leaves_no_trace(decay):
    inputs = OP.detached(**OP.larger)
    inputs["log_decay"][:, 5::7] = decay
    OP.assert_reference(inputs, "chunked")


@pytest.mark.parametrize("backend", OP.backends.names)
def test_histories_packed_into_a_row_equal_histories_alone(backend):
    inputs = OP.make(**{**OP.larger, "B": 1})
    y, last = OP(inputs | {"start": OP.starts(*OP.begins[1:-1], batch=1)}, backend)
    for begin, end in itertools.pairwise(OP.begins):
        part = OP.cut(inputs, slice(begin, end))
        alone, last_alone = OP(part if begin == 0 else without(part, "initial_state"), backend)
        torch.testing.assert_close(y[:, begin:end], alone)
    torch.testing.assert_close(last, last_alone)


@pytest.mark.parametrize("backend", OP.backends.names)
def test_a_split_history_continues_from_its_state(backend):
    inputs = OP.make(**OP.larger, flags=True)
    y, last = OP(inputs, backend)
    first, state = OP(OP.cut(inputs, slice(None, 70)), backend)
    second, state = OP(OP.cut(inputs, slice(70, None)) | {"initial_state": state}, backend)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("backend", OP.backends.names)
def test_what_padding_contains_has_no_effect(backend):
    inputs = OP.make(**OP.larger)
    valid = torch.ones(2, OP.larger["L"], dtype=torch.bool)
    valid[0, 60:], valid[1, 3:9] = False, False
    clean = OP.run(inputs | {"valid": valid}, backend)
    dirty = {name: inputs[name].detach().clone() for name in OP.events}
    for x in dirty.values():
        x[~valid] = torch.nan
    result = OP.run(inputs | dirty | {"valid": valid}, backend)
    assert all(torch.equal(result[name], clean[name]) for name in clean)
    assert not clean["y"][~valid].any()
    alone = OP.cut(inputs, slice(None, 60))
    torch.testing.assert_close(clean["last"][0], OP(alone, backend)[1][0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", OP.backends.names)
def test_what_is_not_finite_stays_in_its_packed_history_and_head(backend, value):
    inputs = OP.make(**OP.larger) | {"start": OP.starts(10, 20, 70)}
    clean = OP.run(inputs, backend)
    for name in (*OP.events, "initial_state"):
        begin, at, end = (0, 0, 10) if name == "initial_state" else (10, 15, 20)
        dirty = inputs[name].detach().clone()
        dirty[(0, 1) if name == "initial_state" else (0, 15, 1)] = value
        result = OP.run(inputs | {name: dirty}, backend)
        assert not result["y"][0, at, 1].isfinite().any(), name
        for key in ("y", *OP.events):
            found = result[key].clone()
            found[0, at if key == "y" else begin : end, 1] = clean[key][0, at if key == "y" else begin : end, 1]
            assert torch.equal(found, clean[key]), (name, key)
        assert torch.equal(result["last"], clean["last"]), name


@pytest.mark.parametrize("last", [False, True])
def test_a_gradient_that_is_not_a_number_reaches_its_history_and_no_other(last):
    inputs, clean = (OP.make(**OP.larger) for _ in range(2))
    start = OP.starts(10, 20, 70)
    for values, factor in ((clean, 1.0), (inputs, torch.nan)):
        results = OP(values | {"start": start}, "chunked")
        gradients = [torch.ones_like(x) for x in results]
        gradients[last][(0,) if last else (0, 15)] *= factor
        torch.autograd.backward(results, gradients)
    history = slice(70, None) if last else slice(10, 20)
    for name in ("q", "k", "v", "beta"):
        result = inputs[name].grad
        assert result[0, history].isnan().all(), name
        result[0, history] = clean[name].grad[0, history]
        assert torch.equal(result, clean[name].grad), name
    assert torch.equal(inputs["initial_state"].grad, clean["initial_state"].grad)


def test_steps_equal_the_rule_over_a_history():
    inputs = OP.make(**OP.larger, dtype=torch.float64)
    expected, last = OP(inputs, "reference")
    state, outputs = inputs.pop("initial_state"), []
    for t in range(OP.larger["L"]):
        y, state = gated_delta_step(**OP.cut(inputs, t), state=state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("backend", OP.backends.names)
def test_half_precision_is_computed_in_float32_and_autocast_changes_nothing(backend):
    inputs = OP.make(**OP.larger, dtype=torch.bfloat16)
    y, last = OP(inputs, backend)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    wide = {name: x.detach().float() for name, x in inputs.items()}
    torch.testing.assert_close(y, OP(wide, backend)[0].bfloat16())
    expected = OP.run(wide, backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = OP.run(wide, backend)
        event = {name: x[:, 0] for name, x in inputs.items() if name in OP.events}
        y, state = gated_delta_step(**event, state=inputs["initial_state"])
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_only_the_reference_has_second_derivatives():
    inputs = OP.make(B=1, L=5, H=1, K=2, V=2, dtype=torch.float64)
    names, values = zip(*inputs.items(), strict=True)

    def rule(*values):
        return OP(dict(zip(names, values, strict=True)), "reference")

    assert torch.autograd.gradgradcheck(rule, values)
    y, _ = OP(inputs, "chunked")
    with pytest.raises(NotImplementedError, match="use backend='reference'"):
        torch.autograd.grad(y.sum(), inputs["q"], create_graph=True)


def test_registration_of_the_chunked_rule_passes_opcheck(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_EVENTS", 4)
    inputs = OP.make(L=6, flags=True)
    real = [inputs[name] for name in (*OP.events, "initial_state")]
    detached = [x.detach() for x in real]
    y, last, *kept = torch.ops.seqrec.gated_delta_chunked_fwd(*detached, inputs["start"])
    backward = (y, last, *detached[:-1], inputs["start"], *kept)
    # The tests that compile take many times as long.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.seqrec.gated_delta_chunked_fwd, (*real, inputs["start"]), test_utils=tests)
    torch.library.opcheck(torch.ops.seqrec.gated_delta_chunked_bwd, backward, test_utils=tests)


@pytest.mark.parametrize("name", ["k", "v", "log_decay", "beta", "initial_state"])
def test_a_wrong_shape_names_the_argument(name):
    inputs = OP.make()
    with pytest.raises(InputError, match=rf"^{name} must be \("):
        OP(inputs | {name: torch.zeros(*inputs[name].shape, 1)}, "auto")
    with pytest.raises(InputError, match=r"^q must be \(B, L, H, K\), got \(2, 3\)"):
        OP(inputs | {"q": torch.zeros(2, 3)}, "auto")
    with pytest.raises(InputError, match=rf"^{name} must be real numbers on cpu, got torch\.int64"):
        OP(inputs | {name: inputs[name].detach().long()}, "auto")


def test_the_backend_is_that_of_the_variable(monkeypatch):
    monkeypatch.setenv("SEQREC_GATED_DELTA_BACKEND", "fast")
    with pytest.raises(
        InputError, match="SEQREC_GATED_DELTA_BACKEND='fast' is unknown; known: auto, chunked, reference"
    ):
        OP(OP.make(), "auto")
