"""One event of a mixer of Mamba or Mamba-2: the compiled step is the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec.encoders import MambaRec
from seqrec.encoders.layers import Mamba2Mixer, MambaMixer
from seqrec.errors import InputError
from seqrec.ops.mamba_step import Mamba2StepProblem, MambaStepProblem, mamba2_step, mamba_step
from seqrec.ops.steps import SlabRows

Draw = Callable[..., Tensor]


def mamba_problem(
    draw: Draw, batch: int, width: int = 16, channels: int = 32, states: int = 8, taps: int = 4, rank: int = 2
) -> MambaStepProblem:
    return MambaStepProblem(
        x=draw(batch, width) * 4,
        in_weight=draw(2 * channels, width),
        conv_weight=draw(channels, taps),
        conv_bias=draw(channels),
        scan_weight=draw(rank + 2 * states, channels),
        delta_weight=draw(channels, rank),
        delta_bias=draw(channels) * 4,
        A_log=draw(channels, states) * 4,
        D=draw(channels),
        out_weight=draw(width, channels),
        inputs=draw(batch, taps - 1, channels),
        state=draw(batch, channels, states) * 4,
    )


def mamba2_problem(
    draw: Draw, batch: int, width: int = 16, channels: int = 16, states: int = 8, taps: int = 4, rank: int = 2
) -> Mamba2StepProblem:
    """`rank` heads of `channels`."""
    inner, convolved = rank * channels, rank * channels + 2 * states
    return Mamba2StepProblem(
        x=draw(batch, width) * 4,
        in_weight=draw(inner + convolved + rank, width),
        conv_weight=draw(convolved, taps),
        conv_bias=draw(convolved),
        delta_bias=draw(rank) * 4,
        A_log=draw(rank) * 4,
        D=draw(rank),
        norm_weight=draw(inner) * 4,
        out_weight=draw(width, inner),
        inputs=draw(batch, taps - 1, convolved),
        state=draw(batch, rank, channels, states) * 4,
    )


Step = Callable[..., Any]
STEPS: dict[Step, Step] = {mamba_step: mamba_problem, mamba2_step: mamba2_problem}
both = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)


def problem(step: Step, batch: int, seed: int = 0, **sizes: int) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5

    return STEPS[step](draw, batch, **sizes)


@pytest.mark.usefixtures("cpp")
@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    batch=st.integers(0, 5),
    width=st.integers(1, 40),
    channels=st.integers(1, 40),
    states=st.integers(1, 40),
    taps=st.integers(1, 6),
    rank=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@both
def test_the_compiled_step_is_the_plain_one(step: Step, **sizes: int):
    case = problem(step, **sizes)
    before = [x.clone() for x in case]
    with torch.inference_mode():
        found, expected = step(case, backend="cpp"), step(case, backend="reference")
    for name, one, other in zip(("out", "inputs", "state"), found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert all(torch.equal(one, other) for one, other in zip(before, case, strict=True)), "an argument was written to"


@pytest.mark.usefixtures("cpp")
@torch.inference_mode()
@both
def test_the_bits_do_not_depend_on_threads_or_on_other_rows(step: Step):
    case = problem(step, 300, width=64, channels=128, states=32, rank=4)
    whole = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            whole[threads] = step(case, backend="cpp")
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        assert all(torch.equal(one, other) for one, other in zip(whole[1], whole[threads], strict=True))
    row = case._replace(x=case.x[7:8], inputs=case.inputs[7:8], state=case.state[7:8])
    alone = step(row, backend="cpp")
    assert all(torch.equal(one, other[7:8]) for one, other in zip(alone, whole[1], strict=True))


@pytest.mark.parametrize(
    "sizes", [{"batch": 3}, {"batch": 2, "width": 5, "channels": 19, "states": 21, "taps": 1, "rank": 17}], ids=len
)
@torch.inference_mode()
@both
def test_every_variant_that_runs_here_agrees(variant: None, step: Step, sizes: dict[str, int]):
    case = problem(step, **sizes)
    for one, other in zip(step(case, backend="cpp"), step(case, backend="reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("cpp")
@torch.inference_mode()
@both
def test_views_are_read_as_their_values(step: Step):
    case = problem(step, 3)
    wide = torch.zeros(3, 5, case.x.shape[1])
    wide[:, 2] = case.x
    state = case.state.transpose(1, 2).contiguous().transpose(1, 2)
    found = step(case._replace(x=wide[:, 2], state=state), backend="cpp")
    assert all(torch.equal(one, other) for one, other in zip(found, step(case, backend="cpp"), strict=True))


@pytest.mark.usefixtures("cpp")
@torch.inference_mode()
@both
def test_extreme_and_missing_numbers_come_out_as_in_plain_torch(step: Step):
    case = problem(step, 4)
    case.x[0] *= 1e4
    case.x[1] = float("nan")
    case.state[2, 0, 0] = float("inf")
    found, expected = step(case, backend="cpp"), step(case, backend="reference")
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        torch.testing.assert_close(one[3], other[3], rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "step", "fields"),
    [(MambaMixer, mamba_step, MambaStepProblem), (Mamba2Mixer, mamba2_step, Mamba2StepProblem)],
)
def test_gradients_autocast_and_other_dtypes_are_for_the_plain_step(kind: Any, step: Step, fields: Any):
    mixer = kind(8, d_state=4)
    state = mixer.zero_state(2, 1, torch.zeros(1))
    x = torch.randn(2, 1, 8, requires_grad=True)
    out, _ = mixer.advance(x, None, state)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.abs().sum() > 0
    with pytest.raises(InputError, match="has no gradients"):
        step(fields._make((x[:, 0], *mixer._weights(), state["inputs"], state["scan"])), backend="cpp")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert mixer.advance(x.detach(), None, state)[0].dtype == torch.bfloat16
    double = mixer.double()
    with torch.inference_mode():
        like = torch.zeros(1, dtype=torch.float64)
        assert double.advance(x.detach().double(), None, double.zero_state(2, 1, like))[0].dtype == torch.float64


@both
def test_gradients_of_the_plain_step_are_right(step: Step):
    case = problem(step, 2, width=3, channels=4, states=2, taps=3, rank=1)
    double = [x.double().requires_grad_() for x in case]
    # A is computed in float32, as in training, so its logarithm is checked on its own.
    place = case._fields.index("A_log")
    double[place] = double[place].detach()
    run = lambda *tensors: step(type(case)._make(tensors))  # noqa: E731
    assert torch.autograd.gradcheck(run, double, fast_mode=True)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
@torch.inference_mode()
def test_a_stream_takes_the_compiled_step(mixer: str, monkeypatch: pytest.MonkeyPatch):
    encoder = MambaRec(16, num_layers=2, mixer=mixer).eval()
    events, found = torch.randn(3, 5, 16), {}
    for backend in ("auto", "reference", "cpp"):
        monkeypatch.setenv(f"SEQREC_{mixer.upper()}_STEP_BACKEND", backend)
        states, state = [], encoder.init_state(3, max_length=5)
        for x in events.unbind(1):
            out, state = encoder.step(x, state)
            states.append(out)
        found[backend] = torch.stack(states, 1)
    assert torch.equal(found["auto"], found["cpp"])
    assert not torch.equal(found["auto"], found["reference"])
    torch.testing.assert_close(found["auto"], found["reference"], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@torch.inference_mode()
@both
def test_rows_of_a_slab_are_read_and_written_where_they_are(step: Step, backend: str):
    case = problem(step, 3)
    # A row of the slab holds both tensors, and other numbers around them.
    (inputs, state), size = (x[0].numel() for x in (case.inputs, case.state)), 2000
    slab = torch.randn(9, size)
    parts = slab[:, 5 : 5 + inputs].unflatten(1, case.inputs.shape[1:]), slab[:, 700 : 700 + state]
    parts = parts[0], parts[1].unflatten(1, case.state.shape[1:])
    before, after = torch.tensor([7, 0, 7]), torch.tensor([3, 8, 1])
    expected = step(case._replace(inputs=parts[0][before], state=parts[1][before]), backend=backend)
    untouched = slab.clone()
    rows = [SlabRows(part, before, after) for part in parts]
    out, *given = step(case._replace(inputs=rows[0], state=rows[1]), backend=backend)
    assert torch.equal(out, expected[0])
    assert given == rows
    for part, x, old in zip(parts, expected[1:], (untouched[:, 5 : 5 + inputs], untouched[:, 700:]), strict=True):
        assert torch.equal(part[after], x)
        old[after, : x[0].numel()] = x.flatten(1)
    assert torch.equal(slab, untouched), "numbers outside of the rows were written to"


@torch.inference_mode()
@both
def test_a_single_user_and_no_user_of_a_slab(step: Step):
    case = problem(step, 1)
    slabs = [torch.cat([x, torch.zeros_like(x)]) for x in (case.inputs, case.state)]
    for users in (0, 1):
        rows = [
            SlabRows(slab, torch.zeros(users, dtype=torch.int64), torch.ones(users, dtype=torch.int64))
            for slab in slabs
        ]
        out, *_ = step(case._replace(x=case.x[:users], inputs=rows[0], state=rows[1]))
        assert torch.equal(out, step(case)[0][:users])
    assert all(torch.equal(slab[1:], x) for slab, x in zip(slabs, step(case)[1:], strict=True))
