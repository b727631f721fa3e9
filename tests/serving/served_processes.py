"""`seqrec serve` as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forked_commands import ForkedCommand

TOKEN = "a-token-of-some-length"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
TIMEOUT = 120


@contextmanager
def server(
    checkpoint: Path, folder: Path, *more: str, token: str | None = TOKEN, forked: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes] | ForkedCommand, str]]:
    """The command with a durable store, and the address that it says; killed at the end if it still runs.

    A forked one has no imports to wait for.
    """
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
    environment |= {} if token is None else {"SEQREC_TOKEN": token}
    output, errors = folder / f"{time.monotonic_ns()}.txt", folder / "errors.txt"
    process: subprocess.Popen[bytes] | ForkedCommand
    if forked:
        process = ForkedCommand(folder, "serve", *words, *more, log=output, errors=errors, environment=environment)
    else:
        command = [sys.executable, "-m", "seqrec", "serve", *words, *more]
        with output.open("a") as stdout, errors.open("a") as stderr:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (output.exists() and output.read_text().endswith("\n")):
            assert process.poll() is None, errors.read_text()
            assert time.monotonic() < deadline, errors.read_text()
            time.sleep(0.01)
        found = re.fullmatch(
            r"serving MambaRec at (http://127\.0\.0\.1:\d+) \(streaming, sessions in SQLiteStore\)\n",
            output.read_text(),
        )
        assert found, (output.read_text(), errors.read_text())
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def resident_bytes(process: subprocess.Popen[bytes] | ForkedCommand) -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
