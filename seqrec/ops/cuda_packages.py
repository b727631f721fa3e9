"""What the adapters to packages of CUDA kernels share: importing a function, and why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch


def load_function(module: str, name: str) -> tuple[Callable[..., Any] | None, str]:
    """A package's function, or None and the reason, with the fix.

    Args:
        module: Dotted name; its first part is the package.
        name: The function's.
    """
    package = module.partition(".")[0]
    project = package.replace("_", "-")
    try:
        function: Callable[..., Any] | None = getattr(import_module(module), name)
    except Exception as error:  # A build for another torch fails in ways of its own.
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return None, f'{project} is not installed; see the README on "seqrec[cuda]"'
        return None, f"{project} cannot be imported: {error}; see the README on which versions fit"
    if function is None:
        return None, f"{project} was built without its kernels; see the README on which versions fit"
    return function, ""


def device_lacks() -> str | None:
    """Why no kernel of these packages can be used now, whatever is installed; None where they can be.

    Their backward passes add up in no fixed order.
    """
    if not torch.cuda.is_available():
        return "its kernels need a CUDA device, and torch sees none"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic, which torch.use_deterministic_algorithms(True) asks for"
    return None


@contextmanager
def alone() -> Iterator[None]:
    """Where kernels are tried out at their first use: gradients can be had, and nothing of the caller is in the way.

    Modes would change what the trial computes, and what it saves for its gradients is none of the tensors that
    checkpointing counts of a block.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cuda", enabled=False),
        torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
    ):
        yield


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x
