"""One event of an attention layer: the compiled step is the plain one, which is the layer's last event."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.encoders import MambaRec, Samba, SASRec, SequenceEncoder
from seqrec.encoders.layers import CausalSelfAttention, rotary_turns
from seqrec.errors import InputError
from seqrec.ops.attention.step import AttentionStepProblem, attention_step


def problem(
    batch: int, heads: int, half: int, window: int, *, rotary: bool, seed: int = 0, events: int = 8
) -> AttentionStepProblem:
    """Random numbers; half is P / 2."""
    generator = torch.Generator().manual_seed(seed)
    width, state = 2 * heads * half, (batch, heads, window, 2 * half)
    shapes = [(batch, width), (3 * width, width), (3 * width,), (width, width), (width,)]
    x, *weights = (torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes)
    num_events = torch.randint(0, events + 1, (batch,), generator=generator)
    holds = torch.arange(window) >= window - num_events[:, None, None]
    # What is in an empty slot must not matter.
    kept = (torch.randn(state, generator=generator).where(holds.unsqueeze(3), torch.nan) for _ in range(2))
    return AttentionStepProblem._make(
        (x * 4, *weights, rotary_turns(2 * half) if rotary else None, *(y.nan_to_num(1e4) for y in kept), num_events)
    )


@pytest.mark.usefixtures("cpp")
@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    batch=st.integers(0, 5),
    heads=st.integers(1, 4),
    half=st.integers(1, 20),
    window=st.integers(1, 40),
    rotary=st.booleans(),
    seed=st.integers(0, 99),
    events=st.sampled_from([0, 1, 8, 60, 3_000_000_000]),
)
def test_the_compiled_step_is_the_plain_one(**sizes: int):
    case = problem(**sizes)  # type: ignore[arg-type]
    before = [None if x is None else x.clone() for x in case]
    with torch.inference_mode():
        found, expected = attention_step(case, backend="cpp"), attention_step(case, backend="reference")
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, torch.Tensor)
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    for x, y in zip(before, case, strict=True):
        assert y is None or torch.equal(y, x), "an argument was written to"


@pytest.mark.usefixtures("cpp")
@torch.inference_mode()
def test_the_bits_do_not_depend_on_threads_or_on_other_rows():
    case, before, whole = problem(300, 2, 16, 64, rotary=True), torch.get_num_threads(), {}
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            whole[threads] = attention_step(case, backend="cpp")[0]
    finally:
        torch.set_num_threads(before)
    row = slice(17, 18)
    alone = case._replace(x=case.x[row], keys=case.keys[row], values=case.values[row], num_events=case.num_events[row])
    assert torch.equal(whole[1], whole[3])
    assert torch.equal(whole[1][row], attention_step(alone, backend="cpp")[0])


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("rotary", [True, False])
@torch.inference_mode()
def test_steps_are_the_layer_over_all_events(backend: str, rotary: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEQREC_ATTENTION_STEP_BACKEND", backend)
    torch.manual_seed(0)
    layer, x = CausalSelfAttention(12, num_heads=2, rotary=rotary, window=5).eval(), torch.randn(3, 17, 12)
    state, found = layer.zero_state(3, 100, x), []
    for event in x.split(1, dim=1):
        out, state = layer.advance(event, None, state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), layer(x), rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("cpp")
def test_a_step_that_wants_gradients_is_not_compiled():
    case = problem(2, 1, 4, 3, rotary=True)
    case.x.requires_grad_()
    with pytest.raises(InputError, match="gradients"):
        attention_step(case, backend="cpp")
    out = attention_step(case)[0]
    assert isinstance(out, torch.Tensor)
    out.sum().backward()
    assert case.x.grad is not None
    assert case.x.grad.isfinite().all()


@pytest.mark.parametrize(
    "encoder",
    [MambaRec, lambda width: MambaRec(width, mixer="mamba2"), SASRec, Samba],
    ids=["mamba", "mamba2", "SASRec", "Samba"],
)
def test_a_state_in_another_dtype_than_the_weights_is_read_as_such(
    encoder: Callable[[int], SequenceEncoder], monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    model, x, found = encoder(16).eval(), torch.randn(4, 2, 16), []
    for backend in ("auto", "reference"):
        for layer in ("MAMBA", "MAMBA2", "ATTENTION"):
            monkeypatch.setenv(f"SEQREC_{layer}_STEP_BACKEND", backend)
        state = model.init_state(2, max_length=5, dtype=torch.bfloat16)
        for event in x:
            out, state = model.step(event, state)
        found.append(out)
    assert torch.equal(*found)
