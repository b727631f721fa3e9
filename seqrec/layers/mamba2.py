"""Mamba-2's mixer.

Shapes: B batch, L events, D width, E = expand * D inner width, H heads, P = E / H head width, N states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqrec.errors import InputError
from seqrec.layers.mamba import initial_dt_bias
from seqrec.ops import causal_conv1d, ssd_scan

HEAD_DIM = 64
# A starts uniform in this range, with a minus in front, as in the paper's code.
A_MIN, A_MAX = 1.0, 16.0


class Mamba2Mixer(nn.Module):
    """State-space-dual layer (Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality, Dao & Gu 2024, section 7 and figure 6).

    One in-projection to the gate z, the path x, B, C and a step size for each head; causal depthwise convolution with
    SiLU over x, B and C; scan in which all channels of a head share their decay and all heads share B and C; RMS norm
    of `y * silu(z)`; out-projection. The bias of the step sizes starts so that softplus gives a log-uniform value in
    [0.001, 0.1].

    Args:
        d_model: Width D.
        d_state: States N of each channel of a head.
        d_conv: Events that the convolution sees.
        expand: Inner width E divided by D.
        head_dim: Width P of a head, a divisor of E; None is the widest of at most 64.

    Raises:
        InputError: a `head_dim` that does not divide the inner width.
    """

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
        self.d_state = d_state
        self.d_inner = expand * d_model
        self.head_dim = _head_dim(self.d_inner, head_dim)
        heads, convolved = self.d_inner // self.head_dim, self.d_inner + 2 * d_state
        self.in_projection = nn.Linear(d_model, self.d_inner + convolved + heads, bias=False)
        bound = d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(convolved, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(convolved).uniform_(-bound, bound))
        self.dt_bias = nn.Parameter(initial_dt_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(A_MIN, A_MAX).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.d_inner, eps=1e-5)
        self.out_projection = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D); the output at t depends on inputs up to t."""
        widths = [self.d_inner, self.d_inner + 2 * self.d_state, len(self.D)]
        gate, path, delta = torch.split(self.in_projection(x), widths, dim=-1)
        path = causal_conv1d(path, self.conv_weight, self.conv_bias, silu=True)
        path, B, C = torch.split(path, [self.d_inner, self.d_state, self.d_state], dim=-1)
        path, gate = (torch.unflatten(value, -1, (-1, self.head_dim)) for value in (path, gate))
        mixed = ssd_scan(
            path,
            delta,
            -torch.exp(self.A_log.float()),
            B.unsqueeze(2),
            C.unsqueeze(2),
            self.D,
            z=gate,
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )
        assert isinstance(mixed, Tensor)
        # Under autocast the scan's output may be narrower than the weight, which the norm warns of.
        out: Tensor = self.out_projection(self.norm(mixed.flatten(2).to(self.norm.weight.dtype)))
        return out


def _head_dim(d_inner: int, wanted: int | None) -> int:
    """Width of a head."""
    divisors = [width for width in range(1, d_inner + 1) if d_inner % width == 0]
    if wanted is None:
        return max(width for width in divisors if width <= HEAD_DIM)
    if wanted not in divisors:
        raise InputError(
            f"head_dim={wanted} must divide the inner width {d_inner} (expand * d_model); try one of {divisors}"
        )
    return wanted
