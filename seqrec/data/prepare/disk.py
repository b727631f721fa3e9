"""The folder that preparation works in, and what happens where its disk is too small."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from seqrec.data.prepare.memory import spoken_bytes
from seqrec.errors import StoreError

# Names in `errno` differ between systems: Windows has no quota.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Bytes an event that a log takes at most times, before more is known: the spool, partitions and the store.
EVENT_BYTES = 32


@dataclass
class Workspace:
    """Where the spool goes.

    Attributes:
        folder: An empty folder on the store's disk.
        needed: Bytes that preparing takes on that disk, all together; an estimate, 0 while there is none.
    """

    folder: Path
    needed: int = 0

    def require(self, more: int) -> None:
        """Refuse to go on where `more` bytes are not free, before they are written.

        Raises:
            StoreError: they are not.
        """
        free = shutil.disk_usage(self.folder).free
        if more > free:
            raise StoreError(
                f"the disk of {self.folder.parent} is too small: {spoken_bytes(more)} more are needed, "
                f"{spoken_bytes(free)} are free; free some, or choose another --data.store"
            )


def is_full(error: OSError) -> bool:
    """Return whether a write failed because the disk, a quota or the largest allowed file is full."""
    return error.errno in _FULL


def disk_full(folder: Path, needed: int, error: OSError) -> StoreError:
    """Return the error to raise for a disk that filled up.

    Args:
        folder: On that disk, after what was half-written is gone.
        needed: Estimate of all that preparing takes there, in bytes.
        error: What the system said.
    """
    free = shutil.disk_usage(folder).free
    return StoreError(
        f"writing the store to {folder} failed ({error.strerror}): about {spoken_bytes(needed)} are needed, "
        f"{spoken_bytes(free)} are free there; free some, or choose another --data.store"
    )
