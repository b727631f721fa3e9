"""The contract of sequence encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.registry import Registry
from seqrec.types import History


class SequenceEncoder(nn.Module, ABC):
    """Turns embedded events into states from which the next item is scored.

    An encoder is causal: the state at t depends on events up to t. Padding stands on the right and must not
    change the states of events; states at padding are finite, and nobody reads them. Each constructor
    argument is kept as an attribute of the same name, so that checkpoints can rebuild the encoder.

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


ENCODERS: Registry[SequenceEncoder] = Registry("encoder")
