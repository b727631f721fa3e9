"""What the adapters to packages of CUDA kernels share: importing a function, and why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable
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
