"""The event store: a prepared log on disk, immutable, versioned, memory-mapped. U users, E events."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import MissingInputError, StoreError
from seqrec.files import synchronise

FORMAT = "seqrec-event-store"
VERSION = 2
MANIFEST = "manifest.json"
REMEDY = "prepare it again: seqrec prepare --overwrite true"


class MissingStoreError(StoreError, MissingInputError):
    """A folder without an event store."""


class EventStore:
    """A prepared log: every user's events in order, as flat arrays. `prepare` makes a store, `open` opens it.

    User row r, with internal user id r + 1, has the events [offsets[r], offsets[r + 1]), oldest first. Item ids are
    1..num_items; 0, padding, never occurs. Pickling keeps only the path, so a copy in another process maps the same
    files.

    Args:
        directory: Folder of a store with complete files; `open` checks them, the constructor does not.
        manifest: Content of its `manifest.json`.

    Attributes:
        directory: The folder.
        manifest: Format, version, counts, names of the features, source, filters, order rule, sizes of the
            source files, rows that were left out as malformed, and size and SHA-256 of each file of the store.
        num_users: Number of users, U.
        num_items: Number of distinct items; with `Filters.as_published_raw_ids` the largest item id, and some items
            may not occur.
        num_events: Number of events, E.
        item_ids: (E,) internal item ids in the smallest unsigned integer type that holds `num_items`.
        timestamps: (E,) int64 in the log's unit; None if the log has no times.
        features: Event features by name, (E,) each, aligned with `item_ids`.
        offsets: (U + 1,) int64.
        item_vocabulary: The log's item ids.
        user_vocabulary: The log's user ids.

    Example:
        >>> import tempfile
        >>> from seqrec import EventStore, Filters, Synthetic, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = prepare(Synthetic(num_users=3, num_items=9, mean_events=6), Filters(), f"{folder}/store")
        ...     store = EventStore.open(f"{folder}/store")
        ...     store.num_users, len(store.item_ids) == store.num_events
        (3, True)
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        counts = manifest["counts"]
        self.num_users: int = counts["users"]
        self.num_items: int = counts["items"]
        self.num_events: int = counts["events"]
        self.item_ids: NDArray[np.unsignedinteger[Any]] = _map(directory / "item_ids.npy")
        self.offsets: NDArray[np.int64] = _map(directory / "offsets.npy")
        has_times = "timestamps.npy" in manifest["files"]
        self.timestamps: NDArray[np.int64] | None = _map(directory / "timestamps.npy") if has_times else None
        self.features: dict[str, NDArray[Any]] = {
            name: _map(directory / f"feature_{name}.npy") for name in manifest.get("features", [])
        }
        columns = ("item_ids.npy", "offsets.npy", *(["timestamps.npy"] if has_times else []))
        self._opened = {directory / name: (directory / name).stat() for name in columns}
        self.item_vocabulary = Vocabulary.open(directory, "item_vocabulary")
        self.user_vocabulary = Vocabulary.open(directory, "user_vocabulary")

    @classmethod
    def open(cls, directory: Path | str) -> EventStore:
        """Open a store in milliseconds. This checks the manifest and the size of each file, but not the contents.

        Raises:
            MissingStoreError: if `directory` is not a store.
            StoreError: if it has another version, or if a file is missing or has another size.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        for name, expected in manifest["files"].items():
            file = directory / name
            if not file.is_file():
                raise StoreError(f"{file} is missing from the event store; {REMEDY}")
            found = file.stat().st_size
            if found != expected["bytes"]:
                raise StoreError(f"{file} has {found} bytes, expected {expected['bytes']}; {REMEDY}")
        try:
            return cls(directory, manifest)
        except (ValueError, KeyError, OSError) as error:
            raise StoreError(f"{directory} is damaged ({error}); {REMEDY}") from error

    def __reduce__(self) -> tuple[Callable[[Path], EventStore], tuple[Path]]:
        return EventStore.open, (self.directory.absolute(),)

    def check_in_use(self) -> None:
        """Check in microseconds that no file of the events was truncated after it was opened.

        Raises:
            StoreError: if one was; reading it would end the process.
        """
        # The system ends a process (SIGBUS) that reads a mapped file beyond the place where it was truncated, without
        # a message. A process keeps files that were replaced or deleted, so only truncation matters.
        for file, opened in self._opened.items():
            try:
                now = file.stat()
            except FileNotFoundError:
                continue
            if now.st_size < opened.st_size and now.st_ino == opened.st_ino:
                raise StoreError(
                    f"{file} was cut to {now.st_size} of {opened.st_size} bytes while it was in use; {REMEDY}"
                )

    def verify(self) -> None:
        """Hash every file, which takes as long as reading them.

        Raises:
            StoreError: if the content of a file differs from what was written; the message names the file.
        """
        for name, expected in self.manifest["files"].items():
            if _sha256(self.directory / name) != expected["sha256"]:
                raise StoreError(f"{self.directory / name} is damaged: its SHA-256 differs; {REMEDY}")

    @property
    def items_digest(self) -> str:
        """Digest of the item ids and their order, equal for equal item vocabularies."""
        files = sorted(name for name in self.manifest["files"] if name.startswith("item_vocabulary."))
        parts = " ".join(f"{name}={self.manifest['files'][name]['sha256']}" for name in files)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def summary(self) -> str:
        """Return a few lines of text: counts, history lengths, order, folder."""
        lengths = np.diff(self.offsets)
        median, p95 = np.percentile(lengths, [50, 95])
        lines = [
            f"{self.num_events:,} events of {self.num_users:,} users on {self.num_items:,} items",
            f"events a user: mean {lengths.mean():.0f}, median {median:.0f}, p95 {p95:.0f}, max {lengths.max()}",
            "ordered by timestamp" if self.timestamps is not None else "no timestamps: log order",
            f"event store: {self.directory}",
        ]
        if "items_that_occur" in (counts := self.manifest["counts"]):
            absent = self.num_items - counts["items_that_occur"]
            share = f"{absent / self.num_items:.0%}"
            lines.insert(1, f"as published: {absent:,} of {self.num_items:,} items ({share}) never occur")
        return "\n".join(lines)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of the store in `directory`.

    Raises:
        MissingStoreError: if `directory` is not a store.
        StoreError: if the manifest cannot be read or has another version.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise MissingStoreError(f"no event store at {directory} ({MANIFEST} is missing); run seqrec prepare")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        is_store = manifest["format"] == FORMAT
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not the manifest of an event store; {REMEDY}") from error
    if not is_store:
        raise StoreError(f"{path}: format is {manifest['format']!r}, expected {FORMAT!r}; {REMEDY}")
    if version != VERSION:
        raise StoreError(f"{directory} is an event store of version {version}, expected {VERSION}; {REMEDY}")
    missing = {"counts", "files"} - manifest.keys()
    if missing:
        raise StoreError(f"{path} lacks {', '.join(sorted(missing))}; {REMEDY}")
    assert isinstance(manifest, dict)
    return manifest


class ArrayFile:
    """An `.npy` file of a store, written and hashed piece after piece.

    The file is open only while a piece is written, so an interrupted preparation leaves none open.
    """

    def __init__(self, directory: Path, name: str, dtype: DTypeLike, length: int) -> None:
        self.path = directory / f"{name}.npy"
        self.dtype = np.dtype(dtype)
        self._missing = length
        self._digest = hashlib.sha256()
        header = io.BytesIO()
        description = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(header, {"descr": description, "fortran_order": False, "shape": (length,)})
        self.path.touch(exist_ok=False)
        self._write(header.getbuffer())

    def append(self, values: NDArray[Any]) -> None:
        """Write values (N,) at the end of the file."""
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


def write_manifest(
    directory: Path, files: Sequence[ArrayFile], counts: Mapping[str, int | None], extra: Mapping[str, Any]
) -> None:
    """Write the manifest, which makes complete files a store."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "counts": dict(counts),
        **extra,
        "files": {file.path.name: file.finish() for file in files},
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    synchronise(directory / MANIFEST)
    synchronise(directory)


def _map(file: Path) -> NDArray[Any]:
    mapped: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return mapped


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
