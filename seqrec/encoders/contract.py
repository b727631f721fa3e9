"""Checks that every sequence encoder must pass, also those that users write.

B rows, L events, D width. A failed check raises an AssertionError that describes the fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from seqrec.encoders import SequenceEncoder
from seqrec.encoders.layers import newest_events
from seqrec.encoders.state import State
from seqrec.types import NO_TIME, History

# Events of the histories that are changed one event at a time.
LENGTH = 9


def check_encoder(encoder: SequenceEncoder) -> None:
    """Check that an encoder keeps the contract of `SequenceEncoder`; streaming only if it defines `zero_state`.

    A bidirectional encoder must see newer events, and is not streamed.

    Args:
        encoder: In training or evaluation mode, which is restored. Its weights are not changed.

    Raises:
        AssertionError: if the encoder breaks the contract; the message names the part and the event.

    Example:
        >>> from seqrec import check_encoder
        >>> from seqrec.encoders import GRU4Rec
        >>> check_encoder(GRU4Rec(d_model=8))
    """
    was_training = encoder.training
    try:
        encoder.eval()
        check_shapes(encoder)
        check_rows(encoder)
        check_causality(encoder)
        check_padding(encoder)
        check_gradients(encoder)
        if encoder.can_stream:
            check_streaming(encoder, [37, 1, 20], longest_piece=7)
    finally:
        encoder.train(was_training)


@torch.no_grad()
def check_shapes(encoder: SequenceEncoder) -> None:
    """Check that states have the shape, dtype and device of the events, are finite, and repeat in evaluation mode."""
    x, history = random_events([LENGTH, 1, 4], encoder.d_model)
    states = encoder(x, history)
    for name in ("shape", "dtype", "device"):
        found, expected = getattr(states, name), getattr(x, name)
        assert found == expected, f"{name} of the states is {found}, that of the events {expected}"
    assert states.isfinite().all(), "states are not finite"
    assert torch.equal(encoder(x, history), states), "states differ when they are computed again"
    difference = (encoder.newest(x, history) - newest_events(states, history.lengths)).abs().max()
    assert difference <= 1e-5, f"`newest` differs by {difference} from the states of the newest events"


@torch.no_grad()
def check_rows(encoder: SequenceEncoder) -> None:
    """Check that the states of other rows stay the same if one row of a batch changes."""
    x, history = random_events([LENGTH, LENGTH], encoder.d_model)
    before = encoder(x, history)[1]
    x[0] += 1
    difference = (encoder(x, history)[1] - before).abs().max()
    assert difference < 1e-6, f"a row's states change by {difference} with another row of the batch"


def check_gradients(encoder: SequenceEncoder) -> None:
    """Check that every parameter gets a finite gradient that is not zero everywhere."""
    x, history = random_events([LENGTH] * 3, encoder.d_model)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    gradients = torch.autograd.grad((encoder(x, history) * weights).sum(), parameters, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        assert gradient is not None, f"{name} gets no gradient"
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
        assert gradient.count_nonzero() > 0, f"the gradient of {name} is zero"


def random_events(lengths: list[int], d_model: int, *, seed: int = 1) -> tuple[Tensor, History]:
    """Draw random embedded events (B, L, D) and their history, of so many events per row, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    longest, rows = max(lengths), len(lengths)
    item_ids = torch.randint(1, 50, (rows, longest), generator=generator)
    timestamps = torch.randint(0, 1000, (rows, longest), generator=generator).cumsum(1)
    counts = torch.tensor(lengths)
    valid = torch.arange(longest) < counts.unsqueeze(1)
    x = torch.randn(rows, longest, d_model, generator=generator)
    return x, History(item_ids * valid, counts, timestamps * valid)


def changed_in_turn(x: Tensor, history: History) -> tuple[Tensor, History]:
    """Repeat one history L times; in row t, replace event t: its vector, item and time."""
    length = x.shape[1]
    assert history.timestamps is not None
    here = torch.eye(length, dtype=torch.bool)
    other = torch.randn(length, length, x.shape[2], generator=torch.Generator().manual_seed(2))
    item_ids = torch.where(here, history.item_ids + 1, history.item_ids)
    timestamps = torch.where(here, history.timestamps + 1, history.timestamps)
    changed = History(item_ids, history.lengths.expand(length), timestamps)
    return torch.where(here.unsqueeze(-1), other, x), changed


def cut(x: Tensor, history: History, rows: slice, length: int) -> tuple[Tensor, History]:
    """Return the oldest `length` events of some rows."""
    assert history.timestamps is not None
    item_ids, timestamps = history.item_ids[rows, :length], history.timestamps[rows, :length]
    return x[rows, :length], History(item_ids, history.lengths[rows].clamp_max(length), timestamps)


