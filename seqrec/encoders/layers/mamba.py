"""Mamba's mixer. Shapes: B batch, L events, D width, E = expand * D inner width, N states a channel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers.streamed import Tensors
from seqrec.ops import causal_conv1d, selective_scan
from seqrec.ops.selective_scan import selective_scan_step

# Step sizes at initialisation are log-uniform in this range (Gu & Dao 2023, section 3.6).
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class MambaMixer(nn.Module):
    """Selective state-space layer (Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu & Dao
    2023, figure 3 and algorithm 2).

    in-projection to a path and a gate, causal depthwise convolution with SiLU, selective scan whose step
    sizes, B and C depend on the input, SiLU gate, out-projection. A starts as S4D-real, A_n = -n; the bias of the
    step sizes starts so that softplus gives a log-uniform value in [0.001, 0.1].

    As a stream it keeps the convolution's last `d_conv - 1` inputs and the scan's state, E (d_conv - 1 + N) numbers
    a row, the scan's in float32 at least. Neither that nor the cost of an event grows with the events before.

    Args:
        d_model: Width D.
        d_state: States N of each inner channel.
        d_conv: Events that the convolution sees.
        expand: Inner width E divided by D.
    """

    def __init__(self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_state = d_state
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16)
        self.in_projection = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        bound = d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(self.d_inner).uniform_(-bound, bound))
        self.scan_projection = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_projection = nn.Linear(self.dt_rank, self.d_inner, bias=False)
        nn.init.uniform_(self.dt_projection.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.d_inner))
        states = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(states.log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_projection = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D); the output at t depends on inputs up to t."""
        path, gate = self.in_projection(x).chunk(2, dim=-1)
        path = causal_conv1d(path, self.conv_weight, self.conv_bias, silu=True)
        operands = self._operands(path)
        mixed = selective_scan(*operands, self.D, z=gate, delta_bias=self.dt_bias, delta_softplus=True)
        out: Tensor = self.out_projection(mixed)
        return out

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """See `Streamed.zero_state`; of `max_length` it does not depend."""
        return {
            "inputs": like.new_zeros(batch_size, self.conv_weight.shape[1] - 1, self.d_inner),
            "scan": like.new_zeros(
                batch_size, self.d_inner, self.d_state, dtype=torch.promote_types(like.dtype, torch.float32)
            ),
        }

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """See `Streamed.advance`."""
        path, gate = self.in_projection(x).chunk(2, dim=-1)
        path, inputs = convolve_further(path, self.conv_weight, self.conv_bias, valid, state["inputs"])
        if x.shape[1] == 1 and valid is None:
            mixed, scan = selective_scan_step(
                *self._operands(path[:, 0]),
                state["scan"],
                self.D,
                gate[:, 0],
                self.dt_bias,
                delta_softplus=True,
                check=False,
            )
            mixed = mixed.unsqueeze(1)
        else:
            mixed, scan = selective_scan(
                *self._operands(path),
                self.D,
                z=gate,
                delta_bias=self.dt_bias,
                delta_softplus=True,
                initial_state=state["scan"],
                return_last_state=True,
                valid=valid,
            )
        return self.out_projection(mixed), {"inputs": inputs, "scan": scan}

    def _operands(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The scan's u, delta, A, B and C for the convolved path (..., E)."""
        dt, B, C = self.scan_projection(path).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return path, self.dt_projection(dt), -torch.exp(self.A_log.float()), B, C


def convolve_further(
    x: Tensor, weight: Tensor, bias: Tensor, valid: Tensor | None, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """`causal_conv1d` with SiLU of further events (B, L, E), and its new last inputs (B, W - 1, E), W taps.

    A single event without `valid` is convolved in plain torch, without the dispatch that would cost more than it.
    """
    if x.shape[1] == 1 and valid is None:
        seen = torch.cat([inputs, x.to(inputs.dtype)], 1)
        out = (seen * weight.t()).sum(1, keepdim=True) + bias
        return F.silu(out).to(x.dtype), seen[:, 1:]
    out, last = causal_conv1d(
        x, weight, bias, silu=True, initial_state=inputs, return_last_state=True, valid=valid
    )
    return out, last.to(inputs.dtype)


def initial_dt_bias(channels: int) -> Tensor:
    """(channels,) values whose softplus is log-uniform in [DT_MIN, DT_MAX]."""
    log_low, log_high = math.log(DT_MIN), math.log(DT_MAX)
    dt = torch.exp(torch.rand(channels) * (log_high - log_low) + log_low).clamp_min(DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))
