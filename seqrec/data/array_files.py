"""Arrays as files that are hashed while they are written."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqrec.files import synchronise


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
