"""The memory that preparation may take, and the memory that the process holds."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import psutil

from seqrec.errors import InputError

# The libraries, the reader's buffers and one partition do not fit in less.
MINIMUM = 1 << 30
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}


class MemoryLimit:
    """The bytes that the process may hold while it prepares a store.

    Args:
        memory_limit: Bytes, or text such as "3GiB" or "1500MB"; None is half of the machine's memory, or half of its
            control group's limit if that is smaller.

    Attributes:
        bytes: The limit.

    Raises:
        InputError: if the text is not a size, or if the limit is below 1 GiB.
    """

    def __init__(self, memory_limit: int | str | None = None) -> None:
        self.bytes = machine_memory() // 2 if memory_limit is None else parse_bytes(memory_limit)
        if self.bytes < MINIMUM:
            given = "half of this machine's memory" if memory_limit is None else f"memory_limit={memory_limit!r}"
            raise InputError(f"{given} is too little; preparation needs at least {spoken_bytes(MINIMUM)}")

    def room(self) -> int:
        """Return the bytes that are left of the limit, at least 0."""
        return max(self.bytes - resident_bytes(), 0)

    def require(self, needed: int, what: str) -> None:
        """Refuse to continue if `needed` more bytes, for `what` (a plural), exceed the limit.

        Raises:
            InputError: if they exceed it; the message names a sufficient limit.
        """
        held = resident_bytes()
        if held + needed > self.bytes:
            raise InputError(
                f"memory_limit={spoken_bytes(self.bytes)} is too little: {what} take "
                f"{spoken_bytes(needed)} besides the {spoken_bytes(held)} that the process holds; "
                f"give at least {spoken_bytes(held + needed)}"
            )


def parse_bytes(size: int | str) -> int:
    """Return a size in bytes; text is a number with or without a unit of B, KB, MB, GB, TB, KiB .. TiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", str(size).strip(), re.IGNORECASE)
    if not found or found[2].upper() not in _UNITS:
        raise InputError(f"memory_limit={size!r} is not a size in bytes; write it as 3GiB, 1500MB or 3221225472")
    return int(Decimal(found[1]) * _UNITS[found[2].upper()])


def spoken_bytes(size: int) -> str:
    """Return a size for people: "3.0 GiB", "120 MiB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if unit == 1 << 30 else f"{size / unit:.0f} {name}"
    return f"{size} bytes"


def machine_memory() -> int:
    """Return the bytes of memory that this process can get at most: the machine's or its control group's."""
    total = psutil.virtual_memory().total
    return min([total, *_control_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def resident_bytes() -> int:
    """Return the bytes that this process holds in memory now."""
    return int(psutil.Process().memory_info().rss)


def _control_group_limits(membership: Path, root: Path) -> list[int]:
    # Limits of the process's group and of all groups above it. psutil does not read them. Inside a container the path
    # is the host's and may not exist, but the root is the container's.
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts, name = [root, root / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            mounts, name = [root / "memory"], "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for mount in mounts:
            for folder in (group, *group.parents):
                try:
                    text = (mount / folder / name).read_text().strip()
                except OSError:
                    continue
                found += [int(text)] if text.isdigit() else []
    return found
