"""Mamba's mixer. Shapes: B batch, L events, D width, E = expand * D inner width, N states a channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from seqrec.ops import causal_conv1d, selective_scan

# Step sizes at initialisation are log-uniform in this range (Gu & Dao 2023, section 3.6).
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4


class MambaMixer(nn.Module):
    """Selective state-space layer (Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu & Dao
    2023, figure 3 and algorithm 2).

    in-projection to a path and a gate, causal depthwise convolution with SiLU, selective scan whose step
    sizes, B and C depend on the input, SiLU gate, out-projection. A starts as S4D-real, A_n = -n; the bias of the
    step sizes starts so that softplus gives a log-uniform value in [0.001, 0.1].

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
        dt, B, C = self.scan_projection(path).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        mixed = selective_scan(
            path,
            self.dt_projection(dt),
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.D,
            z=gate,
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )
        out: Tensor = self.out_projection(mixed)
        return out


def initial_dt_bias(channels: int) -> Tensor:
    """(channels,) values whose softplus is log-uniform in [DT_MIN, DT_MAX]."""
    log_low, log_high = math.log(DT_MIN), math.log(DT_MAX)
    dt = torch.exp(torch.rand(channels) * (log_high - log_low) + log_low).clamp_min(DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))
