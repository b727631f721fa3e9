"""Whether weights are numbers."""

from __future__ import annotations

import torch
from torch import nn


def all_finite(module: nn.Module) -> bool:
    """Whether all of a module's parameters are finite; looks at 2^24 numbers at a time."""
    parts = (
        part for weight in module.parameters() for part in torch.split(weight.detach().flatten(), 1 << 24)
    )
    return all(bool(torch.isfinite(part).all()) for part in parts)
