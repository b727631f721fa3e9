"""Checks that files still have the content that was written."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

_BLOCK_BYTES = 1 << 20


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return _sha256(stream)


def changed(digests: Iterable[tuple[Path, str]]) -> Path | None:
    """Return the first file with another SHA-256 than the one next to it; None if all are as written."""
    return next((file for file, digest in digests if sha256(file) != digest), None)


def sealed(content: Mapping[str, Any], name: str) -> str:
    """Return content as JSON whose last entry, `name`, is the SHA-256 of the rest."""
    return _json({**content, name: _text_digest(_json(content))})


def unsealed(text: str, name: str) -> tuple[Any, bool]:
    """Return the content of what `sealed` wrote, and whether it is as written; without a digest it passes.

    Raises:
        ValueError: if the text is no JSON.
    """
    content = json.loads(text)
    digest = content.pop(name, None) if isinstance(content, dict) else None
    return content, digest is None or digest == _text_digest(_json(content))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class BackgroundCheck:
    """Hashes files in a thread while they are in use, because gigabytes take seconds.

    The files are opened now, and the same files are read to the end if others take their places. A fork of this
    process has no such thread; there `wait` returns at once.
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
