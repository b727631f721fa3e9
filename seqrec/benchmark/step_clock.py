"""Time of training steps, and the work of some further ones as torch's profiler records it."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Steps in which memory is first taken, kernels are compiled and graphs are recorded, before any is timed.
WARM_UP_STEPS = 2
# Steps that are profiled.
PROFILED_STEPS = 3
# Calls of CUDA that launch something, and those in which Python waits.
_LAUNCH = re.compile(r"Launch|MemcpyAsync|MemsetAsync")
_WAIT = re.compile(r"(Stream|Event)Synchronize")
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class StepClock:
    """Times steps in a few windows, then profiles some, whoever runs them: call `start_step` and `finish_step`.

    On a GPU a window has several steps, and Python waits for the device only between windows, so launches of a step
    overlap with work of the one before, as in a run. On a CPU each step is a window.

    Args:
        device: Device.
        steps: Timed steps.
        profiled: Profiled steps; on a GPU one more, which is slower, comes before them.

    Attributes:
        first_seconds: Of the first step.
        step_seconds: Mean of each window.
        device_bytes: Most memory of tensors up to the last timed step, None on a CPU.
        reserved_bytes: Most memory that torch kept, likewise.
        figures: Of the profiled steps: those of `read_trace`, or `ops` on a CPU.
    """

    def __init__(self, device: torch.device, steps: int, *, profiled: int = PROFILED_STEPS) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        self.first_seconds = 0.0
        self.step_seconds: list[float] = []
        self.device_bytes: int | None = None
        self.reserved_bytes: int | None = None
        self.figures: dict[str, Any] = {}
        self._window = max(1, steps // 3) if on_gpu else 1
        self._timed = WARM_UP_STEPS + steps // self._window * self._window
        self._unsettled, self._profiled = int(on_gpu and profiled > 0), profiled
        self._losses: list[Tensor] = []
        self._step, self._mark = 0, 0.0
        self._profiler: Any = None
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def total_steps(self) -> int:
        """Steps to run."""
        return self._timed + self._unsettled + self._profiled

    @property
    def losses(self) -> list[float]:
        """Losses of all steps but the profiled ones."""
        return torch.stack(self._losses).tolist() if self._losses else []

    def start_step(self) -> None:
        """Begin a step."""
        if self._step == 0:
            self._mark = self._now()
        elif self._step == 1:
            self.first_seconds = self._now() - self._mark
        self._end_window()
        if self._timed <= self._step <= self._timed + self._unsettled:
            self._start_profiler()
            self._mark = self._now()

    def finish_step(self, loss: Tensor) -> None:
        """End it."""
        if self._step < self._timed:
            self._losses.append(loss.detach().float().clone())
        self._step += 1
        if self._step == self.total_steps:
            host_seconds = time.perf_counter() - self._mark
            self._end_window()
            if self._profiler is not None:
                self._now()
                self._profiler.stop()
                self.figures = self._read_profile(host_seconds)

    def _end_window(self) -> None:
        # A window reaches to the start of the step after it, so that loading and callbacks count.
        since = self._step - WARM_UP_STEPS
        if since < 0 or since % self._window or self._step > self._timed:
            return
        now = self._now()
        if since and len(self.step_seconds) < since // self._window:
            self.step_seconds.append((now - self._mark) / self._window)
            self._read_memory()
        self._mark = now

    def _start_profiler(self) -> None:
        self._now()
        if self._profiler is not None:
            self._profiler.stop()
        # Of a GPU alone, since recording each operation of Python would double the time that Python takes.
        self._profiler = profile(activities=[getattr(ProfilerActivity, self.device.type.upper())])
        self._profiler.start()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _read_memory(self) -> None:
        if self.device.type == "cuda":
            self.device_bytes = torch.cuda.max_memory_allocated(self.device)
            self.reserved_bytes = torch.cuda.max_memory_reserved(self.device)

    def _read_profile(self, host_seconds: float) -> dict[str, Any]:
        if self.device.type == "cpu":
            ops = sum(event.name.startswith("aten::") and not _inside_op(event) for event in self._profiler.events())
            return {"ops": ops / self._profiled}
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder, "trace.json"))
            self._profiler.export_chrome_trace(file)
            events = json.loads(Path(file).read_text(encoding="utf-8"))["traceEvents"]
        return read_trace(events, host_seconds, self._profiled)


def read_trace(events: Iterable[Mapping[str, Any]], host_seconds: float, steps: int) -> dict[str, Any]:
    """Return figures per step from the events of a trace in Chrome's format.

    Args:
        events: Events of CUDA's calls and of the device; times in microseconds.
        host_seconds: Time that Python took for all steps, with what it waited for.
        steps: Number of steps.

    Returns:
        `kernels`, kernels and copies that ran; `busy_seconds`, time in which at least one ran; `launches`, calls that
        launched them, in which a graph is one; `python_seconds`, time in which Python did not wait for the device. The
        last two are None if the trace has no calls.
    """
    spans: list[tuple[float, float]] = []
    launches, calls, waited = 0, 0, 0.0
    for event in events:
        kind, name = event.get("cat"), str(event.get("name"))
        if kind in _ON_DEVICE:
            spans.append((event["ts"], event["ts"] + event["dur"]))
        elif kind in ("cuda_runtime", "cuda_driver"):
            calls += 1
            launches += bool(_LAUNCH.search(name))
            waited += event["dur"] if _WAIT.search(name) else 0.0
    return {
        "kernels": len(spans) / steps,
        "busy_seconds": _covered(spans) / 1e6 / steps,
        "launches": launches / steps if calls else None,
        "python_seconds": (host_seconds - waited / 1e6) / steps if calls else None,
    }


def _inside_op(event: Any) -> bool:
    """Return whether one of torch's operations called an event of the profiler."""
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith("aten::") or _inside_op(parent))


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


class ClockCallback(pl.Callback):
    """Runs a `StepClock` in Lightning's trainer."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin a step."""
        self.clock.start_step()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End it."""
        self.clock.finish_step(outputs["loss"])
