"""Sessions of HRNN: where they are cut, and what events see of older ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqrec import EventTime, models
from seqrec.encoders import HRNN, hrnn
from seqrec.encoders.contract import check_causality, check_streaming
from seqrec.encoders.layers import recompute_blocks
from seqrec.errors import InputError
from seqrec.types import History

D, L = 8, 11
X = torch.randn(2, L, D, generator=torch.Generator().manual_seed(0))
# A session ends after 3 events of the first row, and after 2, 1 and 4 of the second.
STARTS = ([0, 3, 6, 9], [0, 2, 3, 7])


def history(starts: tuple[list[int], ...] = STARTS, *, gap: int = 50) -> History:
    """Events 10 apart within a session, and `gap` between two sessions."""
    steps = torch.full((2, L), 10)
    for row, own in enumerate(starts):
        steps[row, own] = gap
    return History(torch.ones(2, L, dtype=torch.int64), torch.tensor([L, L]), steps.cumsum(1))


def build(mixer: str = "mamba", **cut: int) -> HRNN:
    torch.manual_seed(1)
    encoder = HRNN(D, mixer=mixer, d_state=4, dropout=0.0, **cut)
    for name, weight in encoder.named_parameters():
        if name.endswith("norm.bias"):
            torch.nn.init.normal_(weight, std=0.3)
    return encoder


def session_by_session(encoder: HRNN, x: Tensor, starts: list[int]) -> Tensor:
    """The equations of the docstring for one row x (1, L, D), with whole passes over each session."""
    ends = [*starts[1:], x.shape[1]]
    encoded = [encoder.encoder_blocks(x[:, begin:end]) for begin, end in zip(starts, ends, strict=True)]
    summaries = [encoder.first_summary.view(1, 1, -1), *(h[:, -1:] for h in encoded[:-1])]
    contexts = encoder.user_blocks(torch.cat(summaries, 1))
    return torch.cat([encoder.decoder_blocks(h + contexts[:, m : m + 1]) for m, h in enumerate(encoded)], 1)


def with_gradients(encoder: HRNN, states: Tensor) -> list[Tensor]:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    return [states, *torch.autograd.grad((states * weights).sum(), list(encoder.parameters()))]


@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "gated_deltanet"])
def test_states_and_gradients_are_those_of_the_equations(mixer: str):
    encoder = build(mixer, session_gap=20)
    rows = [session_by_session(encoder, X[row : row + 1], starts) for row, starts in enumerate(STARTS)]
    expected = with_gradients(encoder, torch.cat(rows))
    for found, value in zip(with_gradients(encoder, encoder(X, history())), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


def test_sessions_of_as_many_events_are_those_of_gaps_in_the_same_places():
    by_events, by_gap = build(session_events=3), build(session_gap=20)
    events = history((STARTS[0], STARTS[0]))
    expected = with_gradients(by_gap, by_gap(X, events))
    for found, value in zip(with_gradients(by_events, by_events(X, events)), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


def test_a_session_ends_where_the_gap_is_longer():
    encoder = build(session_gap=50)
    whole = build(session_gap=10**6)(X, history(gap=50))
    assert torch.equal(encoder(X, history(gap=50)), whole)
    assert not torch.allclose(encoder(X, history(gap=51)), whole)


@pytest.mark.parametrize("cut", [{"session_events": 3}, {"session_gap": 20}], ids=str)
def test_older_sessions_are_seen_through_their_summaries_alone(cut: dict[str, int]):
    encoder = build(**cut)
    check_causality(encoder)
    other = X.clone()
    other[:, 1] = X[:, 1].flip(-1)
    events = history((STARTS[0], STARTS[0]))
    moved = (encoder(other, events) - encoder(X, events)).abs().amax((0, 2))
    assert (moved > 0).tolist() == [False, *[True] * (L - 1)]
    with torch.no_grad():
        encoder.user_blocks.norm.weight.zero_()
    moved = (encoder(other, events) - encoder(X, events)).abs().amax((0, 2))
    assert (moved > 0).tolist() == [False, True, True, *[False] * (L - 3)]


@pytest.mark.parametrize("cut", [{"session_events": 3}, {"session_events": 7}, {"session_gap": 20}], ids=str)
def test_pieces_that_are_recomputed_give_the_same_states_and_gradients(
    cut: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    encoder = build(**cut)
    expected = with_gradients(encoder, encoder(X, history()))
    monkeypatch.setattr(hrnn, "PIECE_EVENTS", 4)
    recompute_blocks(encoder, True)
    for found, value in zip(with_gradients(encoder, encoder(X, history())), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    check_streaming(encoder.eval(), [37, 1, 20], longest_piece=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"session_gap": 0}, "session_gap=0 must be at least 1"),
        ({"session_events": 0}, "session_events=0 must be at least 1"),
        ({"session_events": 5, "session_gap": 60}, "session_events=5 and session_gap=60 are two ways .*: give one"),
        ({"session_gap": 60}, "the model must read times: set time, .*HRNN without session_gap"),
    ],
)
def test_sessions_that_cannot_be_are_refused(arguments: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        models.HRNN(10, d_model=8, **arguments)


def test_a_gap_without_timestamps_is_refused_with_the_fix():
    encoder = build(session_gap=60).eval()
    without = History(torch.ones(2, L, dtype=torch.int64), torch.tensor([L, L]))
    for call in (
        lambda: encoder(X, without),
        lambda: encoder.step(X[:, 0], encoder.init_state(2, max_length=50)),
    ):
        with pytest.raises(InputError, match=r"session_gap=60 .* no timestamps: .* or cut by session_events instead"):
            call()


@torch.no_grad()
def test_a_models_stream_has_the_sessions_of_the_whole_history():
    torch.manual_seed(0)
    model = models.HRNN(10, d_model=8, session_gap=20, positions=False, time=EventTime()).eval()
    events = history()
    expected, state = model(events), model.init_state(2)
    assert events.timestamps is not None
    for t in range(L):
        states, state = model.step(events.item_ids[:, t], state, timestamps=events.timestamps[:, t])
        torch.testing.assert_close(states, expected[:, t], rtol=0, atol=1e-5)
