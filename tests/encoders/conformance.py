"""The encoder contract as functions, so that tests can also show that they catch an encoder that breaks it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqrec.encoders import ENCODERS, SequenceEncoder
from seqrec.layers import MIXERS
from seqrec.ops.backends import Backends
from seqrec.ops.selective_scan import SCAN_BACKENDS
from seqrec.ops.ssd import SSD_BACKENDS
from seqrec.streaming import State
from seqrec.types import History

B, L, D = 3, 9, 16


# The scan inside each mixer. One that is not here is tested with the backend that it takes by itself.
SCANS: dict[str, Backends] = {"mamba": SCAN_BACKENDS, "mamba2": SSD_BACKENDS}


@dataclass(frozen=True)
class Case:
    """One of the ways in which an encoder may compute.

    Attributes:
        name: Of the encoder.
        mixer: None where the encoder takes none.
        scan: Backend of the mixer's scan; None is "auto".
        rotary: Whether its attention has rotary positions; False where it has no attention.
    """

    name: str
    mixer: str | None = None
    scan: str | None = None
    rotary: bool = False

    def __str__(self) -> str:
        default = self.mixer == default_mixer(self.name)
        rotary = "rotary" if self.rotary else None
        parts = (self.name, None if default else self.mixer, rotary, self.scan)
        return "-".join(part for part in parts if part)

    @property
    def backends(self) -> Backends | None:
        """Those of the mixer's scan; None where there is none or it is not known."""
        return None if self.mixer is None else SCANS.get(self.mixer)

    def build(self, *, dropout: float = 0.0, layer_norm: bool = True) -> SequenceEncoder:
        torch.manual_seed(0)
        return ENCODERS[self.name](D, num_layers=2, dropout=dropout, layer_norm=layer_norm, **self.choices)

    @property
    def choices(self) -> dict[str, object]:
        """The arguments that make this way of computing."""
        mixer = {} if self.mixer is None else {"mixer": self.mixer}
        return {**mixer, "rotary": True} if self.rotary else mixer


def default_mixer(name: str) -> str | None:
    """The mixer that an encoder has unless told otherwise; None where it takes none."""
    parameter = inspect.signature(ENCODERS[name]).parameters.get("mixer")
    return None if parameter is None else parameter.default


def takes_rotary(name: str) -> bool:
    """Whether an encoder has attention that can have rotary positions."""
    return "rotary" in inspect.signature(ENCODERS[name]).parameters


# Each encoder by itself and, where it takes a mixer, with every one of them; then those that can be rotary.
ARCHITECTURES = [
    Case(name, mixer) for name in ENCODERS for mixer in (MIXERS if default_mixer(name) else [None])
] + [Case(name, default_mixer(name), rotary=True) for name in ENCODERS if takes_rotary(name)]
# The same, with each backend of the mixer's scan too.
CASES = [
    replace(case, scan=scan)
    for case in ARCHITECTURES
    for scan in (None, *(case.backends.names if case.backends and not case.rotary else ()))
]


