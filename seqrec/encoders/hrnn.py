"""HRNN. B batch, L events, D width, S slots for the sessions of a row."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers import ResidualStack, Tensors, Times, is_one, joined, make_mixer, run_block, separated
from seqrec.encoders.sequence_encoder import SequenceEncoder
from seqrec.errors import InputError, check_at_least
from seqrec.ops.export import is_exporting
from seqrec.types import NO_TIME, History

# Events of a session by default.
SESSION_EVENTS = 32
# With recomputed blocks, events that are computed at once, of all sessions or, with `session_gap`, of each row.
PIECE_EVENTS = 1024


class HRNN(SequenceEncoder):
    """Two recurrences, one over the events of a session and one over a user's sessions (Personalizing Session-based
    Recommendations with Hierarchical Recurrent Neural Networks, Quadrana et al. 2017, section 3, "HRNN All").

    For event t of session m, and the sessions 1 .. m - 1 that ended before it:

    - `h_t = encode(x_t, h)`, which begins anew in each session; `s_m = h_t` at the session's last event.
    - `c_m = user(s_m, c)` over the summaries of sessions; `c_0` is that of a learned vector in place of a summary.
    - `y_t = decode(h_t + c_{m-1}, y)`, which begins anew in each session.

    The state y_t depends on the events of its session up to t, and on all older ones through one vector, `c_{m-1}`.
    Causal: the present session counts up to the present event. In the paper the summary is y, so that sessions follow
    one another in computation. Here `encode` and `decode` are two halves of the blocks and `user` is between them, as
    the main network of H-Net is (Dynamic Chunking for End-to-End Hierarchical Sequence Modeling, Hwang et al. 2025,
    section 2.1), so that each pass is a scan over all events or sessions. All three are pre-norm residual blocks of a
    state-space mixer, where the paper has GRUs.

    With recomputed blocks, 1,024 events at a time have activations, or a session if that is longer; with `session_gap`,
    or from a state, 1,024 events of each row. Other events keep a few vectors of width D, whatever the mixer's inner
    width and states are.

    A stream keeps the state of each mixer, over events and over sessions, and the newest summary and c: 2 D numbers and
    the number of events. Neither that nor the cost of an event grows with the number of events. A step in which any row
    begins a session costs about twice as much as others, and on a GPU each step costs that. States are those of
    `forward` over all events, however many.

    Args:
        d_model: Width D.
        num_layers: Blocks over events, of which the first half, rounded up, are `encode`; and blocks over sessions.
        session_events: Events of a session; None is 32 without `session_gap`.
        session_gap: Longest time between two events of a session, in the unit of the log's timestamps; a longer one
            begins a new session. The model must read times (`time`). None cuts by `session_events`.
        mixer: "mamba", "mamba2" or "gated_deltanet".
        d_state: States of each inner channel of Mamba.
        d_conv: Events that Mamba's convolution sees.
        expand: Inner width of Mamba divided by D.
        dropout: Share of inputs, and of summaries of sessions, set to 0 in training.
        layer_norm: False omits every norm.

    Raises:
        InputError: if a size is below 1, or both `session_events` and `session_gap` are given.

    Example:
        >>> import torch
        >>> from seqrec import History
        >>> from seqrec.encoders import HRNN
        >>> encoder = HRNN(d_model=8, session_gap=1800).eval()
        >>> times = torch.tensor([[0, 60, 90, 9000]])
        >>> history = History(torch.tensor([[3, 7, 9, 2]]), torch.tensor([4]), timestamps=times)
        >>> encoder(torch.randn(1, 4, 8), history).shape
        torch.Size([1, 4, 8])
    """

    def __init__(
        self,
        d_model: int = 64,
        *,
        num_layers: int = 2,
        session_events: int | None = None,
        session_gap: int | None = None,
        mixer: Literal["mamba", "mamba2", "gated_deltanet"] = "mamba",
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        layer_norm: bool = True,
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        sizes = {"session_events": session_events, "session_gap": session_gap}
        check_at_least(1, **{name: size for name, size in sizes.items() if size is not None})
        if session_events is not None and session_gap is not None:
            raise InputError(
                f"session_events={session_events} and session_gap={session_gap} are two ways to cut sessions: give one"
            )
        self.session_events = session_events
        self.session_gap = session_gap
        self.mixer = mixer
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.reads_gaps = session_gap is not None

        def blocks(count: int, share: float) -> ResidualStack:
            mixers = [[make_mixer(mixer, d_model, d_state=d_state, d_conv=d_conv, expand=expand)] for _ in range(count)]
            return ResidualStack(mixers, d_model, dropout=share, layer_norm=layer_norm)

        self.encoder_blocks = blocks(num_layers - num_layers // 2, dropout)
        self.user_blocks = blocks(num_layers, dropout)
        self.decoder_blocks = blocks(num_layers // 2, 0.0)
        self.first_summary = nn.Parameter(torch.empty(d_model).normal_(std=d_model**-0.5))

    def times_of(self, events: History | None) -> tuple[Times, ...]:
        """Return the times of events and of those before them if `session_gap` cuts sessions, else none.

        Raises:
            InputError: if they are needed, but the events are not given or have no timestamps.
        """
        if self.session_gap is not None and (events is None or events.timestamps is None):
            raise InputError(
                f"session_gap={self.session_gap} cuts sessions by the time between events, but these have no "
                "timestamps: give History(.., timestamps=..), or cut by session_events instead"
            )
        return super().times_of(events)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D)."""
        if self.session_gap is not None or is_exporting():
            return self._advance(x, history.valid, None, self.zero_state(x.shape[0], 1, x), *self.times_of(history))[0]
        # Sessions of equal length are rows of their own.
        (batch, length, width), events = x.shape, self.session_events or SESSION_EVENTS
        sessions = -(-length // events)
        shape = (batch, sessions, events, width)
        h = _rows_in_pieces(
            self.encoder_blocks, F.pad(x, (0, 0, 0, sessions * events - length)).view(-1, events, width)
        )
        # The summaries of padding are left out, which without norms might not be finite.
        ended = torch.arange(sessions, device=x.device) * events <= history.lengths.unsqueeze(1)
        has_summary = ended & (torch.arange(sessions, device=x.device) > 0)
        before = h.view(shape)[:, :, -1].roll(1, 1)
        contexts = self.user_blocks(before.where(has_summary.unsqueeze(2), self.first_summary.to(h.dtype)))
        # The same name, so that the encoded events are freed.
        h = (h.view(shape) + contexts.unsqueeze(2)).view(-1, events, width)
        return _rows_in_pieces(self.decoder_blocks, h).view(batch, -1, width)[:, :length]

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event, for any `max_length`; see `Streamed.zero_state`."""
        stacks = {"encode": self.encoder_blocks, "user": self.user_blocks, "decode": self.decoder_blocks}
        parts = {name: stack.zero_state(batch_size, max_length, like) for name, stack in stacks.items()}
        vectors = {name: like.new_zeros(batch_size, self.d_model) for name in ("summary", "context")}
        parts["own"] = {**vectors, "num_events": like.new_zeros(batch_size, dtype=torch.int64)}
        return joined(parts)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        if valid is None and is_one(x):
            return self._advance_one(x, state, *times)
        return self._advance(x, valid, valid, state, *times)

    def _advance(
        self, x: Tensor, is_event: Tensor | None, valid: Tensor | None, state: Tensors, *times: Times
    ) -> tuple[Tensor, Tensors]:
        """Compute `advance`; only places where `is_event` (B, L) begin sessions, and `valid` is for the state after."""
        parts = separated(state)
        own, length = parts["own"], x.shape[1]
        start = self._starts(own["num_events"], length, *times)
        start = start if is_event is None else start & is_event
        h, parts["encode"] = _in_pieces(self.encoder_blocks, x, valid, parts["encode"], start)
        number = start.cumsum(1)
        contexts, parts["user"] = self._contexts(h, start, number, parts)
        count = torch.full_like(own["num_events"], length) if valid is None else valid.sum(1)
        newest = _picked(h, (count - 1).clamp_min(0).unsqueeze(1))[:, 0]
        parts["own"] = {
            "summary": torch.where(count.unsqueeze(1) > 0, newest, own["summary"]),
            "context": _picked(contexts, number[:, -1:])[:, 0],
            "num_events": own["num_events"] + count,
        }
        # The same name, so that the encoded events are freed.
        h = h + _picked(contexts, number)
        y, parts["decode"] = _in_pieces(self.decoder_blocks, h, valid, parts.get("decode", {}), start)
        return y, _as_before(parts, state)

    def _contexts(self, h: Tensor, start: Tensor, number: Tensor, parts: dict[str, Tensors]) -> tuple[Tensor, Tensors]:
        """Return c (B, 1 + S, D): that of the state, and those after each session that ends in h; and `user`'s state.

        A session ends before the event that begins the next one: `number` (B, L) of those events have begun so far.
        """
        own, length = parts["own"], h.shape[1]
        if is_exporting():
            slots = length
        elif self.session_gap is None:
            slots = -(-length // (self.session_events or SESSION_EVENTS))
        else:
            slots = max(1, int(number[:, -1].max()))
        # Places of the events that begin sessions, in order, and then of others.
        event = torch.arange(length, device=h.device)
        places = torch.where(start, event, event + length).argsort(1)[:, :slots]
        first = torch.where(own["num_events"].unsqueeze(1) == 0, self.first_summary, own["summary"]).to(h.dtype)
        summaries = torch.where(places.unsqueeze(2) == 0, first.unsqueeze(1), _picked(h, (places - 1).clamp_min(0)))
        # Slots of other events are the last; they change the state alone, which an exported program drops.
        valid = None if is_exporting() else torch.arange(slots, device=h.device) < number[:, -1:]
        contexts, state = self.user_blocks.advance(summaries, valid, parts["user"])
        return torch.cat([own["context"].to(contexts.dtype).unsqueeze(1), contexts], 1), state

    def _advance_one(self, x: Tensor, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute one further event x (B, 1, D) of each row."""
        parts = separated(state)
        own, encode, decode = parts["own"], parts["encode"], parts.get("decode", {})
        start, context = self._starts(own["num_events"], 1, *times), own["context"]
        # A GPU would be waited for, and a program to export has both ways.
        if is_exporting() or x.device.type != "cpu" or start.any():
            encode, decode = _zero_at(start, encode), _zero_at(start, decode)
            summary = torch.where(own["num_events"].unsqueeze(1) == 0, self.first_summary, own["summary"])
            further, user = self.user_blocks.advance(summary.unsqueeze(1), None, parts["user"])
            context = torch.where(start, further[:, 0], context)
            parts["user"] = {name: torch.where(_like(start, x), x, parts["user"][name]) for name, x in user.items()}
        h, parts["encode"] = self.encoder_blocks.advance(x, None, encode)
        y, parts["decode"] = self.decoder_blocks.advance(h + context.unsqueeze(1), None, decode)
        parts["own"] = {"summary": h[:, 0], "context": context, "num_events": own["num_events"] + 1}
        return y, _as_before(parts, state)

    def _starts(self, num_events: Tensor, length: int, *times: Times) -> Tensor:
        """Return whether each of `length` events (B, L), after `num_events` (B,) others, begins a session."""
        places = num_events.unsqueeze(1) + torch.arange(length, device=num_events.device)
        if self.session_gap is None:
            return places % (self.session_events or SESSION_EVENTS) == 0
        ((now, before),) = times
        return (places == 0) | (before == NO_TIME) | (now - before > self.session_gap)


def _rows_in_pieces(stack: ResidualStack, rows: Tensor) -> Tensor:
    """Compute `ResidualStack.forward` of rows (R, L, D); if blocks are recomputed, some rows at a time."""
    if not stack.recompute:
        out: Tensor = stack(rows)
        return out
    blocks, pieces = partial(stack, recompute=False), torch.split(rows, max(1, PIECE_EVENTS // rows.shape[1]))
    return torch.cat([run_block(blocks, piece, recompute=True) for piece in pieces])


def _in_pieces(
    stack: ResidualStack, x: Tensor, valid: Tensor | None, state: Tensors, start: Tensor
) -> tuple[Tensor, Tensors]:
    """Compute `ResidualStack.advance` of events (B, L, D), with a new state at each `start`; if blocks are recomputed,
    a piece at a time.
    """
    if not stack.recompute:
        return stack.advance(x, valid, state, None, start)
    advance, out = partial(stack.advance, recompute=False), []
    pieces, starts = torch.split(x, PIECE_EVENTS, 1), torch.split(start, PIECE_EVENTS, 1)
    masks = [None] * len(pieces) if valid is None else torch.split(valid, PIECE_EVENTS, 1)
    for piece, mask, begins in zip(pieces, masks, starts, strict=True):
        y, state = run_block(advance, piece, mask, state, None, begins, recompute=True)
        out.append(y)
    return torch.cat(out, 1), state


def _picked(x: Tensor, places: Tensor) -> Tensor:
    """Return the vectors of x (B, L, D) at places (B, S) of their rows."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    return F.embedding(places + rows, x.flatten(0, 1))


def _zero_at(start: Tensor, state: Tensors) -> Tensors:
    """Return a state that is 0 in the rows where start (B, 1) is True."""
    return {name: x.masked_fill(_like(start, x), 0) for name, x in state.items()}


def _like(start: Tensor, x: Tensor) -> Tensor:
    """Return start (B, 1) with as many axes as x."""
    return start.view(-1, *[1] * (x.dim() - 1))


def _as_before(parts: dict[str, Tensors], state: Tensors) -> Tensors:
    """Return the tensors of all parts in the order and dtypes of the state before."""
    after = joined(parts)
    return {name: after[name].to(x.dtype) for name, x in state.items()}
