"""What a stream refuses, and what it makes of more than `max_length` events."""

from __future__ import annotations

import re

import pytest
import torch
from conformance import ARCHITECTURES, CAUSAL, Case, D, events
from torch import Tensor, nn

from seqrec.encoders import HSTU, GRU4Rec, MambaRec, SASRec, SequenceEncoder
from seqrec.encoders.contract import check_streaming, cut, piece_of
from seqrec.encoders.layers import MIXERS, CausalSelfAttention, MambaMixer, Times
from seqrec.encoders.layers import mamba as mamba_module
from seqrec.encoders.state import StateFormat
from seqrec.errors import InputError
from seqrec.types import History

ATTENTION = [case for case in ARCHITECTURES if case.name in ("SASRec", "MoEMaTrRec")]
OTHERS = [case for case in CAUSAL if case not in ATTENTION and case.name != "HSTU"]
STATE = MambaRec(D).init_state(2, max_length=5)
differs = pytest.raises(AssertionError, match=r"differs? by")


def one_by_one(encoder: SequenceEncoder, x: Tensor, history: History, max_length: int) -> Tensor:
    state, out = encoder.init_state(len(x), max_length=max_length), []
    one = torch.ones(len(x), dtype=torch.int64)
    for t, event in enumerate(x.unbind(1)):
        states, state = encoder.step(event, state, piece_of(history, t * one, one))
        out.append(states)
    return torch.stack(out, 1)


def see_newest(encoder: SequenceEncoder, window: int | None) -> None:
    """Give each attention of an encoder a window."""
    for layer in encoder.modules():
        if isinstance(layer, CausalSelfAttention):
            layer.window = window


