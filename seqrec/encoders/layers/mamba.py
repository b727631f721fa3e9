"""The state-space mixers of Mamba and Mamba-2.

Shapes: B batch, L events, D width, E = expand * D inner width, N states per channel, H heads, P = E / H head width.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from seqrec.encoders.layers.gaps import Times
from seqrec.encoders.layers.streamed import Tensors, is_one
from seqrec.errors import InputError, check_at_least
from seqrec.ops import causal_conv1d, selective_scan, ssd_scan
from seqrec.ops.mamba_mixer import NORM_EPS, Mamba2Problem, MambaProblem, mamba2_mixer, mamba_mixer
from seqrec.ops.mamba_step import Mamba2StepProblem, MambaStepProblem, mamba2_step, mamba_step

# Step sizes at initialisation are log-uniform in this range (Gu & Dao 2023, section 3.6).
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
# Widest head of Mamba-2 by default.
HEAD_DIM = 64
# -A of Mamba-2 is initially uniform in this range, as in the paper's code.
A_MIN, A_MAX = 1.0, 16.0


class MambaMixer(nn.Module):
    """Selective state-space layer (Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu & Dao
    2023, figure 3 and algorithm 2).

    In-projection to a path and a gate, causal depthwise convolution with SiLU, selective scan with step sizes, B and C
    computed from the input, SiLU gate, out-projection. A starts as S4D-real, A_n = -n; the bias of the step sizes
    starts at values whose softplus is log-uniform in [0.001, 0.1].

    A stream keeps the convolution's last `d_conv - 1` inputs and the scan's state, E (d_conv - 1 + N) numbers per
    row, those of the scan in float32 at least. Neither that nor the cost of an event grows with the number of events.

    Args:
        d_model: Width D.
        d_state: States N per inner channel.
        d_conv: Events that the convolution sees.
        expand: Inner width E divided by D.
    """

    takes_slab_rows = True

    def __init__(self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        check_at_least(1, d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
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

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Map (B, L, D) to (B, L, D); the output at t depends on inputs up to t, and not on `others`."""
        A = -torch.exp(self.A_log.float())
        *weights, _, D, out_weight = self._weights()
        return mamba_mixer(MambaProblem._make((x, *weights, A, D, out_weight)))

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event, for any `max_length`; see `Streamed.zero_state`."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {
            "inputs": like.new_zeros(batch_size, self.conv_weight.shape[1] - 1, self.d_inner),
            "scan": like.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype),
        }

    def advance(
        self,
        x: Tensor,
        valid: Tensor | None,
        state: Tensors,
        times: Times | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`. Where `start` (B, L) is True, a new history begins."""
        if start is None and valid is None and is_one(x):
            step = MambaStepProblem._make((x[:, 0], *self._weights(), state["inputs"], state["scan"]))
            out, inputs, scan = mamba_step(step)
            return out.unsqueeze(1), cast("Tensors", {"inputs": inputs, "scan": scan})
        path, gate = self.in_projection(x).chunk(2, dim=-1)
        path, inputs = convolve_further(path, self.conv_weight, self.conv_bias, valid, state["inputs"], start)
        dt, B, C = self.scan_projection(path).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        operands = (path, self.dt_projection(dt), -torch.exp(self.A_log.float()), B, C, self.D, gate, self.dt_bias)
        further: dict[str, Any] = {"initial_state": state["scan"], "return_last_state": True}
        further |= {"valid": valid, "start": start}
        mixed, scan = selective_scan(*operands, delta_softplus=True, **further)
        return self.out_projection(mixed), {"inputs": inputs, "scan": scan}

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the weights in the order of `MambaStepProblem`."""
        return (
            *(self.in_projection.weight, self.conv_weight, self.conv_bias, self.scan_projection.weight),
            *(self.dt_projection.weight, self.dt_bias, self.A_log, self.D, self.out_projection.weight),
        )


class Mamba2Mixer(nn.Module):
    """State-space-dual layer (Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality, Dao & Gu 2024, section 7 and figure 6).

    One in-projection to the gate z, the path x, B, C and a step size for each head; causal depthwise convolution with
    SiLU over x, B and C; scan in which all channels of a head share their decay and all heads share B and C; RMS norm
    of `y * silu(z)`; out-projection. The bias of the step sizes starts as in `MambaMixer`.

    A stream keeps the convolution's last `d_conv - 1` inputs and the scan's state, (E + 2 N) (d_conv - 1) + E N
    numbers per row, those of the scan in float32 at least.

    Args:
        d_model: Width D.
        d_state: States N per channel of a head.
        d_conv: Events that the convolution sees.
        expand: Inner width E divided by D.
        head_dim: Width P of a head, a divisor of E; None is the largest divisor up to 64.

    Raises:
        InputError: if `head_dim` does not divide the inner width.
    """

    takes_slab_rows = True

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        self.d_state = d_state
        self.d_inner = expand * d_model
        self.head_dim = head_width(self.d_inner, head_dim)
        heads, convolved = self.d_inner // self.head_dim, self.d_inner + 2 * d_state
        self.in_projection = nn.Linear(d_model, self.d_inner + convolved + heads, bias=False)
        bound = d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(convolved, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(convolved).uniform_(-bound, bound))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(A_MIN, A_MAX).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=NORM_EPS)
        self.out_projection = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Map (B, L, D) to (B, L, D); the output at t depends on inputs up to t, and not on `others`."""
        *weights, _, D, norm_weight, out_weight = self._weights()
        A = -torch.exp(self.A_log.float())
        return mamba2_mixer(Mamba2Problem._make((x, *weights, A, D, norm_weight, out_weight)))

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event, for any `max_length`; see `Streamed.zero_state`."""
        convolved, taps = self.conv_weight.shape
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {
            "inputs": like.new_zeros(batch_size, taps - 1, convolved),
            "scan": like.new_zeros(batch_size, len(self.D), self.head_dim, self.d_state, dtype=dtype),
        }

    def advance(
        self,
        x: Tensor,
        valid: Tensor | None,
        state: Tensors,
        times: Times | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`. Where `start` (B, L) is True, a new history begins."""
        if start is None and valid is None and is_one(x):
            step = Mamba2StepProblem._make((x[:, 0], *self._weights(), state["inputs"], state["scan"]))
            out, inputs, scan = mamba2_step(step)
            return out.unsqueeze(1), cast("Tensors", {"inputs": inputs, "scan": scan})
        widths = [self.d_inner, self.d_inner + 2 * self.d_state, len(self.D)]
        gate, path, delta = torch.split(self.in_projection(x), widths, dim=-1)
        gate = torch.unflatten(gate, -1, (-1, self.head_dim))
        path, inputs = convolve_further(path, self.conv_weight, self.conv_bias, valid, state["inputs"], start)
        path, B, C = torch.split(path, [self.d_inner, self.d_state, self.d_state], dim=-1)
        operands = (torch.unflatten(path, -1, (-1, self.head_dim)), delta, -torch.exp(self.A_log.float()))
        further: dict[str, Any] = {"initial_state": state["scan"], "return_last_state": True}
        further |= {"valid": valid, "start": start}
        further |= {"z": gate, "delta_bias": self.dt_bias, "delta_softplus": True}
        mixed, scan = ssd_scan(*operands, B.unsqueeze(-2), C.unsqueeze(-2), self.D, **further)
        # Under autocast the scan's output may be narrower than the weight, for which the norm would warn.
        normed = self.norm(mixed.flatten(2).to(self.norm.weight.dtype))
        return self.out_projection(normed), {"inputs": inputs, "scan": scan}

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the weights in the order of `Mamba2StepProblem`."""
        return (
            *(self.in_projection.weight, self.conv_weight, self.conv_bias, self.dt_bias),
            *(self.A_log, self.D, self.norm.weight, self.out_projection.weight),
        )


def head_width(d_inner: int, wanted: int | None) -> int:
    """Return the width of a head that is wanted; None is the largest divisor of the inner width up to `HEAD_DIM`.

    Raises:
        InputError: if it does not divide the inner width; the message lists those that do.
    """
    divisors = [width for width in range(1, d_inner + 1) if d_inner % width == 0]
    if wanted is None:
        return max(width for width in divisors if width <= HEAD_DIM)
    if wanted not in divisors:
        raise InputError(
            f"head_dim={wanted} must divide the inner width {d_inner} (expand * d_model); try one of {divisors}"
        )
    return wanted


def convolve_further(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    valid: Tensor | None,
    inputs: Tensor,
    start: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run `causal_conv1d` with SiLU over further events (B, L, E); return outputs and last inputs (B, W - 1, E)."""
    out, last = causal_conv1d(
        x, weight, bias, silu=True, initial_state=inputs, return_last_state=True, valid=valid, start=start
    )
    return out, last.to(inputs.dtype)


def initial_dt_bias(channels: int, low: float = DT_MIN, high: float = DT_MAX) -> Tensor:
    """Return (channels,) values with a log-uniform softplus in [low, high]."""
    log_low, log_high = math.log(low), math.log(high)
    dt = torch.exp(torch.rand(channels) * (log_high - log_low) + log_low).clamp_min(DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))
