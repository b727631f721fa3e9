"""Files that a user names: refusals of those that are no readable file, and the text of the others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from seqrec.errors import InputError

# First bytes of files that are no text in UTF-8 -> what they are.
_KINDS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "an array of numpy",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
}
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def refuse_special(path: Path | str, name: str, *, may_be_folder: bool = False) -> None:
    """Refuse a pipe, a device, a link to nothing, and a folder, with the name that the user gave: "block='b.txt'".

    Raises:
        InputError: if the path is one. A pipe could be read only once, and a device may never end.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # none of that name, or no name
        if isinstance(error, OSError) and os.path.islink(path):
            raise InputError(f"{name} is a link to {os.readlink(path)}, which is not there; give another") from error
        return
    if stat.S_ISDIR(mode) and not may_be_folder:
        raise InputError(f"{name} is a folder; give a file")
    if kind := _SPECIAL.get(stat.S_IFMT(mode)):
        raise InputError(f"{name} is {kind}, which can be read only once; write its content to a file and give that")


def kind_of_bytes(first: bytes) -> str | None:
    """Return what a file is that starts with some bytes; None if it may be text in UTF-8."""
    known = next((kind for start, kind in _KINDS.items() if first.startswith(start)), None)
    return known or ("no text, but binary" if b"\0" in first else None)


def read_text(path: Path, name: str) -> str:
    """Return the text of a file in UTF-8, without a byte order mark; the other arguments and errors as above.

    Raises:
        InputError: if it is no text in UTF-8.
    """
    refuse_special(path, name)
    content = path.read_bytes()
    if kind := kind_of_bytes(content[:1024]):
        packed = "give it unpacked" if kind.startswith("compressed") else "give a text file in UTF-8"
        raise InputError(f"{name} is {kind}; {packed}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {line} is not UTF-8 ({error.reason}); save it as UTF-8") from error
