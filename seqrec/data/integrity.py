"""Files that are hashed while they are written, and checks that they still have that content."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqrec.files import synchronise

_BLOCK_BYTES = 1 << 20


class ArrayFile:
    """An `.npy` file of a store, written and hashed piece after piece.

    The file is open only while a piece is written, so an interrupted preparation leaves none open. With a `width` each
    of the `length` rows has so many numbers.
    """

    def __init__(self, directory: Path, name: str, dtype: DTypeLike, length: int, width: int | None = None) -> None:
        self.path = directory / f"{name}.npy"
        self.dtype = np.dtype(dtype)
        self._missing = length
        self._digest = hashlib.sha256()
        self.path.touch(exist_ok=False)
        self._write(_npy_header(self.dtype, (length,) if width is None else (length, width)))

    def append(self, values: NDArray[Any]) -> None:
        """Write values (N,) or, with a width, (N, width) at the end of the file."""
        self._missing -= len(values)
        self._write(np.ascontiguousarray(values, self.dtype).data.cast("B") if len(values) else b"")

    def finish(self) -> dict[str, Any]:
        """Flush the file to disk, and return its size in bytes and SHA-256."""
        assert self._missing == 0, f"{self.path}: {self._missing} values are missing"
        synchronise(self.path)
        return {"bytes": self.path.stat().st_size, "sha256": self._digest.hexdigest()}

    def _write(self, piece: bytes | memoryview) -> None:
        self._digest.update(piece)
        with self.path.open("ab") as stream:
            stream.write(piece)


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> memoryview:
    header = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": description, "fortran_order": False, "shape": shape})
    return header.getbuffer()


def npy_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of the file that `ArrayFile` would write."""
    digest = hashlib.sha256(_npy_header(array.dtype, array.shape))
    digest.update(np.ascontiguousarray(array).data.cast("B") if len(array) else b"")
    return digest.hexdigest()


def write_arrays(directory: Path, arrays: Mapping[str, NDArray[Any]]) -> list[ArrayFile]:
    """Write arrays (N,) by their names without `.npy`; the files are to be finished."""
    files = []
    for name, values in arrays.items():
        files.append(ArrayFile(directory, name, values.dtype, len(values)))
        files[-1].append(values)
    return files


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
