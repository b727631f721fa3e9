"""Triton kernels: whether they run on this machine, and the device that they start on. Does not import triton."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from seqrec.ops.backends import Backend, Function

# The first version with a compiler that accepts our kernels.
OLDEST = (3, 4)
DEVICES = ("cuda", "cpu")
# Types of activations that kernels read and write without a cast, and compute with in float32.
LOW_PRECISION = (torch.float16, torch.bfloat16)


def interprets() -> bool:
    """Return True if TRITON_INTERPRET makes Triton interpret kernels on the CPU, as tests do."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def supports(device: str, dtype: torch.dtype, dtypes: Collection[torch.dtype] = (torch.float32,)) -> bool:
    """Return True if kernels of some dtypes can compute on a device type in a dtype."""
    return device == ("cpu" if interprets() else "cuda") and dtype in dtypes


@functools.cache
def missing(load: Callable[[], object]) -> str | None:
    """Return why kernels are unavailable, with the fix; None if they are available.

    Args:
        load: Imports the kernels.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; torch for CUDA on Linux brings it, else `pip install triton`"
    if not interprets():
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < (7, 0):
            return "triton needs a GPU of compute capability 7.0 or more"
        if "CC" not in os.environ and not shutil.which("gcc") and not shutil.which("clang"):
            return "triton needs a C compiler to start its kernels; install gcc or clang, or set CC"
    try:
        version = importlib.import_module("triton").__version__
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
            return f"triton {version} is too old; torch 2.8 or later brings a newer one"
        load()
    except Exception as error:  # A triton that does not fit this torch or this machine can fail in any way.
        return f"triton does not load ({type(error).__name__}: {error}); install the one your torch was made with"
    return None


def triton_backend(
    function: Function,
    load: Callable[[], object],
    unsupported_args: frozenset[str] = frozenset(),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    narrow: tuple[torch.dtype, ...] = (),
) -> Backend[Function]:
    """Describe an op's backend "triton", for a function that starts the kernels that `load` imports.

    Args:
        function: As in `Backend`, and so are `unsupported_args` and `narrow`.
        load: Imports the kernels.
        unsupported_args: What it does not support.
        dtypes: Dtypes that it computes in.
        narrow: 16-bit dtypes that it reads and writes too.
    """
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return Backend(
        "triton",
        function,
        f"{names} on cuda, or only on cpu if TRITON_INTERPRET=1",
        supports=functools.partial(supports, dtypes=dtypes),
        missing=functools.partial(missing, load),
        unsupported_args=unsupported_args,
        never_auto=frozenset({"cpu"}),
        narrow=narrow,
    )


def programs_at_once(device: torch.device, programs: int) -> int:
    """Return the programs that run at the same time on a device, of so many per multiprocessor; 1 in the interpreter.

    Args:
        device: Where they run.
        programs: Programs of a multiprocessor.
    """
    if device.type == "cpu":
        return 1
    return programs * torch.cuda.get_device_properties(device).multi_processor_count


def power_of_two(size: int, least: int = 1) -> int:
    """Return the least power of two that is at least `size` and `least`, a power of two."""
    return max(1 << max(size - 1, 0).bit_length(), least)


def dot_precision() -> str:
    """Return how Triton multiplies matrices of float32, as `torch.set_float32_matmul_precision` asks.

    Three TF32 products of the halves of each factor lose one bit of float32, not the 13 of a single one.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@contextlib.contextmanager
def launching_on(x: Tensor) -> Iterator[None]:
    """Start kernels on a tensor's device instead of the current one.

    NumPy, which interprets kernels on the CPU, may then overflow without a warning, as a GPU does.
    """
    with torch.cuda.device(x.device if x.is_cuda else -1), np.errstate(all="ignore"):
        yield
