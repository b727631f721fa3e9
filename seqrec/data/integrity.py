"""Checks that files on disk still have the content that was written."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

_BLOCK_BYTES = 1 << 20


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return _sha256(stream)


def changed(digests: Mapping[Path, str]) -> Path | None:
    """Return the first file whose SHA-256 differs from the given one; None if all are as written."""
    return next((file for file, digest in digests.items() if sha256(file) != digest), None)


class BackgroundCheck:
    """Hashes files in a thread while they are in use, because gigabytes take seconds.

    The files are opened now, and the same files are read to the end if others take their places. A fork of this
    process has no such thread; there `wait` returns at once.

    Args:
        digests: SHA-256 of each file.
    """

    def __init__(self, digests: Mapping[Path, str]) -> None:
        self.damage: str | None = None
        self._opened = ExitStack()
        streams = [(file, digest, self._opened.enter_context(file.open("rb"))) for file, digest in digests.items()]
        self._thread = threading.Thread(target=self._check, args=(streams,), daemon=True, name="seqrec-store-check")
        self._thread.start()

    def wait(self) -> None:
        """Wait until all files are read."""
        self._thread.join()

    def _check(self, streams: list[tuple[Path, str, IO[bytes]]]) -> None:
        with self._opened:
            for file, digest, stream in streams:
                try:
                    if _sha256(stream) != digest:
                        self.damage = f"{file} is damaged: its SHA-256 differs"
                except OSError as error:
                    self.damage = f"{file} cannot be read: {error.strerror}"
                if self.damage is not None:
                    return


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
