"""How much memory preparation may take, and how much the process holds."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from seqrec.errors import InputError

# Below this not even the libraries, the reader's buffers and one partition fit side by side.
MINIMUM = 1 << 30
# What polars takes to stream a table, seen with 1 to 32 threads: so much, and so much more a thread.
READING = 256 << 20
READING_PER_THREAD = 32 << 20
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}
_NOT_LINUX = 512 << 20


class MemoryLimit:
    """The bytes that the process may hold while it prepares, and what is left of them.

    Args:
        memory_limit: Bytes, or text such as "3GiB" or "1500MB"; None takes half of the machine's memory, or
            of its control group's limit where that is smaller.

    Attributes:
        bytes: The limit.

    Raises:
        InputError: the text is no size, or the limit is below 1 GiB.
    """

    def __init__(self, memory_limit: int | str | None = None) -> None:
        self.bytes = machine_memory() // 2 if memory_limit is None else parse_bytes(memory_limit)
        if self.bytes < MINIMUM:
            given = (
                "half of this machine's memory" if memory_limit is None else f"memory_limit={memory_limit!r}"
            )
            raise InputError(f"{given} is too little; preparation needs at least {spoken_bytes(MINIMUM)}")

    def room(self) -> int:
        """Return the bytes that may still be taken, given what the process holds now; at least 0."""
        return max(self.bytes - resident_bytes(), 0)

    def require(self, needed: int, what: str) -> None:
        """Refuse to go on where `needed` bytes more do not fit.

        Args:
            needed: Bytes.
            what: What they are for, in the plural, for the message.

        Raises:
            InputError: they do not fit; the message says what limit would do.
        """
        held = resident_bytes()
        if held + needed > self.bytes:
            raise InputError(
                f"memory_limit={spoken_bytes(self.bytes)} is too little: {what} take "
                f"{spoken_bytes(needed)} beside the {spoken_bytes(held)} that the process holds; "
                f"give at least {spoken_bytes(held + needed)}"
            )


def parse_bytes(size: int | str) -> int:
    """Return a size in bytes; text is a number with or without a unit of B, KB, MB, GB, TB, KiB .. TiB.

    Raises:
        InputError: the text is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", str(size).strip(), re.IGNORECASE)
    if not found or found[2].upper() not in _UNITS:
        raise InputError(f"memory_limit={size!r} is no size in bytes; write it as 3GiB, 1500MB or 3221225472")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def spoken_bytes(size: int) -> str:
    """Return a size for people: "3.0 GiB", "120 MiB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if unit == 1 << 30 else f"{size / unit:.0f} {name}"
    return f"{size} bytes"


def machine_memory() -> int:
    """Return the bytes of memory that this process can get at most: the machine's or its control group's.

    Raises:
        InputError: the system does not tell.
    """
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError) as error:
        raise InputError("this system does not tell how much memory it has; give memory_limit") from error
    return min([physical, *_control_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def resident_bytes() -> int:
    """Return the bytes that this process holds in memory now; the most it ever held where only that is told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        # Windows tells neither, so that a usual amount must do.
        return _NOT_LINUX
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reading_bytes() -> int:
    """Return the bytes that polars takes at most, more or less, while it streams a table."""
    import polars as pl

    return READING + READING_PER_THREAD * pl.thread_pool_size()


def _control_group_limits(membership: Path, root: Path) -> list[int]:
    # A group is bound by its own limit and by those of all groups above it. Inside a container the path is the
    # host's and may not be there, but the root is the container's.
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
                found += _limit(mount / folder / name)
    return found


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []
