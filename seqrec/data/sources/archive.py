"""Taking a data set's files out of its `.tar.gz`, once."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from seqrec.data.progress import Progress
from seqrec.errors import InputError

_BLOCK_BYTES = 1 << 20


def extract(archive: Path, names: Sequence[str], folder: Path, progress: Progress | None) -> list[Path]:
    """Return files of an archive, taken out of it where they are not there yet.

    Each appears in `folder` whole or not at all; an extraction that was cut short is made up for by the next call.
    Only files of these names are taken, wherever in the archive they lie, and nowhere but into `folder`.

    Args:
        archive: The `.tar.gz` file.
        names: Names of the files, without folders.
        folder: Where they go; it is made.
        progress: Told of each file.

    Raises:
        InputError: the archive is damaged or holds no such file, or the disk is full.
    """
    files = [folder / name for name in names]
    if all(file.is_file() for file in files):
        return files
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            missing = {file.name for file in files if not file.is_file()}
            if missing:
                missing -= _extract(archive, missing, folder, progress or Progress())
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{archive} cannot be extracted to {folder}: {error}") from error
    if missing:
        raise InputError(
            f"{archive} holds no {', '.join(sorted(missing))}; is it the archive of another version?"
        )
    return files


def _extract(archive: Path, names: set[str], folder: Path, progress: Progress) -> set[str]:
    # The names that were found. Past the last of them the archive is not read.
    found: set[str] = set()
    with tarfile.open(archive, "r|gz") as opened:
        for member in opened:
            name = member.name.split("/")[-1]
            content = opened.extractfile(member) if member.isfile() and name in names - found else None
            if content is None:
                continue
            progress.note(f"extracting {folder / name} ({member.size / 1e6:.1f} MB)")
            partial = folder / f"{name}.part"
            with partial.open("wb") as out:
                shutil.copyfileobj(content, out, _BLOCK_BYTES)
            partial.replace(folder / name)
            found.add(name)
            if found == names:
                break
    return found