@torch.no_grad()
def check_causality(encoder: SequenceEncoder) -> None:
    """Check that a change of an event changes its state and all newer ones, and no other; if bidirectional, all."""
    x, history = random_events([LENGTH], encoder.d_model)
    moved = (encoder(*changed_in_turn(x, history)) - encoder(x, history)).abs().amax(-1)
    for t in range(0 if encoder.bidirectional else LENGTH):
        for s in range(t):
            assert moved[t, s] <= 1e-6, f"the state of event {s} sees the future event {t}"
    for t in range(LENGTH):
        for s in range(0 if encoder.bidirectional else t, LENGTH):
            assert moved[t, s] > 0, f"the state of event {s} does not depend on event {t}"


@torch.no_grad()
def check_padding(encoder: SequenceEncoder) -> None:
    """Check that a row has the same states alone and unpadded as in a batch, whatever its padding contains."""
    lengths = [LENGTH, 1, 4]
    x, history = random_events(lengths, encoder.d_model)
    filling = 100 * torch.randn(len(lengths), 7, encoder.d_model, generator=torch.Generator().manual_seed(3))
    nothing = torch.zeros(len(lengths), 7, dtype=torch.int64)
    assert history.timestamps is not None
    item_ids = torch.cat([history.item_ids, nothing], 1)
    timestamps = torch.cat([history.timestamps, nothing], 1)
    padded = encoder(torch.cat([x, filling], 1), History(item_ids, history.lengths, timestamps))
    assert padded.isfinite().all(), "the states at padding are not finite"
    for states in (encoder(x, history), padded):
        for row, length in enumerate(lengths):
            alone = encoder(*cut(x, history, slice(row, row + 1), length))[0]
            difference = (states[row, :length] - alone).abs().max()
            assert difference < 1e-5, f"padding changes the states of row {row}"


def random_cuts(lengths: Tensor, longest: int, seed: int) -> Iterator[Tensor]:
    """Yield random numbers of events (B,) that rows take at a time, 0..longest, until all rows have ended."""
    generator, left = torch.Generator().manual_seed(seed), lengths.clone()
    while left.any():
        taken = torch.randint(0, longest + 1, left.shape, generator=generator).minimum(left)
        left -= taken
        yield taken


def piece_of(history: History, begins: Tensor, counts: Tensor) -> History:
    """Return each row's `counts` (B,) events from place `begins` (B,) on, with the time of the event before them."""
    assert history.timestamps is not None
    steps = torch.arange(int(counts.max()))
    places = (begins.unsqueeze(1) + steps).clamp_max(history.item_ids.shape[1] - 1)
    valid = steps < counts.unsqueeze(1)
    times = torch.cat([torch.full((len(counts), 1), NO_TIME), history.timestamps], 1)
    return History(
        history.item_ids.gather(1, places) * valid,
        counts,
        history.timestamps.gather(1, places) * valid,
        times.gather(1, begins.unsqueeze(1)).squeeze(1),
    )


def streamed_states(
    encoder: SequenceEncoder, x: Tensor, history: History, cuts: Iterable[Tensor], state: State
) -> tuple[Tensor, State]:
    """Return states (B, L, D), 0 at padding, of events in pieces, with padding that must have no effect."""
    out, done = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.int64)
    for taken in cuts:
        piece = torch.full((len(x), int(taken.max()), x.shape[2]), 100.0, dtype=x.dtype)
        for row, (begin, count) in enumerate(zip(done.tolist(), taken.tolist(), strict=True)):
            piece[row, :count] = x[row, begin : begin + count]
        states, state = encoder.extend(piece, taken, state, piece_of(history, done, taken))
        for row, (begin, count) in enumerate(zip(done.tolist(), taken.tolist(), strict=True)):
            out[row, begin : begin + count] = states[row, :count]
        done += taken
    return out, state


@torch.no_grad()
def check_streaming(
    encoder: SequenceEncoder, lengths: list[int], longest_piece: int, one_by_one: int | None = None
) -> None:
    """Check that events one by one, all at once and in random pieces have the states of the full pass, to 1e-5.

    `lengths` are events per row, the longest first; `one_by_one` is the number of newest events of the first row that
    are streamed one by one, None for all.
    """
    x, history = random_events(lengths, encoder.d_model)
    valid = history.valid.unsqueeze(-1)
    expected = encoder(x, history).where(valid, 0)
    start = encoder.init_state(len(lengths), max_length=max(lengths))
    once, _ = encoder.extend(x, history.lengths, start, history)
    error = (once.where(valid, 0) - expected).abs().max()
    assert error <= 1e-5, f"all events at once: the states differ by {error}"
    cuts = random_cuts(history.lengths, longest_piece, seed=4)
    error = (streamed_states(encoder, x, history, cuts, start)[0] - expected).abs().max()
    assert error <= 1e-5, f"random pieces: the states differ by {error}"
    begin = 0 if one_by_one is None else lengths[0] - one_by_one
    row, one = cut(x, history, slice(1), lengths[0])[1], torch.ones(1, dtype=torch.int64)
    _, state = encoder.extend(x[:1, :begin], None, start.gather([0]), piece_of(row, 0 * one, begin * one))
    for t in range(begin, lengths[0]):
        states, state = encoder.step(x[:1, t], state, piece_of(row, t * one, one))
        error = (states - expected[:1, t]).abs().max()
        assert error <= 1e-5, f"one by one: the state of event {t} differs by {error}"
