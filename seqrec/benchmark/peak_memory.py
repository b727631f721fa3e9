"""The most memory that one call in this process takes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from seqrec.errors import InputError

_PROC = Path("/proc/self")


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call holds at most, beside what was held before it.

    On CPU that is the process's resident memory, from the kernel's own high-water mark; on CUDA the memory of
    tensors.

    Args:
        call: What is measured. Call it once before, so that what is built but once does not count.
        device: Where it computes.

    Raises:
        InputError: this system does not let a process reset its high-water mark.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Memory that was freed but kept by the allocator would be taken again without a trace.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise InputError(
            f"memory is read from {_PROC}, which only Linux has: {error}; measure there"
        ) from None
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    lines = (_PROC / "status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
