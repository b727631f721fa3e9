"""Encoders that are one stack of blocks."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from seqrec.encoders.layers import ResidualStack, Tensors, Times
from seqrec.encoders.sequence_encoder import SequenceEncoder
from seqrec.errors import InputError
from seqrec.types import History


class StackedEncoder(SequenceEncoder):
    """Encoder whose `stack` computes everything; a subclass builds the stack, after `super().__init__`.

    Attributes:
        stack: The blocks.
    """

    stack: ResidualStack

    # Abstract, so that it is no encoder by itself.
    @abstractmethod
    def __init__(self, d_model: int, *, num_layers: int, dropout: float, layer_norm: bool) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D)."""
        out: Tensor = self.stack(x, None, *self.times_of(history))
        return out

    def newest(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, D) of the newest events; a last block of attention is computed only for these."""
        if not self.stack.ends_with_attention:
            return super().newest(x, history)
        return self.stack.newest(x, history.lengths, *self.times_of(history))

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event; see `Streamed.zero_state`."""
        return self.stack.zero_state(batch_size, max_length, like)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        return self.stack.advance(x, valid, state, *times)


class BidirectionalEncoder(StackedEncoder):
    """Stack of blocks that see all events of a row, newer ones too, and so cannot be streamed.

    The first branch of each block also gets which places are events, (B, L) bool.
    """

    bidirectional = True
    zero_state = SequenceEncoder.zero_state
    advance = SequenceEncoder.advance
    newest = SequenceEncoder.newest

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D), each of all events of its row; finite at padding."""
        out: Tensor = self.stack(x, history.valid)
        return out

    def read_gaps(self, ticks: int) -> None:
        """Refuse to read gaps: the time of a masked event is not known."""
        raise InputError(
            f"time.in_mixers=True needs the time of each event, but {type(self).__name__} has masked ones: leave it out"
        )
