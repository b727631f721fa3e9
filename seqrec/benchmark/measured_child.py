"""Functions run in a process of their own, timed, their memory watched and limited from outside.

A fresh process starts from the same memory whatever ran before it, and one that hits its limit takes nothing
with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import IO, Any

from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.progress import Show
from seqrec.errors import InputError

LIMITED_BY = "RLIMIT_DATA"
_PROC = Path("/proc")
_POLL_SECONDS = 0.01
# What allocators say: CPython and numpy, Rust (polars), the kernel by way of the C library.
_OUT_OF_MEMORY = ("MemoryError", "memory allocation of", "Cannot allocate memory", "can't allocate memory")
# Polars' allocator keeps the addresses of memory that it has given back, and the limit counts addresses.
_LIMITED_ENVIRONMENT = {"_RJEM_MALLOC_CONF": "retain:false"}
# Of the machine's memory this share is left to others, also by a child without a limit.
_SPARED_SHARE = 0.05


class MemoryLimitError(InputError):
    """A measured process was ended by its memory limit, or by the system for want of memory."""


@dataclass(frozen=True)
class Measurement:
    """What a call in a process of its own took.

    Attributes:
        seconds: Time of the call, without the start of the process and its imports.
        peak_anonymous: Bytes, most anonymous and shared memory at any of the looks, 100 a second: what the
            process itself asked for, and no pages of files, which the system drops when it needs room.
        peak_resident: Bytes, most memory of every kind (VmHWM), pages of mapped files included.
        anonymous_before: Bytes of anonymous memory when the call began: interpreter and imports.
        value: What the function returned.
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
    imports: Sequence[str] = (),
    show: Show | None = None,
) -> Measurement:
    """Call a function in a process of its own.

    The limit is the kernel's: this process sets the child's RLIMIT_DATA before the child begins its work. It
    counts private writable memory, touched or not, of the child with interpreter and imports, so it is
    stricter than a limit on resident memory; pages of mapped files are no part of it. A child without a limit is
    ended when less than a twentieth of the machine's memory is available.

    Args:
        function: A function at the top level of a module that the child can import.
        arguments: Its arguments, plain values that JSON holds; so must be what it returns.
        memory_limit: Bytes; None is no limit.
        imports: Modules that are imported before the clock starts, beside the function's own.
        show: Takes each line that the function prints.

    Raises:
        MemoryLimitError: the child needed more than its limit, or the system ended it for want of memory.
        InputError: the function raised one, or this system has no `/proc`.
        RuntimeError: the function failed in another way; the message holds its traceback.
    """
    if not (_PROC / "self/status").exists():
        raise InputError(f"memory is read from {_PROC}/<process>/status, which only Linux has; measure there")
    import resource  # Windows, where nothing can be measured, has none.

    with tempfile.TemporaryDirectory(prefix="seqrec-measured-") as folder, tempfile.TemporaryFile() as errors:
        reply = Path(folder, "reply.json")
        child = subprocess.Popen(
            [sys.executable, "-m", "seqrec.benchmark.measured_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **({} if memory_limit is None else _LIMITED_ENVIRONMENT)},
            text=True,
        )
        try:
            if memory_limit is not None:
                resource.prlimit(child.pid, resource.RLIMIT_DATA, (memory_limit, memory_limit))
            task = {
                "function": [function.__module__, function.__qualname__],
                "arguments": dict(arguments),
                "imports": list(imports),
                "reply": str(reply),
            }
            spared = int(machine_bytes("MemTotal") * _SPARED_SHARE) if memory_limit is None else 0
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


def anonymous_bytes(process: int | str = "self") -> int:
    """Anonymous and shared memory of a process now; 0 where it is gone."""
    status = _status(process)
    return status.get("RssAnon", 0) + status.get("RssShmem", 0)


def machine_bytes(name: str) -> int:
    """Memory of the machine: `MemTotal`, or `MemAvailable`, what can still be had without swapping."""
    return _fields((_PROC / "meminfo").read_text(encoding="ascii"))[name]


def _watch(child: subprocess.Popen[str], task: str, spared: int, show: Show | None) -> int:
    # Hand over the task, and see the child to its end, or end it where too little is left of the machine's memory.
    # What comes back is the most anonymous memory that it had.
    assert child.stdin is not None
    assert child.stdout is not None
    lines = Thread(target=_forward, args=(child.stdout, show), daemon=True)
    lines.start()
    try:
        child.stdin.write(task)
        child.stdin.close()
    except BrokenPipeError:
        pass  # It died at its start; its exit status tells.
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        if spared and machine_bytes("MemAvailable") < spared:
            child.kill()
        time.sleep(_POLL_SECONDS)
    lines.join()
    return peak


def _forward(lines: IO[str], show: Show | None) -> None:
    with lines:
        for line in lines:
            if show is not None:
                show(line.rstrip("\n"))


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


def _status(process: int | str) -> dict[str, int]:
    try:
        return _fields((_PROC / f"{process}/status").read_text(encoding="ascii", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return {}


def _fields(text: str) -> dict[str, int]:
    # The sizes among the lines "VmHWM:    1024 kB", in bytes.
    fields = (line.split() for line in text.splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in fields if words[2:] == ["kB"]}


def _answer(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    # In the child: what goes back to the parent.
    before = anonymous_bytes()
    began = time.perf_counter()
    try:
        value = function(**arguments)
    except InputError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak_resident": _status("self")["VmHWM"],
        "anonymous_before": before,
        "value": value,
    }


def main() -> None:
    """Be the child: one task from standard input, its answer into the file that the task names."""
    task = json.load(sys.stdin)
    module, name = task["function"]
    function = getattr(import_module(module), name)
    for further in task["imports"]:
        import_module(further)
    answer = _answer(function, task["arguments"])
    Path(task["reply"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
