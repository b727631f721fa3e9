"""What every registered encoder must do as a stream. A new encoder is tested here without a line being added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conformance import CAUSAL, Case, D, events
from torch import Tensor

from seqrec.encoders import ENCODERS
from seqrec.encoders.contract import check_streaming, cut, piece_of, random_cuts, random_events, streamed_states
from seqrec.encoders.state import State, StateFormat
from seqrec.errors import InputError
from seqrec.types import History

every_architecture = pytest.mark.parametrize("case", CAUSAL, ids=str)
# Masks of real numbers take long.
SLOW = [case for case in CAUSAL if case.gaps and case.name in ("SASRec", "MoEMaTrRec")]
LONG = [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CAUSAL]
MAX_LENGTH = 12


def after(case: Case, lengths: list[int], dtype: torch.dtype = torch.float32) -> State:
    """The state behind some events."""
    encoder = case.build().eval().to(dtype)
    x, history = events(lengths)
    start = encoder.init_state(len(lengths), max_length=MAX_LENGTH)
    return encoder.extend(x.to(dtype), history.lengths, start, history)[1]


def further(rows: int, length: int = 1) -> tuple[Tensor, History]:
    """Random events that follow others."""
    x, history = random_events([length] * rows, D, seed=6)
    return x, replace(history, time_before=torch.full((rows,), -500))


def assert_equal(state: State, expected: State) -> None:
    assert state.encoder == expected.encoder
    assert list(state.tensors) == list(expected.tensors)
    for name, x in state.tensors.items():
        assert x.dtype == expected.tensors[name].dtype, name
        assert torch.equal(x, expected.tensors[name]), name


@every_architecture
@pytest.mark.parametrize("layer_norm", [True, False], ids=["norm", "no-norm"])
@pytest.mark.parametrize("lengths", [[1], [2, 1], [37, 1, 20]], ids=str)
def test_a_stream_is_the_full_pass_however_it_is_cut(case: Case, layer_norm: bool, lengths: list[int]):
    check_streaming(case.build(layer_norm=layer_norm, dropout=0.5).eval(), lengths, longest_piece=7)


@pytest.mark.parametrize("case", LONG, ids=str)
def test_a_long_stream_is_the_full_pass_however_it_is_cut(case: Case):
    check_streaming(case.build().eval(), [3000, 1, 1777], longest_piece=900, one_by_one=50)


@pytest.mark.slow
@every_architecture
def test_a_long_stream_is_the_full_pass_one_by_one(case: Case):
    check_streaming(case.build().eval(), [3000], longest_piece=900)


@every_architecture
@torch.no_grad()
def test_double_precision_leaves_rounding_alone_between_stream_and_full_pass(case: Case):
    encoder = case.build().eval().double()
    x, history = events([40, 7])
    x = x.double()
    start = encoder.init_state(2, max_length=40)
    states, _ = streamed_states(encoder, x, history, random_cuts(history.lengths, 6, seed=5), start)
    expected = encoder(x, history).where(history.valid.unsqueeze(-1), 0)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)


@every_architecture
def test_users_can_be_gathered_and_stacked_between_events(case: Case):
    encoder = case.build().eval()
    x, history = events([9, 3, 5])
    start = encoder.init_state(3, max_length=MAX_LENGTH)
    _, together = encoder.extend(x, history.lengths, start, history)
    alone = []
    for row, length in enumerate(history.lengths.tolist()):
        own, its_history = cut(x, history, slice(row, row + 1), length)
        alone.append(encoder.extend(own, None, encoder.init_state(1, max_length=MAX_LENGTH), its_history)[1])
    event, its_history = further(2)
    states, later = encoder.step(event[:, 0], together.gather([2, 0]), its_history)
    stacked_states, stacked_later = encoder.step(event[:, 0], State.stack([alone[2], alone[0]]), its_history)
    torch.testing.assert_close(stacked_states, states, rtol=0, atol=1e-5)
    for name, tensor in stacked_later.tensors.items():
        torch.testing.assert_close(tensor, later.tensors[name], rtol=0, atol=1e-5)


@every_architecture
def test_a_row_without_new_events_keeps_its_state(case: Case):
    encoder, before = case.build().eval(), after(case, [5, 3])
    x, history = further(2, 4)
    _, later = encoder.extend(x, torch.tensor([4, 0]), before, history)
    assert_equal(later.gather([1]), before.gather([1]))
    assert any(not torch.equal(x[0], before.tensors[name][0]) for name, x in later.tensors.items())
    for width, lengths in ((4, torch.tensor([0, 0])), (0, torch.tensor([0, 0])), (0, None)):
        states, unchanged = encoder.extend(torch.randn(2, width, D), lengths, before, history)
        assert states.shape == (2, width, D)
        assert_equal(unchanged, before)


@every_architecture
def test_a_state_is_not_written_to(case: Case):
    encoder, state = case.build().eval(), after(case, [5, 3])
    copy = State({name: x.clone() for name, x in state.tensors.items()}, state.encoder)
    (x, history), (one, its_history) = further(2, 20), further(2)
    encoder.step(one[:, 0], state, its_history)
    encoder.extend(x, torch.tensor([20, 1]), state, history)
    assert_equal(state, copy)


@every_architecture
def test_a_state_does_not_grow_and_needs_no_gradient(case: Case):
    encoder = case.build().eval()
    start = encoder.init_state(2, max_length=MAX_LENGTH)
    (x, history), (one, its_history) = further(2, 50), further(2)
    _, state = encoder.extend(x.requires_grad_(), torch.tensor([50, 20]), start, history)
    states, state = encoder.step(one[:, 0].requires_grad_(), state, its_history)
    assert not states.requires_grad
    for name, x in state.tensors.items():
        assert (x.shape, x.dtype) == (start.tensors[name].shape, start.tensors[name].dtype)
        assert not x.requires_grad
    assert state.row_bytes == start.row_bytes == sum(x[0].nbytes for x in state.tensors.values())


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bytes_bring_back_every_bit(case: Case, dtype: torch.dtype):
    state = after(case, [5, 3, 1], dtype)
    encoder = case.build().eval().to(dtype)
    form = StateFormat(encoder, encoder.init_state(1, max_length=MAX_LENGTH))
    assert_equal(form.from_bytes(form.to_bytes(state)), state)


@every_architecture
def test_types_of_a_state_survive_bfloat16_autocast(case: Case):
    encoder = case.build().eval()
    x, history = events([9, 3])
    start = encoder.init_state(2, max_length=MAX_LENGTH)
    expected, _ = encoder.extend(x, history.lengths, start, history)
    begins, counts = torch.tensor([8, 3]), torch.tensor([1, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        older, its_history = cut(x, history, slice(None), 8)
        states, state = encoder.extend(older, its_history.lengths, start, its_history)
        last, state = encoder.step(x[:, 8], state, piece_of(history, begins, counts))
    for name, tensor in state.tensors.items():
        assert tensor.dtype == start.tensors[name].dtype
    # As in the full pass: bfloat16 keeps 8 bits.
    for found, exact in ((states[0], expected[0, :8]), (last[0], expected[0, 8])):
        assert (found - exact).norm() / exact.norm() < 0.03


@every_architecture
def test_training_mode_is_refused(case: Case):
    encoder = case.build()
    state = encoder.init_state(1, max_length=MAX_LENGTH)
    with pytest.raises(InputError, match=r"no dropout and no gradients; call `.eval\(\)`"):
        encoder.step(torch.randn(1, D), state)
    with pytest.raises(InputError, match=r"no dropout and no gradients; call `.eval\(\)`"):
        encoder.extend(torch.randn(1, 2, D), None, state)


@every_architecture
def test_states_of_other_encoders_are_refused(case: Case):
    encoder = case.build().eval()
    others = [other.build() for other in CAUSAL if str(other) != str(case)]
    for other in [*others, ENCODERS[case.name](D, num_layers=3, **case.choices)]:
        state = other.init_state(1, max_length=MAX_LENGTH)
        with pytest.raises(InputError, match=f"state is of {type(other).__name__}-.*; start with `init_state`"):
            encoder.step(torch.randn(1, D), state)
