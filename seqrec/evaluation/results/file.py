"""A results file: where each held-out item of each user was ranked, with the protocol that ranked it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqrec.errors import InputError, MissingInputError
from seqrec.evaluation.metrics import metric_named
from seqrec.types import JudgedTargets, TargetRanks

if TYPE_CHECKING:
    import polars

FILE_NAME = "test_results.parquet"
VERSION = 1
# Key of the header in the Parquet file's own metadata, so that the two cannot be parted.
METADATA_KEY = "seqrec.results"
# Users whose metrics are computed at a time; several targets take some 100 bytes a user and place of the list.
USERS_AT_A_TIME = 1 << 15


@dataclass(frozen=True)
class Header:
    """What a results file says about all of its rows.

    Attributes:
        model: The model's name in tables.
        protocol: Short id of the protocol.
        settings: All of the protocol's settings, plain values.
        normaliser: Of NDCG, as the protocol has it.
        num_items: Items of the catalogue.
        head_from: Training events from which an item belongs to the head; see `popularity_bounds`.
        torso_from: Training events from which an item that is not of the head belongs to the torso.
        version: Of this format.
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
        """Parquet metadata that `read_results` understands."""
        return {METADATA_KEY: json.dumps(dataclasses.asdict(self), ensure_ascii=False)}


@dataclass(frozen=True)
class Results:
    """Ranks of held-out items, one row each, ordered by user and item. T targets, U users.

    Attributes:
        name: What tables call the run: the path that was given.
        header: What holds for all rows.
        frame: Columns `user_id` and `item_id` (the log's own), `better` and `tied` (the rank, as the protocol's tie
            rule leaves it), `history_length` (events before the user's first target), `item_train_events` (how
            often the item occurs in training), `repeated` (whether it stands in the user's history),
            `timestamp` (of the log, or null).
    """

    name: str
    header: Header
    frame: polars.DataFrame

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
        """The targets where `kept` (T,) is True; a user with none of them is left out."""
        return Results(self.name, self.header, self.frame.filter(kept))

    def metrics(self, names: Sequence[str]) -> NDArray[np.float64]:
        """(U, M) float64, each user's metrics, NDCG with the protocol's normaliser.

        Args:
            names: Such as "HR@10"; see `seqrec.evaluation.metrics.metric_named`.

        Raises:
            InputError: an unknown name.
        """
        metrics = [metric_named(name, self.header.normaliser) for name in names]
        parts = [
            torch.stack([metric.per_user(judged) for metric in metrics], dim=1).numpy()
            for judged in self._judged()
        ]
        return np.concatenate([np.empty((0, len(names))), *parts])

    def _judged(self) -> Iterator[JudgedTargets]:
        """The targets again as they were judged, a part of the users at a time."""
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
                # Ranks alone are read from here on; the items stay in the log's own ids.
                item_ids=torch.zeros_like(rows),
                ranks=TargetRanks(part["better"], part["tied"]),
                repeated=part["repeated"],
            )


def read_results(path: str | Path) -> Results:
    """Results of a run.

    Args:
        path: A results file, or the folder of a run that was tested.

    Raises:
        MissingInputError: there is none.
        InputError: the file is not one of results, or of another version.
    """
    import polars

    file = Path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise MissingInputError(
            f"no results at {path} ({file.name} is missing); give a run folder or a results file that "
            "seqrec test or seqrec fit wrote"
        )
    try:
        metadata = polars.read_parquet_metadata(file)
        content = json.loads(metadata.get(METADATA_KEY, "{}"))
    except polars.exceptions.PolarsError as error:
        raise InputError(f"{file} is not a Parquet file: {error}") from error
    if content.get("version") != VERSION:
        found = f"version {content['version']}" if "version" in content else "no results of seqrec"
        raise InputError(f"{file} holds {found}, expected version {VERSION}; write it again: seqrec test")
    frame = polars.read_parquet(file).sort("user_id", "item_id", "timestamp")
    return Results(str(path), Header(**content), frame)
