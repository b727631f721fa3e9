"""`seqrec recommend`: recommendations for many users, as Parquet."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqrec.catalogue.histories import read_block_list, read_candidates, read_options
from seqrec.catalogue.search import ExactSearch, ItemSearch
from seqrec.data.manifest import MANIFEST
from seqrec.data.output import show
from seqrec.data.prepare import ensure_store
from seqrec.data.prepare.filters import Filters
from seqrec.data.progress import STATUS, print_line
from seqrec.data.schema import Schema
from seqrec.data.sources import Table
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.inference.bulk.job import BulkJob, describe, recommend_in_bulk, tokens_for
from seqrec.inference.bulk.output import BulkOutput
from seqrec.inference.bulk.users import BulkUsers, store_digest
from seqrec.inference.loading import load_with_store, torch_device
from seqrec.inference.writer import list_report
from seqrec.models import Recommender


def recommend(
    *,
    ckpt: str,
    output: str,
    input: str | None = None,
    store: str | None = None,
    top_k: int = 10,
    filter_seen: bool = True,
    block: str | None = None,
    candidates: str | None = None,
    where: str | None = None,
    items: str | None = None,
    items_key: str = "item_id",
    at: int | None = None,
    search: ItemSearch | None = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    max_length: int | None = None,
    max_tokens: int | None = None,
    part_users: int = 1 << 14,
    shard: str | None = None,
    device: str = "auto",
    memory_limit: str | None = None,
) -> None:
    """Recommend items to many users, as Parquet, in a job that can be killed and resumed.

    Run the same command again to resume. The processes of torchrun share the parts.

    Args:
        ckpt: Checkpoint of the model.
        output: Folder of Parquet files with the columns user_id, item_id, rank (1 is best) and score. Next to it,
            <output>_summary.json is written once all files exist, and <output>_left_out.parquet lists users without
            recommendations, as the model knows none of their items.
        input: Histories of the users: a CSV, TSV or Parquet table, a glob or folder of such, one event per row, of
            any size, with the columns that the model reads (`event_columns`); or the folder of an event store. None
            takes all users of the log that the model was trained on.
        store: Folder of the event store that the model was trained on; None is the folder that it had then.
        top_k: Items per user.
        filter_seen: Whether to leave out the items of the user's history.
        block: File with the log's ids of items that are never recommended: one per line, or the column item_id of a
            Parquet file.
        candidates: File with the log's ids of the only items that are recommended, all of them known, as for `block`.
        where: Condition that items must meet to be recommended, such as "genres has 'jazz' and year > 1990". With
            `candidates`, both count.
        items: File of a table of items, for `where`: Parquet, CSV, TSV or JSON lines. None reads the columns of items
            in the event store.
        items_key: Name of the table's column of item ids.
        at: When the items are recommended, in the log's unit, for a model that reads it (`time.request`).
        search: Finds the best items; None scores the whole catalogue.
        user: Name of the table's column of users.
        item: Name of the table's column of items.
        timestamp: Name of the table's column of times; null for a table without times, with rows in time order.
        max_length: Newest events that the model sees; None is the length that it was trained with.
        max_tokens: Events that each thread encodes at a time, padding included; fewer take less memory. None is 8,192,
            and 131,072 on a GPU.
        part_users: Most users of a file.
        shard: This process's share of the files, as 0/4 .. 3/4 for four processes on one folder; None is the share
            that torchrun gives, or all.
        device: cpu, cuda, or auto: cuda if there is a GPU.
        memory_limit: Most memory that reading a table may take, such as 8GiB; None is half of the machine's.

    Raises:
        InputError: if an argument is out of range, a file is missing, or the output contains another job's.
    """
    tokens = tokens_for(torch_device(device), max_tokens)
    rank, ranks = share(shard)
    model, trained_on = load_with_store(ckpt, store=store, device=torch_device(device))
    chosen = read_candidates(model, candidates, where, trained_on if items is None else items, items_key)
    blocked = None if block is None else read_block_list(block)
    options = read_options(model, top_k, filter_seen, blocked, at, chosen)
    job = BulkJob(options, max_length, tokens, (rank, ranks), search or ExactSearch())
    log = trained_on if input is None else _log(input, user, item, timestamp)
    described = {**describe(model, job), "part_users": part_users, "users": _describe_users(log)}
    files = BulkOutput(Path(output), described)
    summary = files.summary
    if summary is None:
        with _released_if_refused(files):
            if isinstance(log, Table):
                log = _store_of_table(log, model, files.work / "users", memory_limit)
            users = BulkUsers(log, model, own=input is None, part_users=part_users)
            summary = recommend_in_bulk(model, users, files, job)
        log.finish_check()
    else:
        print_line(f"{output} was already complete")
    if summary is None:
        print_line(f"share {rank}/{ranks} is done; {output} still lacks parts of other shares")
    else:
        _report(files, summary, trained_on, top_k)


def _log(input: str, user: str, item: str, timestamp: str | None) -> EventStore | Table:
    """Return the store that the input is, or else the table."""
    is_store = (Path(input) / MANIFEST).is_file()
    return EventStore.open(input) if is_store else Table(input, user, item, timestamp)


def _report(files: BulkOutput, summary: dict[str, Any], trained_on: EventStore, top_k: int) -> None:
    """Print what a complete job wrote, and the metrics of its lists."""
    metrics = list_report(files.folder, trained_on, top_k)
    values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)
    show(_summary_text(files, summary), values, folder=str(files.folder), summary=summary, metrics=metrics)


@contextmanager
def _released_if_refused(files: BulkOutput) -> Iterator[None]:
    """Leave the place of the output free if the input is refused: the corrected command may have other arguments."""
    try:
        yield
    except InputError:
        files.release()
        raise


def _store_of_table(table: Table, model: Recommender, folder: Path, memory_limit: str | None) -> EventStore:
    """Return a store of a table, with the columns that the model reads."""
    schema = Schema(events={column.name: column.kind for column in model.event_columns})
    return ensure_store(table, Filters(), folder, schema=schema, memory_limit=memory_limit, progress=STATUS)


def _describe_users(log: EventStore | Table) -> Any:
    """Return plain values that differ for other users or events."""
    if isinstance(log, EventStore):
        return store_digest(log)
    files = [(file.as_posix(), file.stat()) for file in log.files()]
    return {
        **log.describe()["arguments"],
        "files": [[name, found.st_size, found.st_mtime_ns] for name, found in files],
    }


def _summary_text(files: BulkOutput, summary: dict[str, Any]) -> str:
    served = summary["users"] - summary["users_left_out"]
    lines = [f"{files.folder}: {summary['rows']:,} recommendations to {served:,} users, {summary['parts']:,} files"]
    if summary["unknown_events"]:
        lines.append(
            f"dropped {summary['unknown_events']:,} of {summary['unknown_events'] + summary['events']:,} events, of "
            f"{summary['unknown_items']:,} items that the model does not know"
        )
    if summary["users_left_out"]:
        lines.append(f"{summary['users_left_out']:,} users have no item that the model knows: {files.left_out_file}")
    if "exact_rows" in summary:
        lines.append(f"{summary['exact_rows']:,} users searched exactly, as too few items were found")
    return "\n".join(lines)


def share(shard: str | None) -> tuple[int, int]:
    """Return this process's share of the parts, such as (1, 4) for `1/4`; None is torchrun's share, or all."""
    if shard is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"shard={shard!r} must be a share such as 0/4, 1/4, 2/4 or 3/4")
    return int(found[1]), int(found[2])
