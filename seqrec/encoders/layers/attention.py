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
from seqrec.encoders.layers.window import CHUNK_EVENTS, Slots, attend_further, empty_window
from seqrec.errors import InputError, check_at_least
from seqrec.ops.attention import attention, split_heads
from seqrec.ops.attention.reference import in_window
from seqrec.ops.attention.rotary import rotary_turns, rotate
from seqrec.ops.attention.step import AttentionStepProblem, attention_step
from seqrec.ops.dropout import check_share
from seqrec.ops.export import is_exporting
from seqrec.ops.linear import linear


def width_of_heads(d_model: int, num_heads: int) -> int:
    """Return the width of each head.

    Raises:
        InputError: if `num_heads` does not divide `d_model`.
    """
    check_at_least(1, d_model=d_model)
    if num_heads < 1 or d_model % num_heads:
        divisors = [n for n in range(1, d_model + 1) if d_model % n == 0]
        raise InputError(f"num_heads={num_heads} must divide d_model={d_model}; try one of {divisors[:6]}")
    return d_model // num_heads


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
        if window is not None:
            check_at_least(1, window=window)
        head_width = width_of_heads(d_model, num_heads)
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

    def forward(
        self, x: Tensor, valid: Tensor | None = None, times: Times | None = None, keys_from: Tensor | None = None
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Args:
            x: (B, L, D), padded on the right.
            valid: (B, L) bool, True at events, at least one per row: each event then attends to all events of its row,
                newer ones too, and not to padding. None is causal, and the only choice with `read_gaps`.
            times: For `read_gaps`.
            keys_from: (B, L, D) that keys and values are made of; None is x, of which queries are made.
        """
        query, key, value = self._heads(x, torch.arange(x.shape[1], device=x.device), keys_from)
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

    def newest(self, x: Tensor, lengths: Tensor, times: Times | None = None, keys_from: Tensor | None = None) -> Tensor:
        """Return `forward` at each row's newest event (B, 1, D): one query per row instead of L.

        Args:
            x: (B, L, D), padded on the right.
            lengths: (B,) events per row, at least 1.
            times: For `read_gaps`.
            keys_from: As in `forward`.
        """
        positions, width = torch.arange(x.shape[1], device=x.device), x.shape[2]
        newest = (lengths - 1).unsqueeze(1)
        one = x.gather(1, newest.unsqueeze(2).expand(-1, -1, width))
        query, both = self._projected(one, x if keys_from is None else keys_from)
        query = query.view(len(x), 1, self.num_heads, -1).transpose(1, 2)
        key, value = both.view(*x.shape[:2], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
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
        window = max_length if self.window is None else min(max_length, self.window)
        width = self.in_projection.in_features // self.num_heads
        return empty_window((batch_size, self.num_heads, window, width), like, times=self.gaps is not None)

    def advance(
        self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times, keys_from: Tensor | None = None
    ) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`, and `forward` for `keys_from`."""
        if x.shape[1] == 1 and valid is None and self.gaps is None and keys_from is None and not self._dropped:
            inner, outer = self.in_projection, self.out_projection
            weights = inner.weight, inner.bias, outer.weight, outer.bias, self.turns
            kept = state["keys"], state["values"], state["num_events"]
            out, keys, values = attention_step(AttentionStepProblem._make((x[:, 0], *weights, *kept)))
            further = {"keys": keys, "values": values, "num_events": state["num_events"] + 1}
            return out.unsqueeze(1), cast("Tensors", further)
        moments = None if self.gaps is None else needed(*times)[0]
        positions = state["num_events"].unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
        heads = self._heads(x, positions.unsqueeze(1), keys_from)
        mixed, state = attend_further(self._attend_to_slots, *heads, valid, moments, state)
        return self._merged(mixed), state

    def _attend_to_slots(self, query: Tensor, times: Tensor | None, slots: Slots) -> Tensor:
        # torch's polarity: True is seen.
        mask = slots.seen
        if self.gaps is not None and times is not None and slots.times is not None:
            mask = _mask(mask, self.gaps, times, slots.times).to(query.dtype)
        return F.scaled_dot_product_attention(query, slots.keys, slots.values, attn_mask=mask, dropout_p=self._dropped)

    def _attend_to_older(self, query: Tensor, key: Tensor, value: Tensor, times: Tensor) -> Tensor:
        """Attend from the newest of some events, at times (B, L), to all of them."""
        event = torch.arange(key.shape[2], device=key.device)
        begin = key.shape[2] - query.shape[2]
        # torch's polarity: True is seen.
        seen = in_window(event[begin:].unsqueeze(1) - event, self.window)
        mask = _mask(seen, cast("GapTable", self.gaps), times[:, begin:], times).to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=self._dropped)

    def _heads(self, x: Tensor, positions: Tensor, keys_from: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, H, L, D / H) of events at `positions`, which broadcast to (B, H, L)."""
        packed = self.in_projection(x) if keys_from is None else torch.cat(self._projected(x, keys_from), -1)
        query, key, value = split_heads(packed.view(*x.shape[:2], 3, self.num_heads, -1))
        if self.turns is not None:
            query, key = (rotate(y, positions, self.turns) for y in (query, key))
        return query, key, value

    def _projected(self, x: Tensor, keys_from: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries (B, Q, D) of x, and keys and values (B, K, 2 D) of another input."""
        width = self.in_projection.in_features
        weights, biases = (torch.split(each, [width, 2 * width]) for each in self.in_projection.parameters())
        return linear(x, weights[0], biases[0]), linear(keys_from, weights[1], biases[1])

    def _merged(self, mixed: Tensor) -> Tensor:
        """Return outputs (B, L, D) of heads (B, H, L, D / H)."""
        out: Tensor = self.out_projection(mixed.transpose(1, 2).flatten(2))
        return out


def _mask(seen: Tensor, gaps: GapTable, query_times: Tensor, key_times: Tensor) -> Tensor:
    """Return what is added to scores (B, H, Q, K): -inf if a key is not `seen`, which broadcasts to them, else the
    number of the time between queries (B, Q) and keys (B, K).
    """
    return gaps.of_pairs(query_times, key_times).masked_fill(~seen, -torch.inf)
