"""Memory-mapped files that somebody cuts while they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from seqrec.errors import StoreError


class FilesInUse:
    """Files as long as they are now.

    The system ends a process that reads a mapped file behind where it was cut (SIGBUS), without a word of why.

    Args:
        files: Files that are mapped, and whole.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._opened = [(str(file), os.stat(file)) for file in files]

    def check(self, remedy: str) -> None:
        """See that no file was cut; takes microseconds.

        Files that were replaced or deleted are no matter, as a process keeps those that it has mapped.

        Args:
            remedy: What to do, for the message.

        Raises:
            StoreError: one was.
        """
        for file, opened in self._opened:
            try:
                now = os.stat(file)
            except FileNotFoundError:
                continue
            if now.st_size < opened.st_size and now.st_ino == opened.st_ino:
                raise StoreError(
                    f"{file} was cut to {now.st_size} of {opened.st_size} bytes while it was in use; {remedy}"
                )
