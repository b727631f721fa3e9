"""Time and memory of functions: in a process of their own with a limit, or of one call in this process.

A fresh process starts from the same memory whatever ran before it, and one that reaches its limit harms no other.
Memory is read through psutil. Memory limits and `peak_bytes` on a CPU need Linux.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

import psutil

from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Show
from seqrec.errors import InputError
from seqrec.runs.measurement import peak_resident_bytes

if TYPE_CHECKING:
    import torch

LIMITED_BY = "RLIMIT_DATA"
_POLL_SECONDS = 0.01
# Messages of allocators: CPython and numpy, Rust (polars), the kernel through the C library.
_OUT_OF_MEMORY = ("MemoryError", "memory allocation of", "Cannot allocate memory", "can't allocate memory")
# Polars' allocator keeps the addresses of memory that it has returned, and the limit counts addresses.
_LIMITED_ENVIRONMENT = {"_RJEM_MALLOC_CONF": "retain:false"}
# Share of the machine's memory that a child without a limit leaves free.
_SPARED_SHARE = 0.05


class MemoryLimitError(InputError):
    """A measured process reached its memory limit, or the machine ran out of memory."""


@dataclass(frozen=True)
class Measurement:
    """Time and memory of a call in a process of its own, without the start of the process and its imports.

    Attributes:
        peak_anonymous: Bytes, most memory without pages of files, read 100 times a second. The system drops pages
            of files when it needs room.
        peak_resident: Bytes, most memory of every kind, pages of mapped files included.
        anonymous_before: Bytes of memory without pages of files when the call began: interpreter and imports.
    """

    seconds: float
    peak_anonymous: int
    peak_resident: int
    anonymous_before: int
    value: Any


def run_measured(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    memory_limit: int | None = None,
    show: Show | None = None,
) -> Measurement:
    """Call a function, at the top level of a module, in a process of its own. Imports are not timed.

    The kernel enforces the limit in bytes, RLIMIT_DATA, which is set before the child begins its work. It counts
    private writable memory of the child, touched or not, with interpreter and imports, but no pages of mapped files. It
    is therefore stricter than a limit on resident memory. A child without a limit is killed if less than a twentieth of
    the machine's memory is available.

    Arguments and result are plain JSON values. `show` is called again and again while the function runs, with the last
    line that it has printed, "" before the first.

    Raises:
        MemoryLimitError: if the child needs more than its limit, or the machine runs out of memory.
        InputError: if the function raises one, or `memory_limit` is given on a system other than Linux.
        RuntimeError: if the function fails in another way; the message contains its traceback.
    """
    if memory_limit is not None and not hasattr(psutil, LIMITED_BY):
        raise InputError(f"memory_limit needs {LIMITED_BY}, which only Linux has; measure there")
    with tempfile.TemporaryDirectory(prefix="seqrec-measured-") as folder, tempfile.TemporaryFile() as errors:
        reply = Path(folder, "reply.json")
        name = f"{function.__module__}:{function.__qualname__}"
        task = {"function": name, "arguments": dict(arguments), "reply": str(reply)}
        child = subprocess.Popen(
            [sys.executable, "-m", "seqrec.benchmark.measurement"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **({} if memory_limit is None else _LIMITED_ENVIRONMENT)},
            text=True,
        )
        try:
            if memory_limit is not None:
                psutil.Process(child.pid).rlimit(psutil.RLIMIT_DATA, (memory_limit, memory_limit))
            spared = int(psutil.virtual_memory().total * _SPARED_SHARE) if memory_limit is None else 0
            peak = _watch(child, json.dumps(task), spared, show)
        finally:
            child.kill()
            child.wait()
        if child.returncode != 0:
            errors.seek(0)
            raise _failure(child.returncode, errors.read().decode(errors="replace"), memory_limit, peak)
        answer = json.loads(reply.read_text(encoding="utf-8"))
    if "refused" in answer:
        if any(sign in answer["refused"] for sign in _OUT_OF_MEMORY):
            raise _limit_error(answer["refused"], memory_limit, peak)
        raise InputError(answer["refused"])
    return Measurement(peak_anonymous=max(peak, answer["anonymous_before"]), **answer)


def anonymous_bytes(process: int | None = None) -> int:
    """Return the memory that a process, None is this one, holds now without pages of files; 0 if it has ended."""
    try:
        memory = psutil.Process(process).memory_info()
    except psutil.NoSuchProcess:
        return 0
    # Only Linux reports pages that may be shared, which are those of files.
    return int(memory.rss - getattr(memory, "shared", 0))


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that a call on a device holds in addition to those held before it.

    On a CPU this is the process's resident memory, from the kernel's own high-water mark. On CUDA it is the memory of
    tensors. Make the call once before, to exclude objects that are built only once.

    Raises:
        InputError: if the system cannot reset the high-water mark of a process.
    """
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Otherwise memory that was freed but kept by the allocator would be reused unnoticed.
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise InputError(f"memory is read from /proc/self, which only Linux has: {error}; measure there") from None
    before = psutil.Process().memory_info().rss
    call()
    return max(0, peak_resident_bytes() - before)


def timed(call: Callable[[], object], device: torch.device | str) -> float:
    """Return the seconds of a call, with a CUDA device synchronised before and after."""
    import torch

    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if on_cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _watch(child: subprocess.Popen[str], task: str, spared: int, show: Show | None) -> int:
    # Hand over the task, and wait. Kill the child if less than `spared` is left. Return the most memory seen.
    assert child.stdin is not None
    assert child.stdout is not None
    printed = [""]
    lines = Thread(target=_keep_last, args=(child.stdout, printed), daemon=True)
    lines.start()
    try:
        child.stdin.write(task)
        child.stdin.close()
    except BrokenPipeError:
        pass  # The child died at its start, which its exit status reports.
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        if spared and psutil.virtual_memory().available < spared:
            child.kill()
        if show is not None:
            show(printed[0])
        time.sleep(_POLL_SECONDS)
    lines.join()
    if show is not None:
        show(printed[0])
    return peak


def _keep_last(lines: IO[str], kept: list[str]) -> None:
    with lines:
        for line in lines:
            kept[0] = line.strip() or kept[0]


def _failure(returncode: int, errors: str, memory_limit: int | None, peak: int) -> Exception:
    for line in errors.splitlines():
        if any(sign in line for sign in _OUT_OF_MEMORY):
            return _limit_error(line.strip(), memory_limit, peak)
    if returncode == -9:
        return _limit_error("killed, as too little was left of the machine's memory", memory_limit, peak)
    return RuntimeError(f"a measured process ended with status {returncode}:\n{errors[-8000:]}")


def _limit_error(reason: str, memory_limit: int | None, peak: int) -> MemoryLimitError:
    limit = "without a limit" if memory_limit is None else f"under memory_limit={spoken_bytes(memory_limit)}"
    held = f"it held {spoken_bytes(peak)} when last seen"
    return MemoryLimitError(f"not enough memory {limit} ({reason}); {held}; give it more memory")


def _answer(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    # Runs in the child.
    before = anonymous_bytes()
    began = time.perf_counter()
    try:
        value = function(**arguments)
    except InputError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_resident": peak_resident_bytes(), "anonymous_before": before, "value": value}


def main() -> None:
    """Run one task from standard input in this process, and write the answer into the file that the task names."""
    task = json.load(sys.stdin)
    function = pkgutil.resolve_name(task["function"])
    Path(task["reply"]).write_text(json.dumps(_answer(function, task["arguments"])), encoding="utf-8")


if __name__ == "__main__":
    main()
