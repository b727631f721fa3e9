"""Layers that continue from a state. Shapes: B batch, L events, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor, nn

from seqrec.encoders.layers.gaps import Times
from seqrec.errors import InputError

# Name -> (B, ...); a part's tensors are called `part.name`.
Tensors = dict[str, Tensor]


class Streamed(Protocol):
    """A layer that can stop after any event and continue later; a layer that mixes no events has an empty state."""

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event: zeros.

        Args:
            batch_size: Rows B.
            max_length: Newest events that attention sees, including the present one.
            like: A tensor of the events' dtype and device.
        """

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Return the layer's outputs for further events, and the state after them, both with gradients.

        In training mode there is dropout, as in `forward`.

        The cost of a single event without `valid` does not depend on the earlier events.

        Args:
            x: (B, L, D) events, at least one column.
            valid: (B, L) bool, True at events, False at padding on the right; a row may have no event. None is True
                everywhere.
            state: State after the earlier events; not written to.
            times: Only for a layer that reads gaps: those of the events. Mixers of a recurrence also take `start`
                (B, L) bool: a history begins there, from a state of zeros.

        Returns:
            (B, L, D) outputs, finite and meaningless at padding, and the new state in the dtypes of the old one.
        """


def as_streaming(layer: nn.Module) -> Streamed:
    """Return the layer itself if it can continue from a state.

    Raises:
        InputError: if it has no `zero_state` or no `advance`.
    """
    if not (hasattr(layer, "zero_state") and hasattr(layer, "advance")):
        raise InputError(
            f"{type(layer).__name__} has no streaming state; give it `zero_state` and `advance` as in "
            "seqrec.encoders.layers.Streamed"
        )
    return cast("Streamed", layer)


def is_one(x: Tensor) -> bool:
    """Return whether x (B, L, D) is one event of each row. While torch traces any number of events, it is not."""
    return isinstance(x.shape[1], int) and x.shape[1] == 1


def joined(parts: Mapping[str, Tensors]) -> Tensors:
    """Merge the tensors of several parts under `part.name`."""
    return {f"{part}.{name}": x for part, state in parts.items() for name, x in state.items()}


def separated(state: Tensors) -> dict[str, Tensors]:
    """Invert `joined`, without the parts that have no tensors."""
    parts: dict[str, Tensors] = {}
    for key, x in state.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = x
    return parts
