"""The contract of sequence encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor, nn

from seqrec.encoders.layers import Tensors, newest_events
from seqrec.encoders.state import State, encoder_digest
from seqrec.errors import InputError
from seqrec.registry import Registry
from seqrec.types import History


class SequenceEncoder(nn.Module, ABC):
    """Turns embedded events into states from which the next item is scored.

    An encoder is causal: the state at t depends on events up to t. Padding stands on the right and must not
    change the states of events; states at padding are finite, and nobody reads them. Each constructor
    argument is kept as an attribute of the same name, so that checkpoints can rebuild the encoder.

    An encoder that defines `zero_state` and `advance` can also be streamed: `init_state`, then `step` for one event a
    row or `extend` for any number, in evaluation mode and without gradients. However the events of a row are cut, the
    states are those of `forward` over all of them, with one exception: attention sees the newest `max_length` events
    of each event, in every layer. So:

    - up to `max_length` events, stream and `forward` agree for every encoder;
    - beyond, recurrent and state-space encoders still agree with `forward` over *all* events since `init_state`, which
      is not what they say when they are shown the newest `max_length` alone, as in training and evaluation;
    - beyond, attention is that of a sliding window: an event's state draws on older events through the states of the
      lower layers, so that it is `forward` over the newest `max_length` only with a single layer.

    Args:
        d_model: Width D of inputs and states.
        num_layers: Blocks.
        dropout: Share of inputs, and of what else the encoder says, set to 0 in training, 0 <= dropout < 1.
        layer_norm: False leaves every layer norm out (ablation).

    Raises:
        InputError: a width or count below 1, or a dropout outside [0, 1).
    """

    def __init__(self, d_model: int, *, num_layers: int, dropout: float, layer_norm: bool) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("num_layers", num_layers)):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} must be at least 0 and below 1")
        self.d_model = d_model
        self.num_layers = num_layers
        self.dropout = dropout
        self.layer_norm = layer_norm

    @abstractmethod
    def forward(self, x: Tensor, history: History) -> Tensor:
        """States of all events.

        Args:
            x: (B, L, D) embedded events.
            history: The events themselves, for encoders that use ids, times or lengths.

        Returns:
            (B, L, D) states.
        """

    def newest(self, x: Tensor, history: History) -> Tensor:
        """`forward` at each row's newest event alone, which is all that recommending asks for.

        An encoder overrides it where that saves work.

        Args:
            x: (B, L, D) embedded events.
            history: As for `forward`.

        Returns:
            (B, D) states, those of `forward` but for rounding.
        """
        return newest_events(self(x, history), history.lengths)

    def init_state(
        self,
        batch_size: int,
        *,
        max_length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first event.

        Args:
            batch_size: Rows, one a user.
            max_length: Newest events that attention sees, the present one included; others keep no events.
            device: None is where the weights are.
            dtype: Of the events; None is that of the weights. State-space recurrences keep float32 at least.

        Raises:
            InputError: a number out of range, a dtype of no real numbers, or an encoder that cannot be streamed.
        """
        if batch_size < 0 or max_length < 1:
            raise InputError(
                f"batch_size={batch_size} must be at least 0 and max_length={max_length} at least 1"
            )
        like = next(self.parameters()).new_empty(0, device=device, dtype=dtype)
        if not like.is_floating_point():
            raise InputError(f"dtype={dtype} must be one of real numbers, such as torch.float32")
        return State(self.zero_state(batch_size, max_length, like), self._digest)

    @torch.inference_mode()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """States of one further event of each row.

        Its cost does not depend on the number of events before. What it returns are torch's inference tensors, which
        autograd does not take: `clone` those that shall meet parameters in training.

        Args:
            x: (B, D) embedded events.
            state: Behind the events before; not written to.

        Returns:
            (B, D) states, and the state behind the event.

        Raises:
            InputError: training mode, a state of another encoder, or a shape that does not fit.
        """
        if x.dim() != 2:
            raise InputError(f"x must be (B, D), got {tuple(x.shape)}; use `extend` for several events a row")
        self._check(x, state)
        states, tensors = self.advance(x.unsqueeze(1), None, state.tensors)
        return states.squeeze(1), State(tensors, state.encoder)

    @torch.no_grad()
    def extend(self, x: Tensor, lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
        """States of any number of further events of each row.

        Args:
            x: (B, L, D) embedded events, padded on the right.
            lengths: (B,) int64, number of new events a row, 0..L; a row of 0 keeps its state. None is L for all.
            state: Behind the events before; not written to.

        Returns:
            (B, L, D) states, meaningless at padding, and the state behind each row's newest event.

        Raises:
            InputError: training mode, a state of another encoder, or a shape or length that does not fit.
        """
        if x.dim() != 3:
            raise InputError(f"x must be (B, L, D), got {tuple(x.shape)}; use `step` for one event a row")
        self._check(x, state)
        batch, length = x.shape[:2]
        valid = None
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.dtype != torch.int64:
                raise InputError(
                    f"lengths must be ({batch},) int64, got {tuple(lengths.shape)} {lengths.dtype}"
                )
            least, most = (int(lengths.min()), int(lengths.max())) if batch else (length, length)
            if not 0 <= least <= most <= length:
                raise InputError(
                    f"lengths={lengths.tolist()} must be between 0 and the {length} columns of x"
                )
            if least < length:
                valid = torch.arange(length, device=x.device) < lengths.unsqueeze(1)
        if not batch or not length:
            return x, state
        states, tensors = self.advance(x, valid, state.tensors)
        return states, State(tensors, state.encoder)

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """What a new row remembers, as in `seqrec.encoders.layers.Streamed`; the doorway is `init_state`."""
        raise InputError(
            f"{type(self).__name__} cannot be streamed; give it `zero_state` and `advance` as in "
            "seqrec.encoders.layers.Streamed"
        )

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """States of further events, as in `seqrec.encoders.layers.Streamed`; the doorways are `step` and `extend`."""
        raise InputError(f"{type(self).__name__} cannot be streamed; give it `advance`")

    @cached_property
    def _digest(self) -> str:
        return encoder_digest(self)

    def _check(self, x: Tensor, state: State) -> None:
        """Refuse what would give wrong states. Reads no values, so that a GPU is not waited for."""
        if self.training:
            raise InputError("a stream has no dropout and no gradients; call `.eval()` on the model first")
        if state.encoder != self._digest:
            raise InputError(
                f"state is of {state.encoder}, but this encoder is {self._digest}; start with `init_state`"
            )
        if x.shape[0] != len(state) or x.shape[-1] != self.d_model:
            raise InputError(
                f"x must have the state's {len(state)} rows and width d_model={self.d_model}, got {tuple(x.shape)}"
            )


ENCODERS: Registry[SequenceEncoder] = Registry("encoder", SequenceEncoder)  # type: ignore[type-abstract]
