"""Results files: the rank of each user's held-out items, the protocol that ranked them, and slices of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.metrics import metric_named
from seqrec.types import JudgedTargets, TargetRanks

FILE_NAME = "test_results.parquet"
VERSION = 1
# Key of the header in the Parquet file's own metadata: rows and header are always in one file.
METADATA_KEY = "seqrec.results"
# Number of users for metrics at a time; several targets take some 100 bytes a user and place of the list.
USERS_AT_A_TIME = 1 << 15


@dataclass(frozen=True)
class Header:
    """Facts about all rows of a results file.

    Attributes:
        model: The model's name in tables.
        protocol: Short id of the protocol.
        settings: All of the protocol's settings, as plain values.
        normaliser: The protocol's normaliser of NDCG.
        num_items: Items of the catalogue.
        head_from: Fewest training events of an item of the head; see `popularity_bounds`.
        torso_from: Fewest training events of an item of the torso.
        version: Version of this format.
    """

    model: str
    protocol: str
    settings: dict[str, Any]
    normaliser: str
    num_items: int
    head_from: int
    torso_from: int
    version: int = VERSION

    def as_metadata(self) -> dict[str, str]:
        """Return Parquet metadata, as `read_results` reads it."""
        return {METADATA_KEY: json.dumps(dataclasses.asdict(self), ensure_ascii=False)}


@dataclass(frozen=True)
class Results:
    """Ranks of held-out items, one row each, ordered by user and item. T targets, U users.

    Attributes:
        name: The run's name in tables: the path that was given.
        header: Facts about all rows.
        frame: Columns `user_id` and `item_id` (the log's own), `better` and `tied` (the rank under the protocol's tie
            rule), `history_length` (events before the user's first target), `item_train_events` (the item's training
            events), `repeated` (whether the item is in the user's history), `timestamp` (of the log, or null).
    """

    name: str
    header: Header
    frame: pl.DataFrame

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(T,) row of each target's user, 0.., ascending."""
        rows: NDArray[np.int64] = self.frame["user_id"].rle_id().to_numpy().astype(np.int64)
        return rows

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return int(self.rows[-1]) + 1 if len(self.rows) else 0

    def only(self, kept: NDArray[np.bool_]) -> Results:
        """Return only the targets with `kept` (T,) True; a user without any is left out."""
        return Results(self.name, self.header, self.frame.filter(kept))

    def metrics(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return each user's metrics (U, M) in float64 by names such as "HR@10", NDCG with the protocol's normaliser.

        Raises:
            InputError: if `metric_named` does not know a name.
        """
        metrics = [metric_named(name, self.header.normaliser) for name in names]
        split = self.header.settings.get("split")
        for metric in metrics:
            metric.separate_lists = isinstance(split, dict) and bool(split.get("prequential"))
        parts = [
            torch.stack([metric.per_user(judged) for metric in metrics], dim=1).numpy() for judged in self._judged()
        ]
        return np.concatenate([np.empty((0, len(names))), *parts])

    def _judged(self) -> Iterator[JudgedTargets]:
        """Yield the targets as they were judged, a part of the users at a time."""
        columns = {
            name: torch.from_numpy(self.frame[name].to_numpy().copy())
            for name in ("better", "tied", "repeated", "history_length")
        }
        for begin in range(0, self.num_users, USERS_AT_A_TIME):
            first, last = np.searchsorted(self.rows, [begin, begin + USERS_AT_A_TIME])
            rows = torch.from_numpy(self.rows[first:last] - begin)
            users = torch.arange(int(rows[-1]) + 1)
            part = {name: values[first:last] for name, values in columns.items()}
            of_user = torch.searchsorted(rows, users)
            yield JudgedTargets(
                user_ids=begin + users + 1,
                history_lengths=part["history_length"][of_user],
                rows=rows,
                # Metrics read only the ranks; the items stay in the log's own ids.
                item_ids=torch.zeros_like(rows),
                ranks=TargetRanks(part["better"], part["tied"]),
                repeated=part["repeated"],
            )


def is_results(file: Path) -> bool:
    """Return whether a file is a results file, of any version."""
    try:
        return METADATA_KEY in pl.read_parquet_metadata(file)
    except (OSError, pl.exceptions.PolarsError):
        return False


def read_results(path: str | Path) -> Results:
    """Read the results of a run.

    Args:
        path: A results file, or the folder of a run that was tested.

    Raises:
        MissingInputError: if the file does not exist.
        InputError: if it is no results file, or of another version.

    Example:
        >>> import tempfile
        >>> import polars as pl
        >>> from seqrec import read_results
        >>> from seqrec.evaluation.results import Header
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     header = Header("SASRec", "full-seenout-tiemean-loo", {}, "achievable", 100, 9, 3)
        ...     ranks = {"user_id": [7, 9], "item_id": [1, 2], "better": [0, 4], "tied": [0, 0]}
        ...     others = {"history_length": [5, 8], "item_train_events": [9, 2], "repeated": [False, False]}
        ...     frame = pl.DataFrame({**ranks, **others, "timestamp": [3, 4]})
        ...     frame.write_parquet(f"{folder}/test_results.parquet", metadata=header.as_metadata())
        ...     results = read_results(folder)
        >>> results.num_users, results.metrics(["HR@1"]).tolist()
        (2, [[1.0], [0.0]])
    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise MissingInputError(
            f"no results at {path} ({file.name} is missing); give a run folder or a results file that "
            "seqrec test or seqrec fit wrote"
        )
    try:
        metadata = pl.read_parquet_metadata(file)
        content = json.loads(metadata.get(METADATA_KEY, "{}"))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{file} is not a Parquet file: {error}") from error
    if content.get("version") != VERSION:
        found = f"version {content['version']}" if "version" in content else "no results of seqrec"
        raise InputError(f"{file} contains {found}, expected version {VERSION}; write it again: seqrec test")
    frame = pl.read_parquet(file).sort("user_id", "item_id", "timestamp")
    return Results(str(path), Header(**content), frame)


@dataclass(frozen=True)
class Slice:
    """Some of the targets of a results file: the slice's name, and `kept` (T,) bool, True at its targets."""

    name: str
    kept: NDArray[np.bool_]


def popularity_bounds(item_counts: NDArray[np.int64]) -> tuple[int, int]:
    """Return the fewest training events of an item of the head, and of the torso; other items are the tail.

    In order of popularity, the items of the head have the first third of all training events, those of the torso the
    second, and those of the tail the last. Items of equal count belong to the same part, the more popular one.
    `item_counts` (V,) are the training events of each item; item 0 is padding.
    """
    counts = np.sort(item_counts[1:])[::-1]
    held = np.cumsum(counts)
    head, torso = (int(counts[np.searchsorted(3 * held, share * held[-1])]) for share in (1, 2))
    return max(head, 1), max(torso, 1)


def slices_of(results: Results) -> list[Slice]:
    """Return slices of the targets, without empty ones.

    - Quarters of the users by the length of their history (in events).
    - Head, torso and tail of the items by training events (`popularity_bounds`), and of the tail the items without any,
      such as those that `ColdItems` hides.
    - Items that are new to the user, and repeated ones.
    - Quarters of the targets by time, if the log has timestamps.

    Quarters are of about the same size, as far as equal values allow. A user counts in each slice that contains at
    least one of its targets, with these targets only.
    """
    frame, header = results.frame, results.header
    lengths = frame["history_length"].to_numpy()
    first_of_user = np.flatnonzero(np.diff(results.rows, prepend=-1))
    events = frame["item_train_events"].to_numpy()
    repeated = frame["repeated"].to_numpy()
    head, torso = events >= header.head_from, events >= header.torso_from
    slices = [
        *_quarters("history", lengths, lengths[first_of_user]),
        Slice(f"head ({header.head_from:,}+ training events)", head),
        Slice(f"torso ({header.torso_from:,}+ training events)", torso & ~head),
        Slice("tail (fewer training events)", ~torso & ~head),
        Slice("cold (no training event)", events == 0),
        Slice("new item", ~repeated),
        Slice("repeated item", repeated),
    ]
    if not frame["timestamp"].has_nulls():
        times = frame["timestamp"].to_numpy()
        slices += _quarters("time", times, times)
    return [each for each in slices if each.kept.any()]


def _quarters(title: str, values: NDArray[np.int64], population: NDArray[np.int64]) -> list[Slice]:
    """Return slices of `values` between the quartiles of `population`; fewer than four if quartiles are equal."""
    if len(population) == 0:
        return []
    ends = np.unique(np.quantile(population, [0.25, 0.5, 0.75, 1], method="higher"))
    number = np.searchsorted(ends, values)
    slices = []
    for quarter in range(len(ends)):
        kept = number == quarter
        inside = values[kept]
        slices.append(Slice(f"{title} {inside.min():,} to {inside.max():,}", kept))
    return slices
