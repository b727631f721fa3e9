"""Mamba-2's mixer.

Shapes: B batch, L events, D width, E = expand * D inner width, H heads, P = E / H head width, N states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqrec.encoders.layers.mamba import convolve_further, initial_dt_bias
from seqrec.encoders.layers.streamed import Tensors
from seqrec.errors import InputError
from seqrec.ops import causal_conv1d, ssd_scan
from seqrec.ops.ssd import ssd_step

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

    As a stream it keeps the convolution's last `d_conv - 1` inputs and the scan's state, (E + 2 N) (d_conv - 1) + E N
    numbers a row, the scan's in float32 at least. Neither that nor the cost of an event grows with the events before.

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
        gate, path, delta = self._projected(x)
        path = causal_conv1d(path, self.conv_weight, self.conv_bias, silu=True)
        mixed = ssd_scan(
            *self._operands(path, delta), self.D, z=gate, delta_bias=self.dt_bias, delta_softplus=True
        )
        assert isinstance(mixed, Tensor)
        return self._normed(mixed)

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """See `Streamed.zero_state`; of `max_length` it does not depend."""
        convolved, taps = self.conv_weight.shape
        return {
            "inputs": like.new_zeros(batch_size, taps - 1, convolved),
            "scan": like.new_zeros(
                *(batch_size, len(self.D), self.head_dim, self.d_state),
                dtype=torch.promote_types(like.dtype, torch.float32),
            ),
        }

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors) -> tuple[Tensor, Tensors]:
        """See `Streamed.advance`."""
        gate, path, delta = self._projected(x)
        path, inputs = convolve_further(path, self.conv_weight, self.conv_bias, valid, state["inputs"])
        if x.shape[1] == 1 and valid is None:
            operands = self._operands(path[:, 0], delta[:, 0])
            mixed, scan = ssd_step(
                *operands, state["scan"], self.D, gate[:, 0], self.dt_bias, delta_softplus=True
            )
            mixed = mixed.unsqueeze(1)
        else:
            mixed, scan = ssd_scan(
                *self._operands(path, delta),
                self.D,
                z=gate,
                delta_bias=self.dt_bias,
                delta_softplus=True,
                initial_state=state["scan"],
                return_last_state=True,
                valid=valid,
            )
        return self._normed(mixed), {"inputs": inputs, "scan": scan}

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate (B, L, H, P), what is convolved (B, L, E + 2 N), and step sizes (B, L, H)."""
        widths = [self.d_inner, self.d_inner + 2 * self.d_state, len(self.D)]
        gate, path, delta = torch.split(self.in_projection(x), widths, dim=-1)
        return torch.unflatten(gate, -1, (-1, self.head_dim)), path, delta

    def _operands(self, path: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The scan's x, delta, A, B and C for what was convolved (..., E + 2 N) and step sizes (..., H)."""
        path, B, C = torch.split(path, [self.d_inner, self.d_state, self.d_state], dim=-1)
        path = torch.unflatten(path, -1, (-1, self.head_dim))
        return path, delta, -torch.exp(self.A_log.float()), B.unsqueeze(-2), C.unsqueeze(-2)

    def _normed(self, mixed: Tensor) -> Tensor:
        """Outputs (B, L, D) of the gated scan (B, L, H, P)."""
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
