"""One event of a selective scan. Shapes: B batch, D channels, N states a channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.errors import InputError
from seqrec.ops.export import without_autocast
from seqrec.ops.problems import check_shapes
from seqrec.ops.selective_scan.problem import step_sizes


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` of one event: what serving does when a user acts.

    Its cost does not depend on how many events came before. Plain torch on any device; `state` is not written to.

    Args:
        u: (B, D) input.
        delta: (B, D) step size before bias and softplus.
        A: (D, N).
        B: (B, N) input weights.
        C: (B, N) output weights.
        state: (B, D, N) behind the events so far; zeros before the first.
        D: (D,) skip weights or None.
        z: (B, D) gate or None.
        delta_bias: (D,) or None.
        delta_softplus: Whether the step size goes through softplus.
        check: False is for layers that make the operands themselves; checks would take a tenth of a step.

    Returns:
        y (B, D) in u's dtype, and the state behind this event (B, D, N), in float32 at least.

    Raises:
        InputError: a shape, device or kind of number that does not fit.
    """
    if check:
        given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "state": state}
        _check(u, A, {**given, "D": D, "z": z, "delta_bias": delta_bias})
    dtype = torch.promote_types(u.dtype, torch.float32)
    with without_autocast(u.device.type):
        wide = u.to(dtype)
        bias = None if delta_bias is None else delta_bias.to(dtype)
        step = step_sizes(delta.to(dtype), bias, delta_softplus)
        decay = torch.exp(step.unsqueeze(-1) * A.to(dtype))
        inputs = (step * wide).unsqueeze(-1)
        state = torch.addcmul(decay * state.to(dtype), inputs, B.to(dtype).unsqueeze(1))
        y = (state @ C.to(dtype).unsqueeze(-1)).squeeze(-1)
        if D is not None:
            y = torch.addcmul(y, wide, D.to(dtype))
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), state


def _check(u: Tensor, A: Tensor, operands: dict[str, Tensor | None]) -> None:
    """Refuse operands whose shapes do not follow from u and A."""
    if u.dim() != 2:
        raise InputError(f"u must be (B, D), got {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != u.shape[1]:
        raise InputError(f"A must be (D, N) with D = {u.shape[1]} from u, got {tuple(A.shape)}")
    (batch, channels), states = u.shape, A.shape[1]
    shapes: dict[str, tuple[int, ...]] = {"u": (batch, channels), "delta": (batch, channels)}
    shapes |= {
        "A": (channels, states),
        "B": (batch, states),
        "C": (batch, states),
        "state": (batch, channels, states),
    }
    shapes |= {"D": (channels,), "z": (batch, channels), "delta_bias": (channels,)}
    check_shapes(operands, shapes, u.device)
