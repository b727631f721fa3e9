"""What a run was made with: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("seqrec", "torch", "lightning", "torchmetrics", "polars", "numpy")
# Seconds that git may take; a summary is not worth more.
GIT_PATIENCE = 10


def package_version(package: str) -> str:
    """Version of an installed package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}


def hardware() -> dict[str, Any]:
    """`cpu`: name; `cores`: those that this process may use; `threads`: torch's; `gpus`: names of all visible."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def git_state(folder: Path | str = ".") -> dict[str, Any] | None:
    """Commit of the checkout that a folder lies in.

    Args:
        folder: The folder.

    Returns:
        `commit`, its hash, and `dirty`, whether tracked files differ from it; None without git or a commit.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(folder: Path | str, *words: str) -> str:
    # Without locks, so that a git of the user beside it does not fail.
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=GIT_PATIENCE
    ).stdout


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())
