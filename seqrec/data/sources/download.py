"""Fetching a data set's archive: what a broken connection left is gone on with, and the whole is checked."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from filelock import FileLock

from seqrec.data.progress import Progress
from seqrec.errors import InputError, MissingInputError

_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30


def download(url: str, target: Path, md5: str, progress: Progress | None) -> None:
    """Fetch `url` to `target`, unless that is there.

    What has arrived is kept in `<target>.part`, and gone on with by the next call where the server can. A connection
    that breaks is opened again as long as each brings something. Of several processes one fetches and the others
    wait.

    Args:
        url: The file's address.
        target: Where it goes; its folder is made.
        md5: The file's MD5 digest in hexadecimal digits.
        progress: Told at every tenth.

    Raises:
        MissingInputError: the file cannot be fetched; the message says where from and where to put it.
        InputError: what came is another file, which is removed.
    """
    partial = target.with_name(target.name + ".part")
    progress = progress or Progress()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if target.is_file():
                return
            _fetch(url, partial, progress)
            if (got := _md5(partial)) != md5:
                partial.unlink()
                raise InputError(
                    f"{url} has md5 {got}, expected {md5}; what came was removed: try again, or fetch it by other "
                    "means and give its place as path"
                )
            partial.replace(target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise MissingInputError(
            f"{target} is not there and downloading it failed ({error}); try again, which goes on where it broke "
            f"off, or fetch {url} by other means and give its place as path"
        ) from error


def _fetch(url: str, partial: Path, progress: Progress) -> None:
    # Until all is there, or a connection brings nothing.
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
        progress.note(f"{url}: {broken}; going on at {_size(partial) / 1e6:.1f} MB")


def _fetch_rest(url: str, partial: Path, progress: Progress) -> bool:
    # Whether the file is whole at the end of one connection.
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
                raise
        # There is nothing after `start`: all is here, or what is here belongs to another file, as the md5 will tell.
        return True
    with response:
        # A server that knows no ranges sends all of it.
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with partial.open("ab" if resumed else "wb") as out:
            _copy(response, out, start, total, f"downloading {url}", progress)
    return total is None or _size(partial) == total


def _copy(
    response: IO[bytes], out: IO[bytes], start: int, total: int | None, doing: str, progress: Progress
) -> None:
    size = f" of {total / 1e6:.1f} MB" if total else ""
    progress.note(f"{doing}: at {start / 1e6:.1f}{size}")
    copied, tenths = start, start * 10 // total if total else 0
    while block := response.read(_BLOCK_BYTES):
        out.write(block)
        copied += len(block)
        if total and copied * 10 // total > tenths:
            tenths = copied * 10 // total
            progress.note(f"{doing}: {tenths * 10} %{size}")


def _md5(path: Path) -> str:
    # For damage on the way, not against an attacker.
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
