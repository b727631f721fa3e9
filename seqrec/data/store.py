"""The event store: a prepared log on disk, immutable, versioned, memory-mapped. U users, E events."""

# Longer than 400 lines because opening, checking and reading a store share its manifest.

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.array_files import npy_digest
from seqrec.data.columns import Column, open_columns
from seqrec.data.conditions import condition_error, event_condition
from seqrec.data.integrity import BackgroundCheck, changed
from seqrec.data.manifest import (
    BEFORE,
    REMEDY,
    manifest_of_whole_files,
    segment_folder,
    segments_of,
)
from seqrec.data.progress import Progress
from seqrec.data.schema import (
    CATEGORICAL,
    EVENTS,
    GROUPS,
    ITEM_ID,
    ITEMS,
    NUMERIC,
    TIMESTAMP,
    USER_ID,
    USERS,
    file_names,
)
from seqrec.data.segments import Layout
from seqrec.data.targets import LogTargets
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, StoreError

if TYPE_CHECKING:
    import polars

# A store of at most so many bytes is hashed as a whole when it is opened, some .2 s; a larger one's events in the
# background.
SMALL_STORE_BYTES = 1 << 28
# Events to test by a condition at a time: a multiple of 64.
TESTED_EVENTS = 1 << 20


class EventStore:
    """A prepared log: every user's events in order, as flat arrays. `prepare` makes a store, `open` opens it.

    User row r, with internal user id r + 1, has the events [offsets[r], offsets[r + 1]), oldest first. Item ids are
    1..num_items; 0, padding, never occurs. Pickling keeps only the path and the number of segments, so a copy in
    another process maps the same files, also if the store has grown meanwhile.

    The events of a store that has grown lie in several files. Its arrays of events are then `JoinedArray`s: slices and
    places are read as of one array, and `numpy.asarray` copies all.

    Args:
        directory: Folder of a store with complete files; `open` checks them, the constructor does not.
        manifest: Content of its `manifest.json`.

    Attributes:
        directory: The folder.
        manifest: Format, version, counts, segments, columns, source, filters, schema, order rule, sizes of the
            source files, rows that were left out as malformed, and size and SHA-256 of each file of the store.
        num_users: Number of users, U.
        num_items: Number of distinct items; with `Filters.as_published_raw_ids` the largest item id, and some items
            may not occur.
        num_events: Number of events, E.
        item_ids: (E,) internal item ids in the smallest unsigned integer type that holds `num_items`.
        timestamps: (E,) int64 in the log's unit; None if the log has no times.
        columns: Those of events, items and users by name, by the group.
        event_columns: Columns of `Schema.events` by name, with E rows, aligned with `item_ids`.
        item_columns: Columns of `Schema.items` by name, with num_items + 1 rows; row i is internal item id i.
        user_columns: Columns of `Schema.users` by name, with U + 1 rows; row u is internal user id u.
        offsets: (U + 1,) int64.
        item_vocabulary: The log's item ids.
        user_vocabulary: The log's user ids.
        targets: The events that are trained for and judged, from `select_targets`; None is all.

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
        layout = Layout(directory, manifest)
        self.item_ids: NDArray[np.unsignedinteger[Any]] = layout.events("item_ids")
        self.offsets: NDArray[np.int64] = layout.newest("offsets")
        has_times = "timestamps.npy" in manifest["files"]
        self.timestamps: NDArray[np.int64] | None = layout.events("timestamps") if has_times else None
        columns = {group: open_columns(layout, group, manifest.get("columns", {}).get(group, {})) for group in GROUPS}
        self.columns: dict[str, dict[str, Column]] = columns
        self.event_columns: dict[str, Column] = columns[EVENTS]
        self.item_columns: dict[str, Column] = columns[ITEMS]
        self.user_columns: dict[str, Column] = columns[USERS]
        self._opened = {
            directory / name: (directory / name).stat()
            for name in manifest["files"]
            if Path(name).name == "offsets.npy" or _is_large(directory / name)
        }
        self._background: BackgroundCheck | None = None
        self.targets: LogTargets | None = None
        self.item_vocabulary = Vocabulary.open(layout.folder_of("item_vocabulary"), "item_vocabulary")
        self.user_vocabulary = Vocabulary.open(layout.folder_of("user_vocabulary"), "user_vocabulary")

    @classmethod
    def open(cls, directory: Path | str, *, events: bool = True) -> EventStore:
        """Open a store and check its files.

        Vocabularies and offsets are hashed now, and the rest too if the store is small (256 MiB). Events and columns of
        a larger store are hashed in the background, by the first process of each host: `check_in_use` and
        `finish_check` raise what was found. `seqrec fit`, `test`, `recommend` and the like wait for it before they end.

        Args:
            directory: The store's folder.
            events: Whether the events are hashed. If not, all else is hashed now.

        Raises:
            MissingStoreError: if `directory` is not a store.
            StoreError: if it has another version, or if a file is missing or damaged.
        """
        directory = Path(directory)

        def opened() -> EventStore:
            manifest = manifest_of_whole_files(directory)
            digests = {directory / name: entry["sha256"] for name, entry in manifest["files"].items()}
            small = events and sum(entry["bytes"] for entry in manifest["files"].values()) <= SMALL_STORE_BYTES
            groups = GROUPS if events else (EVENTS,)
            now = {file: digest for file, digest in digests.items() if small or not _is_large(file, groups)}
            _refuse_changed(now.items())
            store = _opened(cls, directory, manifest)
            later = {file: digest for file, digest in digests.items() if file not in now}
            if later and events and os.environ.get("LOCAL_RANK", "0") == "0":
                store._background = BackgroundCheck(later)
            return store

        return _not_replaced_meanwhile(directory, opened)

    @classmethod
    def open_unchecked(cls, directory: Path | str) -> EventStore:
        """Open a store whose content another process has checked; this checks only the manifest and the sizes.

        Raises:
            MissingStoreError: if `directory` is not a store.
            StoreError: if it has another version, or if a file is missing or has another size.
        """
        directory = Path(directory)
        return _not_replaced_meanwhile(directory, lambda: _opened(cls, directory, manifest_of_whole_files(directory)))

    def __reduce__(self) -> tuple[Callable[..., EventStore], tuple[Path, int, int], dict[str, Any]]:
        opened = self.directory.absolute(), len(segments_of(self.manifest)), self.num_events
        return _reopened, opened, {"targets": self.targets}

    def select_targets(self, condition: str) -> None:
        """Make the events that meet a condition the only targets; all others become their context.

        The condition is SQL as in `Filters.event_filter`, but over the columns that the store keeps: the categorical
        and numeric ones of `Schema.events` (booleans are 0 and 1, numbers float32), `user_id`, `item_id` and
        `timestamp`. It is evaluated now, a part of the log at a time, so another condition needs no preparation. Events
        for which it is null are no targets.

        Raises:
            InputError: if it is not SQL, names a column that the store does not keep, is not true or false for each
                event, or is true for none.
        """
        import polars
        from polars.io.plugins import register_io_source

        def pieces(names: list[str] | None, *_: object) -> Iterator[polars.DataFrame]:
            for begin in range(0, self.num_events, TESTED_EVENTS):
                yield self.frame(list(known if names is None else names), begin, begin + TESTED_EVENTS)

        known = self.frame(None, 0, 1).schema
        frame = register_io_source(pieces, schema=known)
        try:
            met = event_condition(frame, condition, "targets").fill_null(value=False).alias("met")
            found = frame.select(met).collect(engine="streaming")["met"]
        except polars.exceptions.PolarsError as error:
            raise condition_error(condition, "targets", error) from error
        except InputError as error:
            raise InputError(f"{error}; other columns of the log can be kept by schema.events") from error
        if len(found) != self.num_events:
            raise InputError(f"targets={condition!r} is one value for the whole log; it must depend on the event")
        parts = (found.slice(begin, TESTED_EVENTS).to_numpy() for begin in range(0, len(found), TESTED_EVENTS))
        targets = LogTargets.from_flags(condition, parts)
        if not targets.total:
            raise InputError(f"targets={condition!r} is true for none of {self.num_events:,} events; loosen it")
        self.targets = targets

    def frame(self, names: list[str] | None, begin: int, end: int) -> polars.DataFrame:
        """Return columns of the events [begin, end) with the log's own values; None is all that conditions can name."""
        import polars

        end = min(end, self.num_events)
        columns: dict[str, Callable[[], polars.Series]] = {
            USER_ID: lambda: self.user_vocabulary.external_series(self.user_rows(np.arange(begin, end)) + 1),
            ITEM_ID: lambda: self.item_vocabulary.external_series(self.item_ids[begin:end]),
        }
        if (times := self.timestamps) is not None:
            columns[TIMESTAMP] = lambda: polars.Series(times[begin:end])
        for name, column in self.event_columns.items():
            if column.kind in (CATEGORICAL, NUMERIC):
                columns[name] = partial(column.series, begin, end)
        return polars.DataFrame({name: columns[name]() for name in columns if names is None or name in names})

    def user_rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row (N,) of the user of each event at `places` (N,)."""
        rows: NDArray[np.int64] = np.searchsorted(self.offsets, places, side="right") - 1
        return rows

    def check_in_use(self) -> None:
        """Check in microseconds that no file that is read by rows was truncated since it was opened, or found damaged.

        Raises:
            StoreError: if one was. Reading a truncated one would end the process.
        """
        self._raise_damage()
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

    def finish_check(self) -> None:
        """Wait until the files that `open` hashes in the background are read.

        Raises:
            StoreError: if one is damaged.
        """
        if self._background is not None:
            self._background.wait()
        self._raise_damage()

    def _raise_damage(self) -> None:
        if self._background is not None and self._background.damage is not None:
            raise StoreError(f"{self._background.damage}; {REMEDY}")

    def verify(self, progress: Progress | None = None) -> None:
        """Hash every file, which takes as long as reading them; `progress` shows how far it is.

        Raises:
            StoreError: if the content of a file differs from what was written; the message names the file.
        """
        files = self.manifest["files"]
        total = sum(entry["bytes"] for entry in files.values())
        progress = progress or Progress()
        track = progress.track("checking", files.items(), lambda each: each[1]["bytes"], total, unit="bytes")
        _refuse_changed((self.directory / name, entry["sha256"]) for name, entry in track)

    @property
    def items_digest(self) -> str:
        """Digest of the item ids and their order, equal for equal item vocabularies."""
        return _joined(self._digests_of("item_vocabulary"))

    @property
    def users_digest(self) -> str:
        """Digest of the user ids and their order, equal for equal user vocabularies."""
        return _joined(self._digests_of("user_vocabulary"))

    def digest_of_first(self, group: str, count: int) -> str | None:
        """Return `items_digest`, or `users_digest` for the group "users", of a store with the first `count` ids alone.

        None if this store has fewer. It is the digest that this store had before it grew to more ids.
        """
        vocabulary, stem = {
            ITEMS: (self.item_vocabulary, "item_vocabulary"),
            USERS: (self.user_vocabulary, "user_vocabulary"),
        }[group]
        if count > len(vocabulary):
            return None
        return _joined({f"{name}.npy": npy_digest(each) for name, each in vocabulary.first(count).arrays(stem).items()})

    @property
    def item_column_sizes(self) -> dict[str, dict[str, Any]]:
        """`Column.sizes` of each column of items by name, with the SHA-256 of the file of its values."""
        return self._column_sizes(ITEMS)

    @property
    def user_column_sizes(self) -> dict[str, dict[str, Any]]:
        """The same of each column of users."""
        return self._column_sizes(USERS)

    def _column_sizes(self, group: str) -> dict[str, dict[str, Any]]:
        stems = {name: file_names(group, name, column.kind)["values"] for name, column in self.columns[group].items()}
        return {
            name: {**column.sizes, "sha256": self._digests_of(stems[name])[f"{stems[name]}.npy"]}
            for name, column in self.columns[group].items()
        }

    def _left_out(self) -> list[str]:
        """Return how many events each step of the preparation dropped, a line each."""
        counts, malformed = self.manifest["counts"], self.manifest.get("malformed", [])
        lines = [f"left out {each['count']:,} malformed rows of {each['file']}" for each in malformed]
        if "rows_read" not in counts:
            return lines
        rows, after = counts["rows_read"], counts["events_after_filter"]
        if rows > after:
            lines.append(f"the event filter dropped {rows - after:,} of {rows:,} events")
        if after > self.num_events:
            dropped = f"{after - self.num_events:,} of {after:,} events"
            lines.append(f"the filters of users, items and duplicates dropped {dropped}")
        return lines

    def _digests_of(self, stem: str) -> dict[str, str]:
        """Return the SHA-256 of the newest file of a name, and of those with a longer name next to it, by file name."""
        folder = Layout(self.directory, self.manifest).folder_of(stem)
        return {
            file.name: entry["sha256"]
            for name, entry in self.manifest["files"].items()
            if (file := self.directory / name).name.startswith(f"{stem}.") and file.parent == folder
        }

    def described_columns(self) -> dict[str, str]:
        """Return kind, size and missing values of each column, by names such as "items.year"."""
        return {
            f"{group}.{name}": column.describe()
            for group, found in self.columns.items()
            for name, column in found.items()
        }

    def summary(self) -> str:
        """Return a few lines of text: counts, history lengths, order, folder."""
        lengths = np.diff(self.offsets)
        median, p95 = np.percentile(lengths, [50, 95])
        lines = [
            f"{self.num_events:,} events of {self.num_users:,} users on {self.num_items:,} items",
            f"events a user: mean {lengths.mean():.0f}, median {median:.0f}, p95 {p95:.0f}, max {lengths.max()}",
            *self._left_out(),
            *self.manifest.get("notes", []),
            "ordered by timestamp" if self.timestamps is not None else "no timestamps: log order",
            *(f"{name}: {text}" for name, text in self.described_columns().items()),
            *([] if self.targets is None else [self.targets.summary(self.num_events)]),
            f"event store: {self.directory}",
        ]
        if "items_that_occur" in (counts := self.manifest["counts"]):
            absent = self.num_items - counts["items_that_occur"]
            share = f"{absent / self.num_items:.0%}"
            origin = "" if self.manifest["filters"].get("items_without_events") else "as published: "
            lines.insert(1, f"{origin}{absent:,} of {self.num_items:,} items ({share}) never occur")
        return "\n".join(lines)


def _joined(digests: Mapping[str, str]) -> str:
    """Return one digest of those of files by name."""
    parts = " ".join(f"{name}={digests[name]}" for name in sorted(digests))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _refuse_changed(digests: Iterable[tuple[Path, str]]) -> None:
    """Refuse the first file with another SHA-256 than the one next to it."""
    try:
        damaged = changed(digests)
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from error
    if damaged is not None:
        raise StoreError(f"{damaged} is damaged: its SHA-256 differs; {REMEDY}")


def _not_replaced_meanwhile(directory: Path, opened: Callable[[], EventStore]) -> EventStore:
    """Open a store; again if `compact` or `prepare` put another into its place meanwhile, because files would mix."""
    while True:
        before = _node(directory)
        try:
            store = opened()
        except (StoreError, FileNotFoundError):  # a file may go between two looks at it
            if _node(directory) == before:
                raise
        else:
            if _node(directory) == before:
                return store


def _node(directory: Path) -> int | None:
    return directory.stat().st_ino if directory.is_dir() else None


def _opened(cls: type[EventStore], directory: Path, manifest: dict[str, Any]) -> EventStore:
    try:
        return cls(directory, manifest)
    except OSError as error:
        raise StoreError(f"{error.filename or directory} cannot be read: {error.strerror}") from error
    except Exception as error:  # numpy parses a damaged header as Python, which can fail in any way
        raise StoreError(f"{directory} is damaged ({error}); {REMEDY}") from error


def _is_large(file: Path, groups: Iterable[str] = GROUPS) -> bool:
    # Events, and columns of some groups; the ids of vocabularies are checked before they are used.
    is_column = file.name.startswith(tuple(f"{group}." for group in groups)) and ".vocabulary." not in file.name
    return is_column or file.name in ("item_ids.npy", "timestamps.npy")


def _reopened(directory: Path, segments: int, num_events: int) -> EventStore:
    """Open a store as it was when it had some segments.

    Raises:
        StoreError: if it was made anew since then.
    """

    def opened() -> EventStore:
        manifest = manifest_of_whole_files(directory)
        if len(segments_of(manifest)) > segments:
            manifest = manifest_of_whole_files(directory, f"{segment_folder(segments + 1)}/{BEFORE}")
        if manifest["counts"]["events"] != num_events:
            raise StoreError(f"{directory} was compacted or prepared again while it was in use; start again")
        return _opened(EventStore, directory, manifest)

    return _not_replaced_meanwhile(directory, opened)
