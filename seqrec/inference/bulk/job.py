"""Run a bulk job: make this process's parts one after another, and leave the others to other processes."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.recommend import RecommendOptions, item_ids_of, recommend_block, recommendation_frame
from seqrec.catalogue.search import ExactSearch, ItemSearch
from seqrec.data.progress import STATUS, Progress, Show
from seqrec.errors import check_at_least
from seqrec.inference.bulk.output import BulkOutput
from seqrec.inference.bulk.users import BulkUsers
from seqrec.models import Recommender
from seqrec.specs import to_spec
from seqrec.types import ROW_STRIDE, Recommendations

Int64 = NDArray[np.int64]

# Users for whom an approximate search is compared with the exact one.
RECALL_USERS = 256
# Events encoded at a time. A GPU needs many to be busy; 2^17 of width 64 are 32 MiB for each tensor of a layer.
TOKENS, GPU_TOKENS = 1 << 13, 1 << 17


@dataclass(frozen=True)
class BulkJob:
    """Settings of a bulk job.

    Attributes:
        options: Items per user, and those that are left out.
        max_length: Newest events that the model sees; None is the length that it was trained with.
        max_tokens: Events that each thread encodes at a time, padding included. It changes rounding only.
        shard: Share of the parts that this process makes: (0, 1) is all, (1, 4) the second of four.
        search: Finds the best items, and becomes the model's; None is the search that the model has.
    """

    options: RecommendOptions
    max_length: int | None = None
    max_tokens: int = TOKENS
    shard: tuple[int, int] = (0, 1)
    search: ItemSearch | None = None


def recommend_in_bulk(
    model: Recommender, users: BulkUsers, files: BulkOutput, job: BulkJob, *, show: Show = STATUS
) -> dict[str, Any] | None:
    """Write recommendations for all users, or the parts that an earlier run did not finish.

    Args:
        model: In evaluation mode, on its device.
        users: Users and their histories.
        files: Destination of the parts.
        job: Settings, and this process's share.
        show: Prints progress lines.

    Returns:
        The summary; None if other processes still have parts to write.

    Raises:
        InputError: if a number is out of range.

    Example:
        The command `seqrec recommend` is this function for a checkpoint and a table of histories:

        >>> import tempfile
        >>> from pathlib import Path
        >>> from seqrec import Filters, Popularity, Synthetic, prepare
        >>> from seqrec.catalogue.recommend import RecommendOptions
        >>> from seqrec.inference.bulk import BulkJob, BulkOutput, BulkUsers, describe, recommend_in_bulk
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = Synthetic(num_users=20, num_items=30, mean_events=10, seed=1)
        ...     store = prepare(source, Filters(), Path(folder) / "store")
        ...     model = Popularity(store.num_items).eval()
        ...     model.item_vocabulary = store.item_vocabulary
        ...     users = BulkUsers(store, model, own=True, part_users=1000)
        ...     job = BulkJob(RecommendOptions(top_k=5))
        ...     files = BulkOutput(Path(folder) / "recs.parquet", describe(model, job))
        ...     summary = recommend_in_bulk(model, users, files, job, show=lambda line: None)
        >>> summary["users"], summary["rows"]
        (20, 100)
    """
    model.search = job.search or model.search
    rank, ranks = job.shard
    parts = [part for part in range(len(users)) if part % ranks == rank]
    missing = [part for part in parts if not files.has(part)]
    total, left = (sum(len(users.rows(part)) for part in some) for some in (parts, missing))
    if left < total:
        show(f"{total - left:,} of {total:,} users are done already")
    if missing:
        searched = _prepare_search(model, users, job, show)
        if rank == 0:
            files.note({"parts": len(users), "unknown_items": users.unknown_items, **searched})
    item_vocabulary = item_ids_of(model)

    def write(part: int, best: Recommendations, rows: Int64, left_out: Int64, counts: dict[str, int]) -> None:
        frame = recommendation_frame(best, users.names(rows), item_vocabulary)
        files.write(part, frame, users.names(left_out), counts)

    progress = Progress(show if rank == 0 and missing else None, unit="users")
    with ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for part in progress.track("recommending", missing, lambda part: len(users.rows(part)), left):
            rows = users.rows(part)
            best, left_out, counts = _recommend(model, users, rows, job)
            if writing is not None:
                writing.result()
            # It is written while the next part is computed; at most one waits.
            writing = pool.submit(write, part, best, rows, left_out, counts)
        if writing is not None:
            writing.result()
    return files.finish()


def tokens_for(device: str, asked: int | None = None) -> int:
    """Return the events that are encoded at a time on a device such as "cuda:0"; None asks for the default.

    Raises:
        InputError: if `asked` is below 1.
    """
    if asked is None:
        return TOKENS if device == "cpu" else GPU_TOKENS
    check_at_least(1, max_tokens=asked)
    return asked


def describe(model: Recommender, job: BulkJob) -> dict[str, Any]:
    """Return all that recommendations depend on, apart from rounding, as plain values."""
    blocked = job.options.blocked
    return {
        "weights": weights_digest(model),
        "top_k": job.options.top_k,
        "filter_seen": job.options.filter_seen,
        "block": None if blocked is None else _digest(blocked),
        **({} if job.options.at is None else {"at": job.options.at}),
        **({} if job.options.allowed is None else {"candidates": _digest(job.options.allowed)}),
        "max_length": job.max_length,
        "search": to_spec(job.search or model.search),
    }


def _digest(item_ids: Tensor) -> str:
    return hashlib.sha256(json.dumps(item_ids.tolist()).encode()).hexdigest()[:16]


def weights_digest(model: Recommender) -> str:
    """Return a digest of a model's class, settings and weights."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    digest.update(json.dumps(dict(model.hparams), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _prepare_search(model: Recommender, users: BulkUsers, job: BulkJob, show: Show) -> dict[str, Any]:
    """Prepare the search; for an approximate one rank 0 also returns its recall for a sample of users."""
    search = model.search
    search.prepare(model.scorer())
    if isinstance(search, ExactSearch) or job.shard[0] != 0:
        return {}
    sample, lists = users.sample(RECALL_USERS), []
    try:
        for model.search in (search, ExactSearch()):
            best = recommend_block(model, sample, job.options, max_length=job.max_length, max_tokens=job.max_tokens)
            rows, columns = best.item_ids.numpy().nonzero()
            lists.append(rows * ROW_STRIDE + best.item_ids.numpy()[rows, columns])
    finally:
        model.search = search
    found, exact = lists
    recall = float(np.isin(exact, found).mean()) if len(exact) else 1.0
    show(f"{type(search).__name__}: recall@{job.options.top_k} against exact {recall:.4f} ({len(sample):,} users)")
    return {"recall": recall, "recall_users": len(sample)}


def _recommend(
    model: Recommender, users: BulkUsers, rows: Int64, job: BulkJob
) -> tuple[Recommendations, Int64, dict[str, int]]:
    """Return recommendations to the users in rows (U,), rows without any known item, and counts for the summary."""
    before = model.search.counts()
    block, unknown = users.block(rows)
    best = recommend_block(model, block, job.options, max_length=job.max_length, max_tokens=job.max_tokens)
    left_out = rows[np.diff(block.offsets) == 0]
    counts = {
        "users": len(rows),
        "users_left_out": len(left_out),
        "events": len(block.item_ids),
        "unknown_events": unknown,
        **{name: count - before[name] for name, count in model.search.counts().items()},
    }
    return best, left_out, counts
