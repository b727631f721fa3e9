"""Time, memory and small tensors of a running step, read without slowing it.

Importing this file does not import torch, which would count in the memory of a process that needs none.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PhaseClock:
    """Adds up seconds by phase; an inner phase stops the outer one's clock until it ends.

    `synchronise` waits for the device; it is called when a phase starts or ends, and when seconds are read.
    """

    def __init__(self) -> None:
        self.synchronise: Callable[[], None] | None = None
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, up to now for open phases."""
        self._settle()
        return dict(self._seconds)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def start(self, phase: str) -> None:
        """Start a phase."""
        self._settle()
        self._open.append(phase)

    def stop(self, phase: str) -> None:
        """End a phase and its open inner phases; do nothing if it is not open."""
        if phase in self._open:
            self._settle()
            del self._open[self._open.index(phase) :]

    def stop_all(self) -> None:
        """End all phases without waiting for the device, which may have failed."""
        self.synchronise = None
        self._settle()
        self._open.clear()

    def restore(self, seconds: dict[str, float]) -> None:
        """Replace the seconds so far by those of a checkpoint."""
        self._settle()
        self._seconds = dict(seconds)

    def _settle(self) -> None:
        if self._open and self.synchronise is not None:
            self.synchronise()
        now = time.perf_counter()
        if self._open:
            self.add(self._open[-1], now - self._since)
        self._since = now


class PendingCopy:
    """Copies a small tensor, of any shape and device, to the CPU without stalling the GPU.

    Reading a GPU's tensor makes Python wait for all operations launched so far, and nothing is launched meanwhile.
    This class starts the copy when it is created; the tensor must not change until it is read. Reading waits only for
    operations launched before the copy; those launched since keep the GPU busy.
    """

    def __init__(self, value: Tensor) -> None:
        value = value.detach()
        self._event: torch.cuda.Event | None = None
        if value.device.type == "cuda":
            import torch

            # torch uses page-locked memory for such a copy; without it Python would wait here.
            self._value = value.to("cpu", non_blocking=True)
            self._event = torch.cuda.current_stream(value.device).record_event()
        else:
            self._value = value.cpu()

    def read(self) -> Tensor:
        """Return the tensor on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._value


def peak_resident_bytes() -> int:
    """Return the most memory of this process that was resident at a time, in bytes.

    On Linux it is the kernel's high-water mark, which writing 5 to `/proc/self/clear_refs` resets. `getrusage`, used
    elsewhere, has no reset, and on Linux would include the memory of the process that started this one.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # macOS counts in bytes, other systems in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_peaks(device: torch.device) -> list[int]:
    """Return peak bytes: resident memory, tensors on the GPU, and memory that torch kept there; 0 without a GPU."""
    if device.type != "cuda":
        return [peak_resident_bytes(), 0, 0]
    import torch

    return [peak_resident_bytes(), torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
