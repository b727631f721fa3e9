"""Adapters to packages of CUDA kernels: import a function, and find out why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from seqrec.ops.backends import Backend, Function


def load_function(module: str, name: str) -> tuple[Callable[..., Any] | None, str]:
    """Return a package's function, or None and the reason, with the fix; the reason is empty if there is a function.

    Args:
        module: Dotted name; its first part is the package.
        name: Name of the function.
    """
    package = module.partition(".")[0]
    project = package.replace("_", "-")
    try:
        function: Callable[..., Any] | None = getattr(import_module(module), name)
    except Exception as error:  # A build for another version of torch can fail in any way.
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return None, f'{project} is not installed; see the README on "seqrec[cuda]"'
        return None, f"{project} cannot be imported: {error}; see the README on which versions fit"
    if function is None:
        return None, f"{project} was built without its kernels; see the README on which versions fit"
    return function, ""


def package_backend(
    name: str, function: Function, missing: Callable[[], str | None], unsupported_args: Iterable[str]
) -> Backend[Function]:
    """Describe an op's backend that calls a package; see `Backend` for each argument."""
    return Backend(
        name,
        function,
        "float32 on cuda",
        supports=lambda device, dtype: device == "cuda" and dtype == torch.float32,
        missing=missing,
        unsupported_args=frozenset(unsupported_args),
        extra=True,
    )


def why_no_device() -> str | None:
    """Return why no kernel of these packages can be used now, even if it is installed; None if it can be.

    Their backward passes sum in no fixed order.
    """
    if not torch.cuda.is_available():
        return "its kernels need a CUDA device, and torch finds none"
    if torch.are_deterministic_algorithms_enabled():
        return "its backward is not deterministic, as torch.use_deterministic_algorithms(True) requires"
    return None


@contextmanager
def isolated() -> Iterator[None]:
    """Context in which kernels are tried out at their first use: with gradients, and without the caller's modes.

    Modes would change the result of the trial, and activation checkpointing would count the tensors that it saves.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cuda", enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
    ):
        yield


def kernel_fault(
    run: Callable[[], Iterable[torch.Tensor]], expected: Iterable[torch.Tensor], *, rtol: float, atol: float
) -> str | None:
    """Return the fault of kernels on a device, since a package that imports may still not run there; None if none.

    Args:
        run: Computes a small problem by the kernels.
        expected: Results of the reference, on CPU.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """
    try:
        found = run()
    except Exception as error:
        return f"its kernels do not run on this device: {error}"
    for actual, value in zip(found, expected, strict=True):
        if not torch.allclose(actual.cpu(), value, rtol=rtol, atol=atol):
            return "its kernels compute something else than the reference on this device"
    return None
