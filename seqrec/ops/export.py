"""Ops while `torch.export` traces a model: plain torch, for any number of events. B batch, L events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Return True while `torch.export` traces the call.

    The exported program must run without seqrec, so it may not contain our kernels. It must also accept any number of
    events, so it may not contain an unrolled loop over events.
    """
    # Not `torch.compiler.is_exporting()`, which torch.compile takes for True before torch 2.13 (pytorch#176347).
    # torch 2.6 has neither.
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Turn autocast off for computations that need full precision; do nothing during export, which would record it."""
    return nullcontext() if is_exporting() else torch.autocast(device, enabled=False)


def scan_events(
    combine: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]],
    initial: Tensor,
    events: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Run `state, out_t = combine(state, events_t)` over the events as one operator, which ONNX calls Scan.

    Only for tracing: run eagerly it is slower than a loop.

    Args:
        combine: Maps a state and one event of each of `events` to the next state and an output, which may not share
            memory with the state.
        initial: State before the first event.
        events: Tensors (B, L, ...).

    Returns:
        Outputs (B, L, ...) and the last state.
    """
    from torch._higher_order_ops import scan

    last, outputs = scan(combine, initial, tuple(x.transpose(0, 1) for x in events))
    return outputs.transpose(0, 1), last