@pytest.mark.parametrize("case", ATTENTION, ids=str)
@pytest.mark.parametrize("chunk", [256, 3])
@torch.no_grad()
def test_beyond_max_length_attention_is_that_of_a_sliding_window(
    case: Case, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("seqrec.encoders.layers.window.CHUNK_EVENTS", chunk)
    encoder, (x, history) = case.build().eval(), events([23, 17])
    see_newest(encoder, 5)
    expected = encoder(x, history)
    see_newest(encoder, None)
    # The states at padding are those of other times.
    streamed = one_by_one(encoder, x, history, 5)
    torch.testing.assert_close(streamed[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(streamed[1, :17], expected[1, :17], rtol=0, atol=1e-5)
    states, state = encoder.extend(x, history.lengths, encoder.init_state(2, max_length=5), history)
    torch.testing.assert_close(states[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(states[1, :17], expected[1, :17], rtol=0, atol=1e-5)
    next_event = piece_of(cut(x, history, slice(1, 2), 23)[1], torch.tensor([17]), torch.tensor([1]))
    later, _ = encoder.step(x[1:, 17], state.gather([1]), next_event)
    torch.testing.assert_close(later, expected[1:, 17], rtol=0, atol=1e-5)
    assert (encoder(x, history)[0] - expected[0])[5:].abs().max() > 1e-3


@pytest.mark.parametrize(
    "encoder",
    [
        SASRec(D, num_layers=1, num_heads=2),
        SASRec(D, num_layers=1, num_heads=2, rotary=True),
        HSTU(D, num_layers=1, num_heads=2, num_distances=4),
        HSTU(D, num_layers=1, layer_norm=False),
    ],
    ids=["SASRec", "SASRec-rotary", "HSTU", "HSTU-no-norm"],
)
@torch.no_grad()
def test_a_single_layer_of_attention_is_the_full_pass_over_the_newest_events(encoder: SequenceEncoder):
    encoder.eval()
    x, history = events([40])
    states = one_by_one(encoder, x, history, 6)
    for end in range(1, 41):
        newest = x[:, max(0, end - 6) : end]
        expected = encoder(newest, History(torch.ones(newest.shape[:2]).long(), torch.tensor([6])))[:, -1]
        torch.testing.assert_close(states[:, end - 1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", OTHERS, ids=str)
@torch.no_grad()
def test_beyond_max_length_recurrences_still_see_all_events(case: Case):
    encoder, (x, history) = case.build().eval(), events([40])
    expected = encoder(x, history)
    torch.testing.assert_close(one_by_one(encoder, x, history, 5), expected, rtol=0, atol=1e-5)
    assert history.timestamps is not None
    newest = encoder(x[:, -5:], History(history.item_ids[:, -5:], torch.tensor([5]), history.timestamps[:, -5:]))
    assert (newest[:, -1] - expected[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("mixer", list(MIXERS))
@pytest.mark.parametrize("d_conv", [1, 2])
def test_short_convolutions_keep_short_tails_or_none(mixer: str, d_conv: int):
    encoder = MambaRec(D, mixer=mixer, d_conv=d_conv).eval()
    check_streaming(encoder, [9, 2], longest_piece=4)
    state = encoder.init_state(2, max_length=5)
    assert state.tensors["0.inputs"].shape[1] == d_conv - 1
    form = StateFormat(encoder, state)
    assert form.from_bytes(form.to_bytes(state)).tensors["1.inputs"].shape == state.tensors["1.inputs"].shape


def test_an_encoder_without_a_state_says_so():
    class Plain(SequenceEncoder):
        def __init__(self, d_model: int) -> None:
            super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=True)
            self.linear = nn.Linear(d_model, d_model)

        def forward(self, x: Tensor, history: History) -> Tensor:
            return self.linear(x)

    with pytest.raises(InputError, match="Plain cannot be streamed; give it `zero_state` and `advance`"):
        Plain(D).init_state(1, max_length=5)
    with pytest.raises(InputError, match="Plain cannot be streamed; give it `advance`"):
        Plain(D).advance(torch.zeros(1, 1, D), None, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": -1}, "batch_size=-1 must be at least 0"),
        ({"max_length": 0}, "max_length=0 at least 1"),
        ({"dtype": torch.int64}, "dtype=torch.int64 must be one of real numbers"),
    ],
    ids=["batch_size", "max_length", "dtype"],
)
def test_a_state_of_nothing_is_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        GRU4Rec(D).init_state(**{"batch_size": 1, "max_length": 5, **arguments})


@pytest.mark.parametrize(
    ("x", "lengths", "message"),
    [
        (torch.zeros(2, D), None, "x must be (B, L, D), got (2, 16); use `step`"),
        (torch.zeros(3, 4, D), None, "x must have the state's 2 rows and width d_model=16, got (3, 4, 16)"),
        (torch.zeros(2, 4, 8), None, "x must have the state's 2 rows and width d_model=16, got (2, 4, 8)"),
        (torch.zeros(2, 4, D), torch.tensor([1]), "lengths must be (2,) int64, got (1,) torch.int64"),
        (torch.zeros(2, 4, D), torch.ones(2), "lengths must be (2,) int64, got (2,) torch.float32"),
        (torch.zeros(2, 4, D), torch.tensor([5, 1]), "lengths=[5, 1] must be between 0 and the 4 columns"),
        (torch.zeros(2, 4, D), torch.tensor([4, -1]), "lengths=[4, -1] must be between 0 and the 4 columns"),
    ],
    ids=["axes", "rows", "width", "lengths", "kind", "too-long", "negative"],
)
def test_events_that_do_not_fit_are_refused(x: Tensor, lengths: Tensor | None, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        MambaRec(D).eval().extend(x, lengths, STATE)


def test_one_event_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=re.escape("x must be (B, D), got (2, 1, 16); use `extend`")):
        MambaRec(D).eval().step(torch.zeros(2, 1, D), STATE)
    with pytest.raises(InputError, match="x must have the state's 2 rows"):
        MambaRec(D).eval().step(torch.zeros(1, D), STATE)


def test_a_lost_tail_of_the_convolution_is_found(monkeypatch: pytest.MonkeyPatch):
    convolve = mamba_module.convolve_further

    def forgetful(x: Tensor, weight: Tensor, bias: Tensor, valid: Tensor | None, inputs: Tensor, start: Tensor | None):
        return convolve(x, weight, bias, valid, torch.zeros_like(inputs), start)

    monkeypatch.setattr(mamba_module, "convolve_further", forgetful)
    with differs:
        check_streaming(Case("MambaRec", "mamba").build().eval(), [9], longest_piece=4)


@pytest.mark.parametrize(
    ("kind", "name", "case"),
    [
        (MambaMixer, "scan", Case("MambaRec", "mamba")),
        (CausalSelfAttention, "values", Case("SASRec")),
        (CausalSelfAttention, "num_events", Case("SASRec", rotary=True)),
        (CausalSelfAttention, "times", Case("SASRec", gaps=True)),
    ],
    ids=["scan", "values", "num_events", "times"],
)
def test_a_state_that_is_not_carried_on_is_found(kind: type, name: str, case: Case, monkeypatch: pytest.MonkeyPatch):
    advance = kind.advance

    def forgetful(self, x: Tensor, valid: Tensor | None, state: dict, *times: Times):
        out, later = advance(self, x, valid, state, *times)
        return out, {**later, name: torch.zeros_like(later[name])}

    monkeypatch.setattr(kind, "advance", forgetful)
    with differs:
        check_streaming(case.build().eval(), [9], longest_piece=4)
