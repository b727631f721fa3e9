"""A folder of checkpoints belongs to one job at a time."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from seqrec.errors import LockedError

LOCK_FILE = ".lock"
JOB_FILE = ".job.json"
# A job's loader processes notice within 5 s that their job was killed, and hold the folder until then.
PATIENCE_SECONDS = 8.0


class FolderLock:
    """Keeps other jobs out of a folder until it is released or the process ends, however that happens.

    Args:
        folder: The folder, which is made.

    Raises:
        LockedError: another job is working there; the message says which.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._job = folder / JOB_FILE
        self._lock = FileLock(folder / LOCK_FILE)
        try:
            self._lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=0.1)
        except Timeout:
            raise LockedError(
                f"{folder} belongs to another job that is running{_whose(self._job)}: its checkpoints would be "
                "overwritten. Wait for it, or let this run have a folder of its own (another --resume_points.dirpath)"
            ) from None
        self._job.write_text(
            json.dumps(
                {
                    "process": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "slurm_job": os.environ.get("SLURM_JOB_ID"),
                }
            )
            + "\n",
            encoding="utf-8",
        )

    def release(self) -> None:
        """Let others in. The job's name stays, so that SLURM, if it starts the job again, goes on there."""
        self._lock.release()


def folder_of_slurm_job(base: Path, job: str) -> Path | None:
    """Folder of checkpoints below `base` that a SLURM job worked in last; None where there is none."""
    found = [file for file in base.rglob(JOB_FILE) if _content(file).get("slurm_job") == job]
    return max(found, key=lambda file: file.stat().st_mtime).parent if found else None


def _whose(file: Path) -> str:
    job = _content(file)
    return f" (process {job['process']} on {job['host']} since {job['since']})" if job else ""


def _content(file: Path) -> dict[str, str | int | None]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
