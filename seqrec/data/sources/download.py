"""Resumable downloads of archives, verified by MD5, and the extraction of their files."""

from __future__ import annotations

import hashlib
import http.client
import json
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from seqrec.data.progress import Progress
from seqrec.errors import InputError, MissingInputError
from seqrec.files import locked, move, write_json

_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30
# Largest download; the largest log of the package has 24 GB.
MAX_BYTES = 64 << 30


def download(url: str, target: Path, md5: str, progress: Progress | None) -> None:
    """Fetch `url` to `target`, unless that file exists.

    Until the download is complete its bytes are in `<target>.part`, and the next call resumes it if the server
    supports ranges. A broken connection is opened again as long as each brings some bytes. If several processes ask
    for the file, one fetches it and the others wait.

    Args:
        url: The file's address.
        target: The new file; its folder is made.
        md5: The file's MD5 digest in hexadecimal digits.
        progress: Shows how many bytes are there.

    Raises:
        MissingInputError: if the file cannot be fetched; the message names the address and the place for the file.
        InputError: if the server sent another file, which is removed.
    """
    partial = target.with_name(target.name + ".part")
    progress = progress or Progress()
    try:
        with locked(target.with_name(target.name + ".lock")):
            if target.is_file():
                return
            _fetch(url, partial, progress)
            if (got := _md5(partial)) != md5:
                partial.unlink()
                raise InputError(
                    f"{url} has md5 {got}, expected {md5}; the download was removed: try again, or fetch it by other "
                    "means and give its place as path"
                )
            move(partial, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise MissingInputError(
            f"{target} does not exist and downloading it failed ({error}); try again, which resumes the download, "
            f"or fetch {url} by other means and give its place as path"
        ) from error


def extract(archive: Path, names: Sequence[str], folder: Path, progress: Progress | None) -> list[Path]:
    """Return files of a `.tar.gz` archive, extracted if they do not exist yet.

    Each file appears in `folder` complete or not at all; the next call repeats an interrupted extraction. Only files
    with these names are extracted, from any folder of the archive, and always into `folder` itself.

    Args:
        archive: The archive.
        names: Names of the files, without folders.
        folder: The folder for the files; it is made.
        progress: Shows how many bytes of each file are there.

    Raises:
        InputError: if the archive is damaged or lacks a file, or if the disk is full.
    """
    files = [folder / name for name in names]
    if all(is_extracted(file) for file in files):
        return files
    try:
        with locked(folder.with_name(folder.name + ".lock")):
            folder.mkdir(exist_ok=True)
            missing = {file.name for file in files if not is_extracted(file)}
            if missing:
                missing -= _extract(archive, missing, folder, progress or Progress())
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{archive} cannot be extracted to {folder}: {error}") from error
    if missing:
        raise InputError(f"{archive} contains no {', '.join(sorted(missing))}; is it the archive of another version?")
    return files


def _fetch(url: str, partial: Path, progress: Progress) -> None:
    # Until the file is complete, or a connection brings nothing.
    while True:
        before = _size(partial)
        try:
            if _fetch_rest(url, partial, progress):
                return
            broken: Exception = OSError("the connection ended early")
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException) as error:
            broken = error
        if _size(partial) <= before:
            raise broken
        progress.note(f"{url}: {broken}; resuming at {_size(partial) / 1e6:.1f} MB")


def _fetch_rest(url: str, partial: Path, progress: Progress) -> bool:
    # One connection. True if the file is complete after it.
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
                raise
        # Nothing follows `start`: the file is complete, or the bytes belong to another file, which the MD5 will show.
        return True
    with response:
        if url.startswith("https:") and not response.geturl().startswith("https:"):
            raise InputError(f"{url} leads to {response.geturl()}, which is not encrypted; give another url")
        # A server without ranges sends the whole file.
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if total is not None and total > MAX_BYTES:
            raise InputError(f"{url} has {total:,} bytes, more than the {MAX_BYTES:,} that a download may have")
        most = MAX_BYTES if total is None else total
        with partial.open("ab" if resumed else "wb") as out:
            for block in _tracked(response, start, total, f"downloading {partial.stem}", progress):
                out.write(block)
                if out.tell() > most:
                    raise InputError(f"{url} brought more than the {most:,} bytes that were announced")
    return total is None or _size(partial) == total


def _tracked(stream: IO[bytes], start: int, total: int | None, doing: str, progress: Progress) -> Iterator[bytes]:
    # Blocks of a stream, of which `start` bytes were read before.
    blocks = iter(lambda: stream.read(_BLOCK_BYTES), b"")
    return progress.track(doing, blocks, total=total, done=start, unit="bytes")


def _extract(archive: Path, names: set[str], folder: Path, progress: Progress) -> set[str]:
    # The names that were found. The archive is not read beyond the last of them.
    found: set[str] = set()
    with tarfile.open(archive, "r|gz") as opened:
        for member in opened:
            name = member.name.split("/")[-1]
            content = opened.extractfile(member) if member.isfile() and name in names - found else None
            if content is None:
                continue
            partial = folder / f"{name}.part"
            with partial.open("wb") as out:
                out.writelines(_tracked(content, 0, member.size, f"extracting {name}", progress))
            move(partial, folder / name)
            write_json(_description(folder / name), {"bytes": member.size})
            found.add(name)
            if found == names:
                break
    return found


def is_extracted(file: Path) -> bool:
    """Return whether a file has the size that it had in its archive; if that is not known, whether it has any."""
    description = _description(file)
    if not file.is_file():
        return False
    if not description.is_file():
        return file.stat().st_size > 0
    try:
        return bool(file.stat().st_size == json.loads(description.read_text(encoding="utf-8"))["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _description(file: Path) -> Path:
    return file.with_name(f".{file.name}.json")


def _md5(path: Path) -> str:
    # Against damage in transit, not against an attacker.
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
