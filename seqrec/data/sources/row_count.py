"""How many rows a file has, near enough to tell how long reading it will take."""

from __future__ import annotations

import zlib
from pathlib import Path

_SAMPLE_BYTES = 1 << 20


def estimate_lines(file: Path | bytes) -> int | None:
    """Return about how many lines a text has, from those in its first MiB; None where that cannot be told.

    Args:
        file: A file, plain or `.gz`, or its content.
    """
    if isinstance(file, bytes):
        size, sample = len(file), file[:_SAMPLE_BYTES]
    else:
        size = file.stat().st_size
        with file.open("rb") as stream:
            sample = stream.read(_SAMPLE_BYTES)
    read = len(sample)
    if sample.startswith(b"\x1f\x8b"):
        try:
            sample = zlib.decompressobj(wbits=31).decompress(sample)
        except zlib.error:
            return None
    # Zstandard, which the standard library does not read.
    if sample.startswith(b"\x28\xb5\x2f\xfd") or not read:
        return None
    return round(sample.count(b"\n") * size / read)