def events(lengths: list[int], seed: int = 1) -> tuple[Tensor, History]:
    """Random embedded events and their history, padded on the right to the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest, rows = max(lengths), len(lengths)
    item_ids = torch.randint(1, 50, (rows, longest), generator=generator)
    timestamps = torch.randint(0, 1000, (rows, longest), generator=generator).cumsum(1)
    counts = torch.tensor(lengths)
    valid = torch.arange(longest) < counts.unsqueeze(1)
    x = torch.randn(rows, longest, D, generator=generator)
    return x, History(item_ids * valid, counts, timestamps * valid)


def changed_in_turn(x: Tensor, history: History) -> tuple[Tensor, History]:
    """One history as L rows; in row t event t is replaced: its vector, item and time."""
    length = x.shape[1]
    here = torch.eye(length, dtype=torch.bool)
    other = torch.randn(length, length, x.shape[2], generator=torch.Generator().manual_seed(2))
    item_ids = torch.where(here, history.item_ids + 1, history.item_ids)
    timestamps = torch.where(here, history.timestamps + 1, history.timestamps)
    changed = History(item_ids, history.lengths.expand(length), timestamps)
    return torch.where(here.unsqueeze(-1), other, x), changed


def cut(x: Tensor, history: History, rows: slice, length: int) -> tuple[Tensor, History]:
    """The oldest `length` events of some rows."""
    item_ids, timestamps = history.item_ids[rows, :length], history.timestamps[rows, :length]
    return x[rows, :length], History(item_ids, history.lengths[rows].clamp_max(length), timestamps)


@torch.no_grad()
def check_causality(encoder: SequenceEncoder) -> None:
    """Change each event in turn: only its state and newer ones may move, and all of them must."""
    x, history = events([L])
    moved = (encoder(*changed_in_turn(x, history)) - encoder(x, history)).abs().amax(-1)
    for t in range(L):
        for s in range(t):
            assert moved[t, s] <= 1e-6, f"the state of event {s} sees the future event {t}"
    for t in range(L):
        for s in range(t, L):
            assert moved[t, s] > 0, f"the state of event {s} does not depend on event {t}"


@torch.no_grad()
def check_padding(encoder: SequenceEncoder) -> None:
    """Each row alone and unpadded has the states that it has in a batch, whatever stands behind its end."""
    lengths = [L, 1, 4]
    x, history = events(lengths)
    filling = 100 * torch.randn(len(lengths), 7, D, generator=torch.Generator().manual_seed(3))
    nothing = torch.zeros(len(lengths), 7, dtype=torch.int64)
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
    """Numbers of events (B,) that each row takes at a time, 0..longest, until all rows are at their ends."""
    generator, left = torch.Generator().manual_seed(seed), lengths.clone()
    while left.any():
        taken = torch.randint(0, longest + 1, left.shape, generator=generator).minimum(left)
        left -= taken
        yield taken


def streamed_states(
    encoder: SequenceEncoder, x: Tensor, cuts: Iterable[Tensor], state: State
) -> tuple[Tensor, State]:
    """States (B, L, D), 0 at padding, of events that come in pieces, each padded with what must not matter."""
    out, done = torch.zeros_like(x), torch.zeros(len(x), dtype=torch.int64)
    for taken in cuts:
        piece = torch.full((len(x), int(taken.max()), x.shape[2]), 100.0, dtype=x.dtype)
        for row, (begin, count) in enumerate(zip(done.tolist(), taken.tolist(), strict=True)):
            piece[row, :count] = x[row, begin : begin + count]
        states, state = encoder.extend(piece, taken, state)
        for row, (begin, count) in enumerate(zip(done.tolist(), taken.tolist(), strict=True)):
            out[row, begin : begin + count] = states[row, :count]
        done += taken
    return out, state


@torch.no_grad()
def check_streaming(
    encoder: SequenceEncoder, lengths: list[int], longest_piece: int, one_by_one: int | None = None
) -> None:
    """Events one by one, all at once and in random pieces have the states of the full pass, to 1e-5.

    Args:
        encoder: In evaluation mode.
        lengths: Events of each row, the longest first.
        longest_piece: Events that a random piece has at most.
        one_by_one: Newest events of the first row that come one by one; None is all.
    """
    x, history = events(lengths)
    valid = history.valid.unsqueeze(-1)
    expected = encoder(x, history).where(valid, 0)
    start = encoder.init_state(len(lengths), max_length=max(lengths))
    once, _ = encoder.extend(x, history.lengths, start)
    error = (once.where(valid, 0) - expected).abs().max()
    assert error <= 1e-5, f"all events at once: the states differ by {error}"
    cuts = random_cuts(history.lengths, longest_piece, seed=4)
    error = (streamed_states(encoder, x, cuts, start)[0] - expected).abs().max()
    assert error <= 1e-5, f"random pieces: the states differ by {error}"
    begin = 0 if one_by_one is None else lengths[0] - one_by_one
    _, state = encoder.extend(x[:1, :begin], None, start.gather([0]))
    for t in range(begin, lengths[0]):
        states, state = encoder.step(x[:1, t], state)
        error = (states - expected[:1, t]).abs().max()
        assert error <= 1e-5, f"one by one: the state of event {t} differs by {error}"
