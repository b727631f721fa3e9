"""Provenance of a run: versions, machine, commit and model size."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seqrec.catalogue.table import ItemEmbedding

PACKAGES = ("seqrec", "torch", "lightning", "torchmetrics", "polars", "numpy")
# Children of a recommender that hold item vectors.
ITEM_TABLES = ("items", "output_items")
# Seconds that git may take; a summary is not worth more.
GIT_PATIENCE = 10


def package_version(package: str) -> str:
    """Return the version of an installed package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}


def hardware() -> dict[str, Any]:
    """Return `cpu` (name), `cores` (usable by this process), `threads` (torch's) and `gpus` (names of all visible)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def git_state(folder: Path | str = ".") -> dict[str, Any] | None:
    """Return `commit`, the hash of a folder's checkout, and `dirty`, whether tracked files differ from it.

    None without git or a commit.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(folder: Path | str, *words: str) -> str:
    # Without locks, which would make the user's own git commands fail meanwhile.
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=GIT_PATIENCE).stdout


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(named), platform.processor() or platform.machine())


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return the model's parameters, all rows of sharded tables included: `total`, `item_table`, `encoder` and `other`.

    A recommender has children `items`, `output_items` and `encoder`; all parameters of another model are `other`.
    """
    children = {name: _count(child) for name, child in model.named_children()}
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    total = own + sum(children.values())
    table = sum(children.get(name, 0) for name in ITEM_TABLES)
    encoder = children.get("encoder", 0)
    return {"total": total, "item_table": table, "encoder": encoder, "other": total - table - encoder}


def _count(module: nn.Module) -> int:
    if isinstance(module, ItemEmbedding):
        content = [] if module.content is None else module.content.parameters()
        return (module.num_items + 1) * module.weight.shape[1] + sum(weight.numel() for weight in content)
    return sum(parameter.numel() for parameter in module.parameters())
