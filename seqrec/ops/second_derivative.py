"""Refusal of what hand-written backward passes do not have."""

from __future__ import annotations

import torch


def refuse_second_derivative(reason: str) -> None:
    """Raise NotImplementedError in a backward pass that is to be differentiated.

    torch's `once_differentiable` lets a derivative of the gradient vanish where the incoming gradient is constant.

    Args:
        reason: Who has none, and what to do.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(reason)
