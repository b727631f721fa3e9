"""`seqrec doctor`: the fast paths of this machine, those in use, and why the others are not."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch

from seqrec.aliases import __version__
from seqrec.errors import InputError
from seqrec.ops import ALL_BACKENDS, compiled_library
from seqrec.ops.backends import Backends
from seqrec.runs.provenance import package_version

PACKAGES = ("torch", "lightning", "polars", "numpy", "triton", "mamba-ssm", "causal-conv1d")


@dataclass(frozen=True)
class OpReport:
    """The backends of one op on one kind of device, in float32.

    Attributes:
        op: The op.
        device: Device type.
        used: The backend that "auto" chooses; None if the environment variable names one that cannot run.
        because: The reason, or the problem with the variable.
        others: Other backend -> the reason that it is not used.
    """

    op: str
    device: str
    used: str | None
    because: str
    others: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The software and hardware that matter for speed.

    Attributes:
        seqrec: Version.
        python: Version.
        system: System and processor.
        packages: Package -> version, or "not installed".
        cpu: Threads and vector instructions that torch uses.
        compiled: The library of compiled CPU kernels in use, or the reason that none is.
        cuda: Names of the CUDA devices.
        ops: One report per op and device type; CUDA is listed on every machine, with what its backends lack.
    """

    seqrec: str
    python: str
    system: str
    packages: dict[str, str]
    cpu: str
    compiled: str
    cuda: list[str]
    ops: list[OpReport]

    @property
    def healthy(self) -> bool:
        """True if every op has a backend on every device of the machine."""
        return all(op.used is not None for op in self.ops if op.device == "cpu" or self.cuda)

    def as_text(self) -> str:
        """Return the report as text."""
        lines = [
            f"seqrec {self.seqrec}, Python {self.python}, {self.system}",
            ", ".join(f"{name} {number}" for name, number in self.packages.items()),
            f"cpu: {self.cpu}",
            f"compiled kernels: {self.compiled}",
            f"cuda: {', '.join(self.cuda) or 'no device'}",
        ]
        for report in self.ops:
            absent = " (no device)" if report.device == "cuda" and not self.cuda else ""
            used = f"{report.used or 'NOTHING'} ({report.because})"
            lines += ["", f"{report.op} on {report.device}{absent}: {used}"]
            width = max(map(len, report.others), default=0)
            lines += [f"  {name.ljust(width)}  {reason}" for name, reason in report.others.items()]
        return "\n".join(lines)


def examine() -> Report:
    """Return the report of this machine. Kernels of installed packages are tried once on the device."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Report(
        seqrec=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages={name: package_version(name) for name in PACKAGES},
        cpu=f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        compiled=compiled_library.variant() or f"none; {compiled_library.load_error()}",
        cuda=devices,
        ops=[_examine_op(backends, device) for backends in ALL_BACKENDS for device in ("cpu", "cuda")],
    )


def _examine_op(backends: Backends[Any], device: str) -> OpReport:
    dtype = torch.float32
    automatic = backends.auto(device, dtype)[0].name
    used: str | None = automatic
    because = f"{backends.variable} chooses another"
    if asked := os.environ.get(backends.variable):
        try:
            used = backends.choose("auto", device, dtype).name
            because = f"{backends.variable}={asked}; without it {automatic}"
        except InputError as error:
            used, because = None, str(error)
    reasons = {name: backends[name].why_unusable(device, dtype) for name in backends.names if name != used}
    others = {name: reason or "runs here too" for name, reason in reasons.items()}
    return OpReport(backends.op, device, used, because, others)
