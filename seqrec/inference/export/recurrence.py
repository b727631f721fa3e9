"""What `torch.export` would record for one number of events alone, in a form that it records for any number."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.ops.export import scan_events

Module = TypeVar("Module", bound=nn.Module)


class ScannedGRU(nn.Module):
    """A layer of `nn.GRU` as one operator of any number of events, where torch unrolls them while it exports.

    Args:
        gru: One layer, one direction, batch first; its weights are shared.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        assert (gru.num_layers, gru.batch_first, gru.bidirectional) == (1, True, False)
        self.of_event = _linear(gru.weight_ih_l0, gru.bias_ih_l0)
        self.of_state = _linear(gru.weight_hh_l0, gru.bias_hh_l0)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, L, D) for x (B, L, D), and the last hidden state (1, B, D), as `nn.GRU`."""
        projected = self.of_event(x)
        # Scan takes tensors from around it, not layers.
        weight, bias = self.of_state.weight, self.of_state.bias
        state = x.new_zeros(x.shape[0], self.of_state.in_features) if hidden is None else hidden[0]

        def event(state: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            reset, update, new = now[0].chunk(3, dim=-1)
            reset_h, update_h, new_h = F.linear(state, weight, bias).chunk(3, dim=-1)
            candidate = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
            kept = torch.sigmoid(update + update_h)
            state = candidate + kept * (state - candidate)
            return state, state.clone()

        if isinstance(x.shape[1], int) and x.shape[1] == 1:
            last, out = event(state, (projected[:, 0],))
            return out.unsqueeze(1), last.unsqueeze(0)
        outputs, last = scan_events(event, state, (projected,))
        return outputs, last.unsqueeze(0)


def _linear(weight: object, bias: object) -> nn.Linear:
    """A linear layer of weights that another layer has too."""
    assert isinstance(weight, nn.Parameter)
    assert isinstance(bias, nn.Parameter)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = weight, bias
    return layer


def traceable(module: Module) -> Module:
    """A copy that shares the weights and can be exported; the module itself stays as it is."""
    shared = [*module.parameters(), *module.buffers()]
    copied = copy.deepcopy(module, {id(x): x for x in shared})
    for parent in copied.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.GRU):
                setattr(parent, name, ScannedGRU(child))
    return copied
