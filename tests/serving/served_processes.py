"""`seqrec serve` as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOKEN = "a-token-of-some-length"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
TIMEOUT = 120


@contextmanager
def server(
    checkpoint: Path, folder: Path, *more: str, token: str | None = TOKEN
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command with a durable store, and the address that it says; killed at the end if it still runs."""
    words = [
        "--ckpt",
        str(checkpoint),
        "--port",
        "0",
        "--sessions",
        "SQLiteStore",
        "--sessions.path",
        "users.sqlite",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "SEQREC_TOKEN"}
    if token is not None:
        environment["SEQREC_TOKEN"] = token
    with (folder / "errors.txt").open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "seqrec", "serve", *words, *more],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(
            r"serving MambaRec at (http://127\.0\.0\.1:\d+) \(streaming, sessions in SQLiteStore\)\n", line
        )
        assert found, (line, (folder / "errors.txt").read_text())
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident_bytes(process: subprocess.Popen[str]) -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
