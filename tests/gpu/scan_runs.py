"""A scan with its gradients, as tests on a GPU compare it."""

from __future__ import annotations

from collections.abc import Callable

import torch

ALWAYS = {"delta_softplus": True, "return_last_state": True}
FLAGS = ("valid", "start")


def run(
    op: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: dict[str, torch.Tensor],
    backend: str,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Both outputs of a scan and, by fixed weights on them, the gradients of all real inputs; all on CPU."""
    leaves = {name: x.to(device) for name, x in inputs.items()}
    real = {name: x.to(dtype).requires_grad_() for name, x in leaves.items() if name not in FLAGS}
    y, last = op(**{**leaves, **real}, **ALWAYS, backend=backend)
    weights = [torch.linspace(-1, 2, x.numel(), dtype=torch.float64).cos().view(x.shape) for x in (y, last)]
    torch.autograd.backward((y, last), [x.to(device, dtype) for x in weights])
    gradients = {name: x.grad for name, x in real.items()}
    return {name: x.detach().cpu() for name, x in {"y": y, "last": last, **gradients}.items()}
