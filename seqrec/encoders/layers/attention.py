"""Causal self-attention. Shapes: B batch, L events, D width, H heads, W newest events that a stream sees."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers.gaps import GapTable, Times, needed
from seqrec.encoders.layers.positionwise import Linear
from seqrec.encoders.layers.residual import run_block
from seqrec.encoders.layers.streamed import Tensors
from seqrec.errors import InputError, check_at_least
from seqrec.ops.attention import attention, split_heads
from seqrec.ops.attention.reference import in_window
from seqrec.ops.attention.rotary import rotary_turns, rotate
from seqrec.ops.attention.step import AttentionStepProblem, attention_step
from seqrec.ops.dropout import check_share
from seqrec.ops.export import is_exporting
from seqrec.ops.linear import linear

# Events that attend together in a stream, or if gaps are read: the mask then has at most this times W + this elements,
# or this times L.
CHUNK_EVENTS = 256


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which each event attends to itself and to older ones.

    Histories are padded on the right, so with the causal rule alone no event sees padding. Memory grows with L, also
    with dropout; see `seqrec.ops.attention`. States at padded positions are finite and meaningless.

    With a `window`, each event attends to itself and to the `window - 1` events before it (sliding window attention,
    Longformer: The Long-Document Transformer, Beltagy et al. 2020, section 3.1): time grows with L, not with L L.

    A stream keeps keys and values of the newest W events, 2 W D numbers per row, and the number of events. W is the
    stream's `max_length`, or the window if that is smaller. Each event sees the W - 1 events before it, so its outputs
    are those of `forward` up to W events; with a window they are equal for any number of events.

    With `read_gaps`, each head has a number for each bucket of the time between two events, which is added to the score
    of the older one for the newer one: the temporal part of the relative attention bias of HSTU (Actions Speak Louder
    than Words, Zhai et al. 2024, equation 2), where a query has the time of the event after it; here it has its own.
    The backend is then always `torch.nn.functional.scaled_dot_product_attention`, with a mask of B H L L real numbers.
    Above 256 events, 256 queries at a time have one, and the backward pass computes it again, so that memory grows with
    L. A stream keeps the W times too.

    Args:
        d_model: Width D.
        num_heads: H, a divisor of D.
        dropout: Share of attention weights set to 0 in training.
        rotary: Whether queries and keys are rotated by their positions; see `seqrec.encoders.layers.rotate`.
            Scores then depend on distances between events, and the keys of a stream stay valid.
        window: Newest events that each event attends to, itself included; None is all.

    Raises:
        InputError: if `num_heads` does not divide `d_model`, heads are of odd width with `rotary`, dropout is not in
            [0, 1), or `window` is below 1.
    """

    turns: Tensor | None

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int,
        dropout: float = 0.0,
        rotary: bool = False,
        window: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, d_model=d_model)
        if window is not None:
            check_at_least(1, window=window)
        if num_heads < 1 or d_model % num_heads:
            divisors = [n for n in range(1, d_model + 1) if d_model % n == 0]
            raise InputError(f"num_heads={num_heads} must divide d_model={d_model}; try one of {divisors[:6]}")
        head_width = d_model // num_heads
        if rotary and head_width % 2:
            raise InputError(
                f"rotary=True needs heads of even width, got d_model={d_model} / num_heads={num_heads} = "
                f"{head_width}; try d_model={num_heads * (head_width + 1)}"
            )
        check_share(dropout)
        self.num_heads = num_heads
        self.dropout = dropout
        self.window = window
        self.in_projection = Linear(d_model, 3 * d_model)
        self.out_projection = Linear(d_model, d_model)
        self.register_buffer("turns", rotary_turns(head_width) if rotary else None, persistent=False)
        self.gaps: GapTable | None = None

    def read_gaps(self, ticks: int) -> None:
        """Let the time between two events change their score, by a number for each head; see `GapTable`."""
        self.gaps = GapTable(self.num_heads, ticks)

    @property
    def _dropped(self) -> float:
        """Share of attention weights that is set to 0 now."""
        return self.dropout if self.training else 0.0

    def forward(self, x: Tensor, valid: Tensor | None = None, times: Times | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Args:
            x: (B, L, D), padded on the right.
            valid: (B, L) bool, True at events, at least one per row: each event then attends to all events of its row,
                newer ones too, and not to padding. None is causal, and the only choice with `read_gaps`.
            times: For `read_gaps`.
        """
        query, key, value = self._heads(x, torch.arange(x.shape[1], device=x.device))
        if self.gaps is None:
            return self._merged(
                attention(
                    query,
                    key,
                    value,
                    causal=valid is None,
                    dropout=self._dropped,
                    window=self.window,
                    lengths=None if valid is None else valid.sum(1),
                )
            )
        assert valid is None
        moments, length = needed(times)[0], x.shape[1]
        if is_exporting() or length <= CHUNK_EVENTS:
            return self._merged(self._attend_to_older(query, key, value, moments))
        mixed = []
        for begin in range(0, length, CHUNK_EVENTS):
            end = min(begin + CHUNK_EVENTS, length)
            # Other keys are hidden from all of these queries.
            seen = slice(0 if self.window is None else max(0, begin - self.window + 1), end)
            part = query[:, :, begin:end], key[:, :, seen], value[:, :, seen], moments[:, seen]
            mixed.append(run_block(self._attend_to_older, *part, recompute=True))
        return self._merged(torch.cat(mixed, 2))

    def newest(self, x: Tensor, lengths: Tensor, times: Times | None = None) -> Tensor:
        """Return `forward` at each row's newest event (B, 1, D): one query per row instead of L.

        Args:
            x: (B, L, D), padded on the right.
            lengths: (B,) events per row, at least 1.
            times: For `read_gaps`.
        """
        positions, width = torch.arange(x.shape[1], device=x.device), x.shape[2]
        newest = (lengths - 1).unsqueeze(1)
        weights, biases = (torch.split(each, [width, 2 * width]) for each in self.in_projection.parameters())
        query = linear(x.gather(1, newest.unsqueeze(2).expand(-1, -1, width)), weights[0], biases[0])
        query = query.view(len(x), 1, self.num_heads, -1).transpose(1, 2)
        key, value = linear(x, weights[1], biases[1]).view(*x.shape[:2], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.turns is not None:
            query, key = rotate(query, newest.unsqueeze(1), self.turns), rotate(key, positions, self.turns)
        # torch's polarity: True is seen.
        seen = in_window(newest - positions, self.window)[:, None, None, :]
        if self.gaps is not None:
            moments = needed(times)[0]
            seen = _mask(seen, self.gaps, moments.gather(1, newest), moments).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=self._dropped)
        return self._merged(mixed)

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return an empty window; see `Streamed.zero_state`."""
        width = self.in_projection.in_features // self.num_heads
        max_length = max_length if self.window is None else min(max_length, self.window)
        shape = (batch_size, self.num_heads, max_length, width)
        state = {
            "keys": like.new_zeros(shape),
            "values": like.new_zeros(shape),
            "num_events": like.new_zeros(batch_size, dtype=torch.int64),
        }
        if self.gaps is not None:
            state["times"] = like.new_zeros(batch_size, max_length, dtype=torch.int64)
        return state

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        if x.shape[1] == 1 and valid is None and self.gaps is None and not self._dropped:
            inner, outer = self.in_projection, self.out_projection
            weights = inner.weight, inner.bias, outer.weight, outer.bias, self.turns
            kept = state["keys"], state["values"], state["num_events"]
            out, keys, values = attention_step(AttentionStepProblem._make((x[:, 0], *weights, *kept)))
            further = {"keys": keys, "values": values, "num_events": state["num_events"] + 1}
            return out.unsqueeze(1), cast("Tensors", further)
        moments = None if self.gaps is None else needed(*times)[0]
        length, window = x.shape[1], state["keys"].shape[2]
        positions = state["num_events"].unsqueeze(1) + torch.arange(length, device=x.device)
        query, key, value = self._heads(x, positions.unsqueeze(1))
        # Slots that are empty in every row are skipped. Python must wait for a GPU to find them, so a single event
        # that reads gaps, which should always cost the same, looks at all slots.
        seen = window if length == 1 else int(state["num_events"].max())
        mixed = []
        for begin in range(0, length, CHUNK_EVENTS):
            part = slice(begin, begin + CHUNK_EVENTS)
            out, state = _attend_further(
                query[:, :, part],
                key[:, :, part],
                value[:, :, part],
                None if valid is None else valid[:, part],
                state,
                empty=max(0, window - seen - begin),
                gaps=self.gaps,
                times=None if moments is None else moments[:, part],
                dropout=self._dropped,
            )
            mixed.append(out)
        return self._merged(torch.cat(mixed, 2)), state

    def _attend_to_older(self, query: Tensor, key: Tensor, value: Tensor, times: Tensor) -> Tensor:
        """Attend from the newest of some events, at times (B, L), to all of them."""
        event = torch.arange(key.shape[2], device=key.device)
        begin = key.shape[2] - query.shape[2]
        # torch's polarity: True is seen.
        seen = in_window(event[begin:].unsqueeze(1) - event, self.window)
        mask = _mask(seen, cast("GapTable", self.gaps), times[:, begin:], times).to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=self._dropped)

    def _heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, H, L, D / H) of events at `positions`, which broadcast to (B, H, L)."""
        batch, length, width = x.shape
        packed = self.in_projection(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = split_heads(packed)
        if self.turns is not None:
            query, key = (rotate(y, positions, self.turns) for y in (query, key))
        return query, key, value

    def _merged(self, mixed: Tensor) -> Tensor:
        """Return outputs (B, L, D) of heads (B, H, L, D / H)."""
        out: Tensor = self.out_projection(mixed.transpose(1, 2).flatten(2))
        return out


def _mask(seen: Tensor, gaps: GapTable, query_times: Tensor, key_times: Tensor) -> Tensor:
    """Return what is added to scores (B, H, Q, K): -inf if a key is not `seen`, which broadcasts to them, else the
    number of the time between queries (B, Q) and keys (B, K).
    """
    return gaps.of_pairs(query_times, key_times).masked_fill(~seen, -torch.inf)


def _attend_further(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    state: Tensors,
    empty: int,
    gaps: GapTable | None,
    times: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensors]:
    """Attend from a few new events to the window; return heads and the new state.

    The window is ordered from the oldest to the newest event, and the new events follow: slot i is W - i events older
    than the first new one. The first `empty` slots are known to be empty.
    """
    (window, length), num_events = (state["keys"].shape[2], query.shape[2]), state["num_events"]
    keys = torch.cat([state["keys"], key.to(state["keys"].dtype)], 2)
    values = torch.cat([state["values"], value.to(state["values"].dtype)], 2)
    slot = torch.arange(empty, window + length, device=query.device)
    event = torch.arange(length, device=query.device).unsqueeze(1)
    holds = slot >= window - num_events[:, None, None]
    # torch's polarity: True is seen.
    seen = (holds & (slot > event) & (slot <= event + window)).unsqueeze(1)
    count = num_events.new_full((), length) if valid is None else valid.sum(1)
    kept = {"keys": _newest(keys, window, valid), "values": _newest(values, window, valid)}
    kept["num_events"] = num_events + count
    if gaps is not None and times is not None:
        moments = torch.cat([state["times"], times], 1)
        seen = _mask(seen, gaps, times, moments[:, empty:]).to(query.dtype)
        kept["times"] = _newest(moments[:, None, :, None], window, valid)[:, 0, :, 0]
    keys, values = keys[:, :, empty:], values[:, :, empty:]
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, dropout_p=dropout), kept


def _newest(x: Tensor, window: int, valid: Tensor | None) -> Tensor:
    """Return the last W slots of x (B, H, W + L, P), which end at a row's newest event."""
    if valid is None:
        return x[:, :, x.shape[2] - window :]
    index = valid.sum(1, keepdim=True) + torch.arange(window, device=x.device)
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
