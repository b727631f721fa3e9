"""Unpack a compressed table whose form polars does not read."""

from __future__ import annotations

import bz2
import lzma
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from seqrec.errors import InputError

_BLOCK_BYTES = 1 << 20


def unpacked(file: Path, folder: Path) -> Path:
    """Unpack the one table in a `.zip`, `.bz2` or `.xz` file, a block at a time, into a new folder in `folder`.

    Raises:
        InputError: if the file is damaged, a zip has no or several files, or the disk has no room.
    """
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                members = [each for each in archive.infolist() if not each.is_dir() and _is_content(each.filename)]
                if len(members) != 1:
                    names = ", ".join(each.filename for each in members[:5]) or "no file"
                    raise InputError(f"{file} has {names}; give a zip with one table, or unpack it and give the folder")
                target = place / Path(members[0].filename).name
                with archive.open(members[0]) as stream:
                    return _written(stream, target, file)
        target = place / file.stem
        with bz2.open(file) if file.suffix.lower() == ".bz2" else lzma.open(file) as stream:
            return _written(stream, target, file)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{file} cannot be unpacked: {error}") from error
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be unpacked: {error}") from error


def _is_content(name: str) -> bool:
    return not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")


def _written(stream: IO[bytes], target: Path, file: Path) -> Path:
    with target.open("wb") as out:
        while block := stream.read(_BLOCK_BYTES):
            out.write(block)
            # A small file can unpack to any size.
            if shutil.disk_usage(target.parent).free < 4 * _BLOCK_BYTES:
                raise InputError(f"{file} does not fit into {target.parent} when it is unpacked; unpack it elsewhere")
    return target
