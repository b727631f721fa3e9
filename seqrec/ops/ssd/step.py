"""One event of a state-space-dual scan. Shapes: B batch, H heads, P head width, G groups, N states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.export import without_autocast
from seqrec.ops.problems import check_shapes
from seqrec.ops.selective_scan.problem import step_sizes
from seqrec.ops.ssd.problem import check_groups


def ssd_step(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` of one event: what serving does when a user acts.

    Its cost does not depend on how many events came before. Plain torch on any device; `state` is not written to.

    Args:
        x: (B, H, P) input.
        delta: (B, H) step size before bias and softplus.
        A: (H,).
        B: (B, G, N) input weights.
        C: (B, G, N) output weights.
        state: (B, H, P, N) behind the events so far; zeros before the first.
        D: (H,) skip weights or None.
        z: (B, H, P) gate or None.
        delta_bias: (H,) or None.
        delta_softplus: Whether the step size goes through softplus.

    Returns:
        y (B, H, P) in x's dtype, and the state behind this event (B, H, P, N), in float32 at least.

    Raises:
        InputError: a shape, device or kind of number that does not fit.
    """
    if x.dim() != 3:
        raise InputError(f"x must be (B, H, P), got {tuple(x.shape)}")
    batch, heads, width = x.shape
    groups, states = check_groups(B, heads, leading=1)
    given = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "state": state}
    shapes: dict[str, tuple[int, ...]] = {"x": (batch, heads, width), "delta": (batch, heads), "A": (heads,)}
    shapes |= {"B": (batch, groups, states), "C": (batch, groups, states)}
    shapes |= {"state": (batch, heads, width, states), "D": (heads,), "z": (batch, heads, width)}
    shapes |= {"delta_bias": (heads,)}
    check_shapes({**given, "D": D, "z": z, "delta_bias": delta_bias}, shapes, x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with without_autocast(x.device.type):
        wide = x.to(dtype)
        bias = None if delta_bias is None else delta_bias.to(dtype)
        step = step_sizes(delta.to(dtype), bias, delta_softplus)
        B, C = (weights.to(dtype).repeat_interleave(heads // groups, 1) for weights in (B, C))
        decay = torch.exp(step * A.to(dtype))[..., None, None]
        state = decay * state.to(dtype) + (step.unsqueeze(-1) * wide).unsqueeze(-1) * B.unsqueeze(2)
        y = (state @ C.unsqueeze(-1)).squeeze(-1)
        if D is not None:
            y = torch.addcmul(y, wide, D.to(dtype).unsqueeze(-1))
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), state
