"""What work writes to standard output and standard error on a pseudo-terminal, or into pipes."""

from __future__ import annotations

import os
import pty
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from threading import Thread


class Stream:
    """A pseudo-terminal or a pipe, whose other end is read at once, so that its buffer is never full."""

    def __init__(self, *, terminal: bool) -> None:
        self._end, writing = pty.openpty() if terminal else os.pipe()
        self.file = os.fdopen(writing, "w", buffering=1)
        self._parts: list[bytes] = []
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        # A pseudo-terminal ends with an error.
        with suppress(OSError):
            while part := os.read(self._end, 1 << 14):
                self._parts.append(part)

    def close(self) -> str:
        """Return all that was written."""
        self.file.close()
        self._thread.join()
        os.close(self._end)
        return b"".join(self._parts).decode()


def captured(work: Callable[[], object], *, terminal: bool) -> tuple[str, str]:
    """What work in this process writes to standard output and to standard error."""
    out, errors = Stream(terminal=terminal), Stream(terminal=terminal)
    try:
        with redirect_stdout(out.file), redirect_stderr(errors.file):
            work()
    finally:
        found = out.close(), errors.close()
    return found
