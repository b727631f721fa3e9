"""The base class of sequence encoders, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from seqrec.encoders.event_time import needed_times
from seqrec.encoders.layers import Tensors, Times, newest_events
from seqrec.encoders.state import State, encoder_digest
from seqrec.errors import InputError, check_at_least
from seqrec.registry import Registry
from seqrec.types import History


class SequenceEncoder(nn.Module, ABC):
    """Base class of encoders, which turn embedded events into states that score the next item.

    An encoder is causal: the state at t depends on events up to t. States of a `bidirectional` one depend on newer
    events too; it is trained on masked items (`seqrec.models.MaskedItems`), and cannot be streamed. Padding is on the
    right and must not change the states of events; states at padding are finite and never used. Each constructor
    argument is kept as an attribute of the same name, because checkpoints rebuild the encoder from them.

    An encoder that defines `zero_state` and `advance` can also be streamed, in evaluation mode and without gradients:
    call `init_state`, then `step` for one event per row or `extend` for any number. The states are those of `forward`
    over all events of a row, however they are divided between calls, with one exception: in every layer, attention
    sees only the newest `max_length` events of each event.

    - Up to `max_length` events, stream and `forward` agree for every encoder.
    - Beyond, recurrent and state-space encoders still agree with `forward` over *all* events since `init_state`. In
      training and evaluation they see only the newest `max_length` events, which gives other states.
    - Beyond, attention is that of a sliding window: an event's state depends on older events through the states of the
      lower layers. It is `forward` over the newest `max_length` events only if there is a single layer.

    Args:
        d_model: Width D of inputs and states.
        num_layers: Blocks.
        dropout: Share of inputs, and of other parts that the encoder documents, set to 0 in training, 0 <= dropout < 1.
        layer_norm: False omits every layer norm (ablation).

    Attributes:
        takes_slab_rows: Whether `step` also takes a state whose tensors are `seqrec.ops.steps.SlabRows`, which it
            reads and writes in place. False gets copies of them.
        reads_gaps: Whether the encoder reads the time between events: its mixers, after `read_gaps`, or by an argument,
            such as `session_gap` of `HRNN`.
        window: Newest events that attention was told to see, at most the model's `max_length`; None if it was not.
        bidirectional: Whether states depend on newer events too.

    Raises:
        InputError: if a width or count is below 1, or dropout is outside [0, 1).

    Example:
        >>> import torch
        >>> from seqrec import History, SequenceEncoder, check_encoder
        >>> class RunningMean(SequenceEncoder):
        ...     def __init__(self, d_model: int = 8) -> None:
        ...         super().__init__(d_model, num_layers=1, dropout=0.0, layer_norm=False)
        ...         self.projection = torch.nn.Linear(d_model, d_model)
        ...
        ...     def forward(self, x, history):
        ...         count = torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1)
        ...         return self.projection(x.cumsum(1) / count)
        >>> check_encoder(RunningMean())
        >>> history = History(torch.tensor([[4, 2, 0]]), lengths=torch.tensor([2]))
        >>> RunningMean()(torch.zeros(1, 3, 8), history).shape
        torch.Size([1, 3, 8])
    """

    takes_slab_rows = False
    reads_gaps = False
    window: int | None = None
    bidirectional = False

    def __init__(self, d_model: int, *, num_layers: int, dropout: float, layer_norm: bool) -> None:
        super().__init__()
        check_at_least(1, d_model=d_model, num_layers=num_layers)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} must be at least 0 and below 1")
        self.d_model = d_model
        self.num_layers = num_layers
        self.dropout = dropout
        self.layer_norm = layer_norm

    @abstractmethod
    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return the states of all events.

        Args:
            x: (B, L, D) embedded events.
            history: The events themselves, for encoders that use ids, times or lengths.

        Returns:
            (B, L, D) states.
        """

    def read_gaps(self, ticks: int) -> None:
        """Let attention read the time between events; it changes nothing before training.

        An encoder of your own passes `times_of` on to its mixers.

        Args:
            ticks: Timestamps in a second.

        Raises:
            InputError: if the encoder has no mixer that can.
        """
        mixers: list[Any] = [part for part in self.modules() if part is not self and hasattr(part, "read_gaps")]
        if not mixers:
            raise InputError(
                f"time.in_mixers=True needs attention, but {type(self).__name__} has none: leave it out, or take "
                "another encoder; time.gap alone adds gaps to the input of any encoder"
            )
        for mixer in mixers:
            mixer.read_gaps(ticks)
        self.reads_gaps = True
        vars(self).pop("_digest", None)

    def times_of(self, events: History | None) -> tuple[Times, ...]:
        """Return the times of events and of those before them, as the last argument of mixers; none if they read none.

        Raises:
            InputError: if mixers read them, but the events are not given or have no timestamps.
        """
        if not self.reads_gaps:
            return ()
        if events is None:
            raise InputError("the encoder reads the time between events: give `events`, with timestamps")
        return ((needed_times(events), events.times_before),)

    def newest(self, x: Tensor, history: History) -> Tensor:
        """Return `forward`, up to rounding, at each row's newest event only, (B, D), as recommending needs it.

        An encoder overrides it if that saves work.
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
        """Return the state before the first event.

        Args:
            batch_size: Rows, one per user.
            max_length: Newest events that attention sees, including the present one; other layers keep no events.
            device: None is the device of the weights.
            dtype: Dtype of the events; None is that of the weights. State-space recurrences keep float32 at least.

        Raises:
            InputError: if a number is out of range, the dtype is not of real numbers, or the encoder cannot be
                streamed.
        """
        if batch_size < 0 or max_length < 1:
            raise InputError(f"batch_size={batch_size} must be at least 0 and max_length={max_length} at least 1")
        self.refuse_bidirectional()
        like = next(self.parameters()).new_empty(0, device=device, dtype=dtype)
        if not like.is_floating_point():
            raise InputError(f"dtype={dtype} must be one of real numbers, such as torch.float32")
        return State(self.zero_state(batch_size, max_length, like), self._digest)

    @torch.inference_mode()
    def step(self, x: Tensor, state: State, events: History | None = None) -> tuple[Tensor, State]:
        """Compute the states of one further event per row.

        Its cost does not depend on the number of earlier events. The results are torch's inference tensors, which
        autograd refuses: `clone` them before using them with parameters in training.

        Args:
            x: (B, D) embedded events.
            state: State after the earlier events; not written to.
            events: The events themselves, (B, 1), with the time before them; needed if the encoder reads gaps.

        Returns:
            (B, D) states, and the state after the event.

        Raises:
            InputError: if the encoder is in training mode, the state is of another encoder, or a shape does not fit.
        """
        if x.dim() != 2:
            raise InputError(f"x must be (B, D), got {tuple(x.shape)}; use `extend` for several events a row")
        self._check(x, state)
        states, tensors = self.advance(x.unsqueeze(1), None, state.tensors, *self.times_of(events))
        return states.squeeze(1), State(tensors, state.encoder)

    @torch.no_grad()
    def extend(
        self, x: Tensor, lengths: Tensor | None, state: State, events: History | None = None
    ) -> tuple[Tensor, State]:
        """Compute the states of any number of further events per row.

        Args:
            x: (B, L, D) embedded events, padded on the right.
            lengths: (B,) int64, number of new events per row, 0..L; a row of 0 keeps its state. None is L for all.
            state: State after the earlier events; not written to.
            events: The events themselves, (B, L), with the time before them; needed if the encoder reads gaps.

        Returns:
            (B, L, D) states, meaningless at padding, and the state after each row's newest event.

        Raises:
            InputError: if the encoder is in training mode, the state is of another encoder, or a shape or length does
                not fit.
        """
        if x.dim() != 3:
            raise InputError(f"x must be (B, L, D), got {tuple(x.shape)}; use `step` for one event a row")
        self._check(x, state)
        batch, length = x.shape[:2]
        valid = None
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.dtype != torch.int64:
                raise InputError(f"lengths must be ({batch},) int64, got {tuple(lengths.shape)} {lengths.dtype}")
            least, most = (int(lengths.min()), int(lengths.max())) if batch else (length, length)
            if not 0 <= least <= most <= length:
                raise InputError(f"lengths={lengths.tolist()} must be between 0 and the {length} columns of x")
            if least < length:
                valid = torch.arange(length, device=x.device) < lengths.unsqueeze(1)
        if not batch or not length:
            return x, state
        states, tensors = self.advance(x, valid, state.tensors, *self.times_of(events))
        return states, State(tensors, state.encoder)

    @property
    def can_stream(self) -> bool:
        """Whether the encoder defines `zero_state`, and sees no newer events."""
        return not self.bidirectional and type(self).zero_state is not SequenceEncoder.zero_state

    def refuse_bidirectional(self) -> None:
        """Raise an `InputError` if the encoder is bidirectional, so that it cannot be streamed."""
        if self.bidirectional:
            raise InputError(
                f"{type(self).__name__} sees newer events and cannot be streamed: each new event changes the states of "
                "all others; encode whole histories, as `recommend` and `seqrec serve` do, or train a causal encoder "
                "such as MambaRec"
            )

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the tensors of `init_state`, as `seqrec.encoders.layers.Streamed.zero_state` does."""
        raise InputError(
            f"{type(self).__name__} cannot be streamed; give it `zero_state` and `advance` as in "
            "seqrec.encoders.layers.Streamed"
        )

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute `step` and `extend` on tensors, as `seqrec.encoders.layers.Streamed.advance` does."""
        raise InputError(f"{type(self).__name__} cannot be streamed; give it `advance`")

    @cached_property
    def _digest(self) -> str:
        return encoder_digest(self)

    def check_state(self, state: State) -> None:
        """Refuse a state of another encoder.

        Raises:
            InputError: if it is.
        """
        if state.encoder != self._digest:
            raise InputError(
                f"state is of {state.encoder}, but this encoder is {self._digest}; start with `init_state`"
            )

    def _check(self, x: Tensor, state: State) -> None:
        """Refuse arguments that would give wrong states. Reads no values, so no GPU is waited for."""
        if self.training:
            raise InputError("a stream has no dropout and no gradients; call `.eval()` on the model first")
        self.check_state(state)
        if x.shape[0] != len(state) or x.shape[-1] != self.d_model:
            raise InputError(
                f"x must have the state's {len(state)} rows and width d_model={self.d_model}, got {tuple(x.shape)}"
            )


ENCODERS: Registry[SequenceEncoder] = Registry("encoder", SequenceEncoder)  # type: ignore[type-abstract]
