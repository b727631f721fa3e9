"""How layers go on from what they remember. Shapes: B batch, L events, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor, nn

from seqrec.errors import InputError

# Name -> (B, ...); names of parts within parts are joined by dots.
Tensors = dict[str, Tensor]


class Streamed(Protocol):
    """A layer that can stop behind any event and go on later; layers that mix no events remember nothing."""

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """What is remembered before the first event: zeros.

        Args:
            batch_size: Rows B.
            max_length: Newest events that attention sees, the present one included.
            like: Has the events' type and device.
        """

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """The layer's outputs for further events, without dropout, and what is remembered behind them.

        A single event without `valid` takes a path whose cost does not depend on the events before.

        Args:
            x: (B, L, D) events, at least one column.
            valid: (B, L) bool, True at events, False at padding, which stands on the right; rows may have no event.
                None is True everywhere.
            state: What is remembered so far; not written to.

        Returns:
            (B, L, D) outputs, finite and meaningless at padding, and the new state in the types of the old.
        """


def as_streaming(layer: nn.Module) -> Streamed:
    """The layer itself, if it can go on from a state.

    Raises:
        InputError: it has no `zero_state` or no `advance`.
    """
    if not (hasattr(layer, "zero_state") and hasattr(layer, "advance")):
        raise InputError(
            f"{type(layer).__name__} has no streaming state; give it `zero_state` and `advance` as in "
            "seqrec.encoders.layers.Streamed"
        )
    return cast("Streamed", layer)


def joined(parts: Mapping[str, Tensors]) -> Tensors:
    """Tensors of several parts under `part.name`."""
    return {f"{part}.{name}": x for part, state in parts.items() for name, x in state.items()}


def separated(state: Tensors) -> dict[str, Tensors]:
    """Inverse of `joined`, without the parts that have no tensors."""
    parts: dict[str, Tensors] = {}
    for key, x in state.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = x
    return parts
