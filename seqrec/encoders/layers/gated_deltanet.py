"""The mixer of Gated DeltaNet.

Shapes: B batch, L events, D width, E = expand * D inner width, H heads, N key width, P = E / H value width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers.gaps import Times
from seqrec.encoders.layers.mamba import A_MAX, A_MIN, convolve_further, head_width, initial_dt_bias
from seqrec.encoders.layers.streamed import Tensors, is_one
from seqrec.errors import InputError, check_at_least
from seqrec.ops import causal_conv1d, gated_delta_rule, linear
from seqrec.ops.gated_delta import gated_delta_step
from seqrec.ops.mamba_mixer import NORM_EPS
from seqrec.ops.problems import at_least_float32, step_sizes

# Step sizes of `start_with_pairs`.
LONG_DT_MIN, LONG_DT_MAX = 1e-4, 1e-3
# Added to the squared norm of queries and keys.
UNIT_EPS = 1e-6


class GatedDeltaNetMixer(nn.Module):
    """Gated delta layer (Gated Delta Networks: Improving Mamba2 with Delta Rule, Yang, Kautz & Hatamizadeh, ICLR 2025,
    equation 10 and figure 1): a memory of pairs of keys and values, in which a new value replaces the one of its key.

    One in-projection to a gate z, queries, keys and values of each head, and two numbers of each head, from which
    `beta_t = sigmoid(.)` and the decay `alpha_t = exp(-exp(A_log) softplus(. + dt_bias))` are computed. Causal
    depthwise convolution with SiLU over queries, keys and values. Queries and keys are divided by their norms. Then
    `S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T` and `y_t = S_t q_t`, with S a (P, N) matrix of
    each head; RMS norm of each head's y, times silu(z); out-projection.

    `A_log` and `dt_bias` start as in `Mamba2Mixer`; see `start_with_pairs` for another start.

    In Mamba-2 a pair is added to what the memory holds: `S_t = alpha_t S_{t-1} + v_t k_t^T`, with one key for all
    heads. Here beta is the share that is replaced, and each head has its own key. Differs from the authors' code:
    widths are those of `Mamba2Mixer`, not 3/4 of D for keys and 3/2 of D for values; queries are not scaled by
    N^-0.5, because the norm of y takes the scale out again.

    A stream keeps the convolution's last `d_conv - 1` inputs and the memory, (E + 2 H N) (d_conv - 1) + E N numbers per
    row, those of the memory in float32 at least.

    Args:
        d_model: Width D.
        d_state: Key width N of a head. A head tells about N keys apart.
        d_conv: Events that the convolution sees.
        expand: Inner width E divided by D.
        head_dim: Value width P of a head, a divisor of E; None is the largest divisor up to 64.

    Raises:
        InputError: if a size is below 1, or `head_dim` does not divide the inner width.

    Example:
        >>> import torch
        >>> from seqrec.encoders.layers import GatedDeltaNetMixer
        >>> GatedDeltaNetMixer(8, d_state=4)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    takes_slab_rows = False

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 32,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand)
        self.d_state = d_state
        self.d_inner = expand * d_model
        self.head_dim = head_width(self.d_inner, head_dim)
        self.num_heads = self.d_inner // self.head_dim
        convolved = self.d_inner + 2 * self.num_heads * d_state
        self.in_projection = nn.Linear(d_model, self.d_inner + convolved + 2 * self.num_heads, bias=False)
        bound = d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(convolved, d_conv).uniform_(-bound, bound))
        self.dt_bias = nn.Parameter(initial_dt_bias(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(A_MIN, A_MAX).log())
        self.norm = nn.RMSNorm(self.head_dim, eps=NORM_EPS)
        self.out_projection = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Map (B, L, D) to (B, L, D); the output at t depends on inputs up to t, and not on `others`."""
        gate, path, numbers = self._projected(x)
        y = gated_delta_rule(*self._operands(causal_conv1d(path, self.conv_weight, silu=True), numbers))
        assert isinstance(y, Tensor)
        return self._output(y, gate)

    @torch.no_grad()
    def start_with_pairs(self) -> None:
        """Let the memory pair each event with the one before it, look up what followed the present one, and keep it.

        Keys get the weights of queries, as in Mimetic Initialization Helps State Space Models Learn to Recall (Trockman
        et al. 2024). Beyond that paper, the convolution of keys shows the event before, and that of queries the present
        one. Little is forgotten: half of a value is left after 40 to 7,000 events, unless it is replaced. `seqrec
        benchmark recall` measures what that is worth. No option of an encoder calls this.

        Raises:
            InputError: if the convolution sees one event alone.
        """
        if self.conv_weight.shape[1] < 2:
            raise InputError("a start with pairs needs d_conv of at least 2, got 1: keys must see the event before")
        width = self.num_heads * self.d_state
        queries, keys = self.in_projection.weight[self.d_inner : self.d_inner + 2 * width].chunk(2)
        keys.copy_(queries)
        query_taps, key_taps = self.conv_weight[: 2 * width].zero_().chunk(2)
        query_taps[:, -1] = 1
        key_taps[:, -2] = 1
        self.dt_bias.copy_(initial_dt_bias(self.num_heads, LONG_DT_MIN, LONG_DT_MAX))

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return the state before the first event, for any `max_length`; see `Streamed.zero_state`."""
        convolved, taps = self.conv_weight.shape
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {
            "inputs": like.new_zeros(batch_size, taps - 1, convolved),
            "scan": like.new_zeros(batch_size, self.num_heads, self.head_dim, self.d_state, dtype=dtype),
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
        gate, path, numbers = self._projected(x)
        path, inputs = convolve_further(path, self.conv_weight, None, valid, state["inputs"], start)
        operands = self._operands(path, numbers)
        if start is None and valid is None and is_one(x):
            q, k, v, log_decay, beta = (each[:, 0] for each in operands)
            y, memory = gated_delta_step(q, k, v, log_decay, beta, state["scan"])
            y = y.unsqueeze(1)
        else:
            further: dict[str, Any] = {"return_last_state": True, "valid": valid, "start": start}
            y, memory = gated_delta_rule(*operands, state["scan"], **further)
        return self._output(y, gate), {"inputs": inputs, "scan": memory}

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gate (B, L, E), input of the convolution (B, L, E + 2 H N), and numbers of heads (B, L, 2 H)."""
        widths = [self.d_inner, len(self.conv_weight), 2 * self.num_heads]
        gate, path, numbers = torch.split(linear(x, self.in_projection.weight), widths, dim=-1)
        return gate, path, numbers

    def _operands(self, path: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v, logarithms of decays, and beta of `gated_delta_rule`."""
        keys = torch.unflatten(at_least_float32(path[..., : -self.d_inner]), -1, (-1, self.d_state))
        keys = keys * torch.rsqrt((keys * keys).sum(-1, keepdim=True) + UNIT_EPS)
        q, k = keys.chunk(2, dim=2)
        v = torch.unflatten(path[..., -self.d_inner :], -1, (-1, self.head_dim))
        beta, dt = at_least_float32(numbers).chunk(2, dim=-1)
        return q, k, v, -torch.exp(self.A_log.float()) * step_sizes(dt, self.dt_bias, True), torch.sigmoid(beta)

    def _output(self, y: Tensor, gate: Tensor) -> Tensor:
        # The recurrence's y may be wider than the weights.
        return linear(self.norm(y.to(self.norm.weight.dtype)).flatten(2) * F.silu(gate), self.out_projection.weight)
