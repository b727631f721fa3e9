"""Files that a user names: refusals of those that are no readable file, and the text of the others."""

from __future__ import annotations

import stat
from pathlib import Path

from seqrec.errors import InputError

# First bytes of a file -> what it is, and what to do.
_KINDS = {
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed with gzip; give it unpacked",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; give it unpacked",
    b"BZh": "compressed with bzip2; give it unpacked",
    b"\xfd7zXZ": "compressed with xz; give it unpacked",
    b"PK\x03\x04": "a zip archive; give it unpacked",
}
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def refuse_special(path: Path | str, name: str) -> None:
    """Refuse a pipe, a device or a socket, with the name that the user gave, such as "block='b.txt'".

    Raises:
        InputError: if the path is one: it could be read only once, and perhaps never ends.
    """
    try:
        kind = _SPECIAL.get(stat.S_IFMT(Path(path).stat().st_mode))
    except (OSError, ValueError):  # none of that name, or no name
        return
    if kind:
        raise InputError(f"{name} is {kind}, which can be read only once; write its content to a file and give that")


def kind_of_bytes(first: bytes) -> str | None:
    """Return what a file that starts with some bytes is, and what to do; None if it may be text in UTF-8."""
    known = next((kind for start, kind in _KINDS.items() if first.startswith(start)), None)
    return known or ("no text, but binary; give a text file" if b"\0" in first else None)


def read_text(path: Path, name: str) -> str:
    """Return the text of a file in UTF-8, without a byte order mark; the other arguments and errors as above.

    Raises:
        InputError: if it is no text in UTF-8.
    """
    refuse_special(path, name)
    content = path.read_bytes()
    if kind := kind_of_bytes(content[:1024]):
        raise InputError(f"{name} is {kind}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {line} is not UTF-8 ({error.reason}); save it as UTF-8") from error
