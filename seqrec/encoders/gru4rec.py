"""GRU4Rec."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from seqrec.encoders.layers import Tensors, Times, make_norm, run_block
from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.sequence_encoder import SequenceEncoder
from seqrec.types import History


class GRU4Rec(SequenceEncoder):
    """Gated recurrent units over the history (Session-based Recommendations with Recurrent Neural Networks,
    Hidasi et al. 2016).

    The paper trains on session-parallel mini-batches with ranking losses. Here only the encoder is from the paper;
    data, objective and evaluation are those of all encoders. The norm of the output is our addition.

    Args:
        d_model: Width D of inputs, hidden state and outputs.
        num_layers: Stacked GRU layers.
        dropout: Share of inputs and of each layer's outputs set to 0 in training.
        layer_norm: Whether the output is normalised.
    """

    def __init__(
        self, d_model: int = 64, *, num_layers: int = 1, dropout: float = 0.2, layer_norm: bool = True
    ) -> None:
        super().__init__(d_model, num_layers=num_layers, dropout=dropout, layer_norm=layer_norm)
        # One module per layer: torch warns about dropout between layers if there is only one.
        self.layers = nn.ModuleList(nn.GRU(d_model, d_model, batch_first=True) for _ in range(num_layers))
        self.dropout_layer = Dropout(dropout)
        self.norm = make_norm(d_model, layer_norm)
        self.recompute = False

    def forward(self, x: Tensor, history: History) -> Tensor:
        """Return states (B, L, D) of embedded events x (B, L, D)."""
        x = self.dropout_layer(x)
        for layer in self.layers:
            x = self.dropout_layer(run_block(partial(_hidden_states, layer), x, recompute=self.recompute))
        out: Tensor = self.norm(x)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return each layer's hidden state, D numbers per row; see `Streamed.zero_state`."""
        return {f"{number}.hidden": like.new_zeros(batch_size, self.d_model) for number in range(self.num_layers)}

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        x, after = self.dropout_layer(x), {}
        for number, layer in enumerate(self.layers):
            name = f"{number}.hidden"
            hidden = state[name]
            x, last = run_block(layer, x, hidden.to(x.dtype).unsqueeze(0), recompute=self.recompute)
            after[name] = (last[0] if valid is None else _newest(hidden, x, valid)).to(hidden.dtype)
            x = self.dropout_layer(x)
        return self.norm(x), after


def _hidden_states(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the hidden states (B, L, D) of a GRU layer."""
    states: Tensor = layer(x)[0]
    return states


def _newest(hidden: Tensor, x: Tensor, valid: Tensor) -> Tensor:
    """Return the hidden state (B, D) after each row's newest event in x (B, L, D); `hidden` if the row has none."""
    states = torch.cat([hidden.to(x.dtype).unsqueeze(1), x], 1)
    return states[torch.arange(len(x), device=x.device), valid.sum(1)]
