"""The layer of HSTU. Shapes: B batch, L events, D width, H heads, W newest events that a stream sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.encoders.layers.attention import width_of_heads
from seqrec.encoders.layers.dropout import Dropout
from seqrec.encoders.layers.gaps import GapTable, Times, needed
from seqrec.encoders.layers.positionwise import Linear
from seqrec.encoders.layers.residual import make_norm
from seqrec.encoders.layers.streamed import Tensors
from seqrec.encoders.layers.window import Slots, attend_further, empty_window
from seqrec.errors import check_at_least
from seqrec.ops.export import without_autocast
from seqrec.ops.linear import linear
from seqrec.ops.pointwise_attention import pointwise_attention, weigh
from seqrec.ops.problems import at_least_float32

# Standard deviation of the numbers of distances before training, as in the authors' code.
DISTANCE_STD = 0.02


class PointwiseAttention(nn.Module):
    """Pointwise aggregated attention with a gate (HSTU: Actions Speak Louder than Words: Trillion-Parameter Sequential
    Transducers for Generative Recommendations, Zhai et al. 2024, equations 1 to 3).

    `U, V, Q, K = silu(W1 x + b1)` (1), split into heads of width D / H;
    `A_t = 1 / (t + 1) sum_{s <= t} silu(q_t . k_s + p(t - s) + g(time_t - time_s)) v_s` (2);
    `y = W2 dropout(norm(A) * U) + b2` (3), where the norm is over all heads.

    p and g are the relative bias of position and time, which all heads share. Events that are `num_distances` - 1 or
    more apart share one p. There is no g without `read_gaps`, which gives each bucket of gaps a number, 0 at first; see
    `GapTable`. A query has its own time there; the paper gives it that of the event after it, which is the target's.
    The mean in (2) is over what an event sees, not over the longest length of the batch as in the authors' code.
    Memory grows with L; see `seqrec.ops.pointwise_attention`. States at padding are finite and meaningless.

    A stream keeps keys and values of the newest W events, 2 W D numbers per row, and the number of events, as that of
    `CausalSelfAttention` does; with `read_gaps` the W times too.

    Args:
        d_model: Width D.
        num_heads: H, a divisor of D.
        num_distances: How many distances between events have a p.
        dropout: Share of gated outputs set to 0 in training.
        layer_norm: False omits the norm of (3).

    Raises:
        InputError: if `num_heads` does not divide `d_model`, a size is below 1, or dropout is not in [0, 1).

    Example:
        >>> import torch
        >>> from seqrec.encoders.layers import PointwiseAttention
        >>> PointwiseAttention(8, num_heads=2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 1,
        num_distances: int = 256,
        dropout: float = 0.0,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        width_of_heads(d_model, num_heads)
        check_at_least(1, num_distances=num_distances)
        self.num_heads = num_heads
        self.in_projection = Linear(d_model, 4 * d_model)
        self.out_projection = Linear(d_model, d_model)
        self.norm = make_norm(d_model, layer_norm)
        self.dropout = Dropout(dropout)
        self.distances = nn.Parameter(torch.empty(num_distances).normal_(std=DISTANCE_STD))
        self.gaps: GapTable | None = None

    def read_gaps(self, ticks: int) -> None:
        """Let the time between two events change their score, by one number for all heads; see `GapTable`."""
        self.gaps = GapTable(1, ticks)

    def forward(self, x: Tensor, valid: None = None, times: Times | None = None) -> Tensor:
        """Map (B, L, D), padded on the right, to (B, L, D); `times` are for `read_gaps`."""
        gate, query, key, value = self._projected(x)
        if self.gaps is None:
            return self._output(pointwise_attention(query, key, value, self.distances), gate)
        gaps, boundaries = self.gaps.weight[:, 0], self.gaps.buckets.boundaries
        mixed = pointwise_attention(
            query, key, value, self.distances, gaps=gaps, times=needed(times)[0], boundaries=boundaries
        )
        return self._output(mixed, gate)

    def newest(self, x: Tensor, lengths: Tensor, times: Times | None = None) -> Tensor:
        """Return `forward` at each row's newest event (B, 1, D): one query per row instead of L.

        Args:
            x: (B, L, D), padded on the right.
            lengths: (B,) events per row, at least 1.
            times: For `read_gaps`.
        """
        newest, width = (lengths - 1).unsqueeze(1), x.shape[2]
        one = x.gather(1, newest.unsqueeze(2).expand(-1, -1, width))
        (u, v, q, k), biases = (torch.split(each, width) for each in self.in_projection.parameters())
        gate, query = (F.silu(linear(one, w, b)) for w, b in ((u, biases[0]), (q, biases[2])))
        value, key = (F.silu(linear(x, w, b)) for w, b in ((v, biases[1]), (k, biases[3])))
        query, key, value = (self._heads(each) for each in (query, key, value))
        distance = newest - torch.arange(x.shape[1], device=x.device)
        own, moments = None, None
        if self.gaps is not None:
            moments = needed(times)[0]
            own = moments.gather(1, newest)
        distance = distance[:, None, None, :]
        return self._output(self._attend(query, own, Slots(key, value, moments, distance >= 0, distance)), gate)

    def zero_state(self, batch_size: int, max_length: int, like: Tensor) -> Tensors:
        """Return an empty window; see `Streamed.zero_state`."""
        width = self.in_projection.in_features // self.num_heads
        return empty_window((batch_size, self.num_heads, max_length, width), like, times=self.gaps is not None)

    def advance(self, x: Tensor, valid: Tensor | None, state: Tensors, *times: Times) -> tuple[Tensor, Tensors]:
        """Compute further events; see `Streamed.advance`."""
        gate, query, key, value = self._projected(x)
        moments = None if self.gaps is None else needed(*times)[0]
        mixed, state = attend_further(self._attend, query, key, value, valid, moments, state)
        return self._output(mixed, gate), state

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gate (B, L, D), and queries, keys and values (B, H, L, D / H), of (1)."""
        gate, value, query, key = F.silu(self.in_projection(x)).chunk(4, dim=-1)
        return gate, self._heads(query), self._heads(key), self._heads(value)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _attend(self, query: Tensor, times: Tensor | None, slots: Slots) -> Tensor:
        """Compute (2) in float32 at least for queries (B, H, Q, D / H) at times (B, Q) that see some slots."""
        bias = at_least_float32(self.distances[slots.distance.clamp(0, len(self.distances) - 1)])
        if self.gaps is not None and times is not None and slots.times is not None:
            bias = bias + self.gaps.of_pairs(times, slots.times)
        with without_autocast(query.device.type):
            wide, keys, values = map(at_least_float32, (query, slots.keys, slots.values))
            return weigh(wide, keys, values, bias, slots.seen).to(query.dtype)

    def _output(self, mixed: Tensor, gate: Tensor) -> Tensor:
        """Compute (3) of heads (B, H, L, D / H) and the gate (B, L, D)."""
        merged = self.norm(mixed.transpose(1, 2).flatten(2)) * gate
        out: Tensor = self.out_projection(self.dropout(merged))
        return out
