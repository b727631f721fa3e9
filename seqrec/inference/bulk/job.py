"""Runs a job of recommendations: part after part, and those of other processes left to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from seqrec.catalogue.search import ExactSearch
from seqrec.data.event_block import EventBlock
from seqrec.data.progress import Show, print_line
from seqrec.data.vocabulary import Vocabulary
from seqrec.inference.bulk.output import BulkOutput
from seqrec.inference.bulk.users import BulkUsers
from seqrec.models import Recommender
from seqrec.models.recommending import RecommendOptions, item_ids_of, recommend_block, recommendation_frame
from seqrec.specs import to_spec
from seqrec.types import ROW_STRIDE, Recommendations

Int64 = NDArray[np.int64]

# Users whose lists an approximate search is compared by.
RECALL_USERS = 256


@dataclass(frozen=True)
class BulkJob:
    """What a job does.

    Attributes:
        terms: What each user gets.
        max_length: Newest events that the model sees; None is what it was trained with.
        max_tokens: Events encoded at a time, padding included. It moves nothing but rounding.
        shard: Which share of the parts this process makes: (0, 1) is all, (1, 4) the second of four.
    """

    terms: RecommendOptions
    max_length: int | None = None
    max_tokens: int = 1 << 14
    shard: tuple[int, int] = (0, 1)


def recommend_in_bulk(
    model: Recommender,
    users: BulkUsers,
    files: BulkOutput,
    job: BulkJob,
    *,
    show: Show = print_line,
) -> dict[str, Any] | None:
    """Write recommendations for all users, or those parts that are missing of an earlier try.

    Args:
        model: In evaluation mode, on its device.
        users: Whom to recommend to.
        files: Where the parts go.
        job: What to recommend, and this process's share.
        show: Takes lines for people.

    Returns:
        The summary; None where other processes have parts to write still.

    Raises:
        InputError: a number out of range.
    """
    rank, ranks = job.shard
    parts = [part for part in range(len(users)) if part % ranks == rank]
    missing = [part for part in parts if not files.has(part)]
    total, left = (sum(len(users.rows(part)) for part in some) for some in (parts, missing))
    if left < total:
        show(f"{total - left:,} of {total:,} users are done already")
    if missing:
        searched = _prepare_search(model, users, job, show)
        if rank == 0:
            files.note({"unknown_items": users.unknown_items, **searched})
    bar = tqdm(total=total, initial=total - left, unit=" users", disable=rank != 0, smoothing=0.05)
    with bar, ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for part in missing:
            made = _recommend(model, users, part, job, bar.update)
            if writing is not None:
                writing.result()
            # While the next part is computed; no more than one waits.
            writing = pool.submit(_write, files, part, users, made, item_ids_of(model))
        if writing is not None:
            writing.result()
    return files.finish(len(users))


def recall(model: Recommender, block: EventBlock, job: BulkJob) -> float:
    """Share of the exact best items that the model's search finds, over all users of a block."""
    search, lists = model.search, []
    try:
        for model.search in (search, ExactSearch()):
            best = recommend_block(
                model, block, job.terms, max_length=job.max_length, max_tokens=job.max_tokens
            )
            rows, columns = best.item_ids.numpy().nonzero()
            lists.append(rows * ROW_STRIDE + best.item_ids.numpy()[rows, columns])
    finally:
        model.search = search
    found, exact = lists
    return float(np.isin(exact, found).mean()) if len(exact) else 1.0


def describe(model: Recommender, job: BulkJob) -> dict[str, Any]:
    """All of a model and a job that recommendations depend on, but for rounding, as plain values."""
    blocked = job.terms.blocked
    return {
        "weights": weights_digest(model),
        "top_k": job.terms.top_k,
        "filter_seen": job.terms.filter_seen,
        "block": None if blocked is None else _digest(blocked.tolist()),
        "max_length": job.max_length,
        "search": to_spec(model.search),
    }


def weights_digest(model: Recommender) -> str:
    """Which model it is: its class, settings and weights."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    digest.update(json.dumps(dict(model.hparams), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Made:
    """Recommendations of a part before they are written.

    Attributes:
        best: Of the users in `rows`.
        rows: (U,) user rows.
        left_out: User rows without any known item.
        counts: What the summary adds up.
    """

    best: Recommendations
    rows: Int64
    left_out: Int64
    counts: dict[str, int]


def _prepare_search(model: Recommender, users: BulkUsers, job: BulkJob, show: Show) -> dict[str, Any]:
    model.search.prepare(model.scorer())
    if isinstance(model.search, ExactSearch) or job.shard[0]:
        return {}
    block = users.sample(RECALL_USERS)
    found, name = recall(model, block, job), type(model.search).__name__
    show(f"{name}: recall@{job.terms.top_k} against exact {found:.4f} ({len(block):,} users)")
    return {"recall": found, "recall_users": len(block)}


def _recommend(
    model: Recommender, users: BulkUsers, part: int, job: BulkJob, done: Callable[[int], object]
) -> _Made:
    before, rows = model.search.counts(), users.rows(part)
    block, unknown = users.block(rows)
    best = recommend_block(
        model, block, job.terms, max_length=job.max_length, max_tokens=job.max_tokens, done=done
    )
    left_out = rows[np.diff(block.offsets) == 0]
    done(len(left_out))
    counts = {
        "users": len(rows),
        "users_left_out": len(left_out),
        "events": len(block.item_ids),
        "unknown_events": unknown,
        **{name: count - before[name] for name, count in model.search.counts().items()},
    }
    return _Made(best, rows, left_out, counts)


def _write(files: BulkOutput, part: int, users: BulkUsers, made: _Made, item_vocabulary: Vocabulary) -> None:
    frame = recommendation_frame(made.best, users.names(made.rows), item_vocabulary)
    files.write(part, frame, users.names(made.left_out), made.counts)


def _digest(values: list[int]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
