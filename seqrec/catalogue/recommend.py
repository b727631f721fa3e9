"""Recommend items outside a trainer. B users of a batch, U users of a block, K top-k."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.scorer import Scorer
from seqrec.catalogue.search import ItemSearch
from seqrec.data.event_block import EventBlock
from seqrec.data.event_columns import EventColumn
from seqrec.data.prefetch import prefetched
from seqrec.data.vocabulary import Vocabulary
from seqrec.encoders.layers import newest_events
from seqrec.errors import InputError
from seqrec.types import RaggedItems, Recommendations, SeenItems, SequenceBatch

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class RecommendOptions:
    """Options of a recommendation.

    Attributes:
        top_k: Items per user.
        filter_seen: Whether to leave out the items of the user's history.
        blocked: (N,) int64, ascending: items that are never recommended; None blocks none.
        at: When the recommendations are asked for, in the log's unit, for users without a time of their own; None for
            a model that does not read it.
        allowed: (N,) int64, ascending: the only items that are recommended; None allows all.
    """

    top_k: int = 10
    filter_seen: bool = True
    blocked: Tensor | None = None
    at: int | None = None
    allowed: Tensor | None = None


class RecommendingModel(Protocol):
    """The part of a model that recommending uses; every `Recommender` has it.

    Attributes:
        search: Finds the best items.
        item_vocabulary: The log's item ids; None if the model does not know them.
        user_vocabulary: The log's user ids, likewise.
        event_columns: Columns of events that the model reads.
        training: Whether the model is in training mode.
    """

    search: ItemSearch
    item_vocabulary: Vocabulary | None
    user_vocabulary: Vocabulary | None
    event_columns: tuple[EventColumn, ...]
    training: bool

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def hparams(self) -> Mapping[str, Any]:
        """Settings of the model; `max_length` is read if it is one of them."""

    def last_states(self, batch: SequenceBatch) -> Tensor:
        """Return the (B, D) states after each row's newest event."""

    def scorer(self) -> Scorer:
        """Return the scorer of the current weights."""

    def request_timestamp(self, at: int | datetime | None) -> int | None:
        """Return the time of a request in the log's unit."""

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode."""

    def eval(self) -> Any:
        """Set evaluation mode."""


def best_items(
    model: RecommendingModel, scorer: Scorer, batch: SequenceBatch, options: RecommendOptions
) -> Recommendations:
    """Return the best items for each user of a batch, which is on the model's device.

    Raises:
        InputError: if a user is asked for at a time before its newest event.
    """
    if options.at is not None and batch.request_times is None:
        batch = batch.asked_at(torch.full_like(batch.user_ids, options.at))
    refuse_requests_before_events(batch)
    states, exclude = model.last_states(batch), batch.seen if options.filter_seen else None
    blocked = None if options.blocked is None else options.blocked.to(states.device)
    # A search of the user's own may know no candidates.
    chosen = {} if options.allowed is None else {"allowed": options.allowed.to(states.device)}
    return model.search.top_k(scorer, states, options.top_k, batch.user_ids, exclude=exclude, blocked=blocked, **chosen)


def refuse_requests_before_events(batch: SequenceBatch) -> None:
    """Refuse a batch with a request before the newest event of its user.

    Raises:
        InputError: if there is one.
    """
    history = batch.history
    if batch.request_times is None or history.timestamps is None:
        return
    newest, at = (newest_events(each, history.lengths) for each in (history.timestamps, batch.request_times))
    if (at < newest).any():
        row = int((at < newest).nonzero()[0])
        user = f"user {int(batch.user_ids[row])} of the log" if batch.user_ids[row] else f"row {row} of the batch"
        raise InputError(
            f"at={int(at[row])} is before the newest event, at {int(newest[row])}, of {user}: ask at a later time, or "
            "leave the events after it out"
        )


def best_items_of_each(
    scorer: Scorer,
    states: Tensor,
    user_ids: Tensor,
    seen: Sequence[NDArray[np.integer[Any]]],
    options: Sequence[RecommendOptions],
) -> Recommendations:
    """Return the best items for users who each have their own options, by an exact search.

    Args:
        scorer: Scores the items.
        states: (B, D).
        user_ids: (B,) int64.
        seen: Internal item ids that each user has seen, in any order.
        options: Options of each user.

    Returns:
        (B, K) with the largest `top_k` as K; the first `top_k` of a row are the user's.
    """
    hidden = []
    for items, own in zip(seen, options, strict=True):
        parts = [items.astype(np.int64)] if own.filter_seen else []
        if own.blocked is not None:
            parts.append(own.blocked.numpy())
        hidden.append(torch.from_numpy(np.unique(np.concatenate([np.empty(0, np.int64), *parts]))))
    rows = RaggedItems.from_rows(hidden)
    exclude = SeenItems(rows.item_ids, rows.offsets).to(states.device)
    k = max(own.top_k for own in options)
    chosen = {id(own.allowed): own.allowed for own in options}
    candidates = {key: None if items is None else items.to(states.device) for key, items in chosen.items()}
    if len(candidates) == 1:
        (allowed,) = candidates.values()
        return scorer.top_k(states, k, user_ids, exclude=exclude, allowed=allowed)
    scores = scorer.cast(states).new_empty((len(states), k))
    item_ids = torch.empty_like(scores, dtype=torch.int64)
    for key, allowed in candidates.items():
        # Users with the same candidates are searched together.
        places = [place for place, own in enumerate(options) if id(own.allowed) == key]
        own_rows = torch.tensor(places, device=states.device)
        best = scorer.top_k(states[own_rows], k, user_ids[places], exclude=exclude.of_rows(own_rows), allowed=allowed)
        item_ids[own_rows], scores[own_rows] = best.item_ids, best.scores
    return Recommendations(item_ids, scores, user_ids)


def recommend_block(
    model: RecommendingModel,
    block: EventBlock,
    options: RecommendOptions,
    *,
    max_length: int | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
) -> Recommendations:
    """Return the best items for the users of a block, on the CPU, in the block's order.

    Args:
        model: A trained recommender. Its mode is restored, also after an error.
        block: Histories.
        options: Items per user, and those that are left out.
        max_length: Newest events that the model sees; None is the length that it was trained with, or all events if
            it has none.
        batch_size: Users that each thread encodes at a time; None with `max_tokens`.
        max_tokens: Events that each thread encodes at a time, padding included.

    On a GPU, a thread makes the next batches and copies them while the GPU computes.

    Returns:
        (U, K); users without events get no items.

    Raises:
        InputError: if a number is out of range.
    """
    for name, value in (("max_length", max_length), ("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    scorer, on_cpu = model.scorer(), model.device.type == "cpu"
    longest = int((block.offsets[1:] - block.offsets[:-1]).max(initial=1))
    length = max_length or trained_length(model) or longest
    batches = block.batches(length, batch_size=batch_size, max_tokens=max_tokens)
    shape = (len(block), options.top_k)
    item_ids, scores = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)

    def recommend(rows: NDArray[np.int64], batch: SequenceBatch) -> None:
        with torch.no_grad():
            best = best_items(model, scorer, batch.to(model.device), options)
            item_ids[rows], scores[rows] = best.item_ids.cpu().numpy(), best.scores.float().cpu().numpy()

    # Autocast holds for the thread that turned it on.
    several = on_cpu and model.search.concurrent and not torch.is_autocast_enabled("cpu")
    if not on_cpu:
        batches = prefetched(batches, model.device)
    with evaluating(model):
        _for_each(batches, recommend, torch.get_num_threads() if several else 1)
    return Recommendations(torch.from_numpy(item_ids), torch.from_numpy(scores), torch.from_numpy(block.user_ids))


def _for_each(batches: Iterator[Any], work: Callable[..., None], threads: int) -> None:
    """Call `work(*batch)` for each batch: on several threads, with one thread of torch's in each.

    Work that torch does not divide is then divided too, and results do not depend on the number of threads. Fewer
    batches than threads are computed one after another by all of torch's threads.
    """
    first = list(islice(batches, threads))
    batches = chain(first, batches)
    if threads == 1 or len(first) < threads:
        for batch in batches:
            work(*batch)
        return
    lock = Lock()

    def run() -> None:
        nonlocal batches
        try:
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                work(*batch)
        finally:
            # After an error the other threads stop too.
            with lock:
                batches = iter(())

    try:
        # torch counts threads for each thread that calls it, and for those that will.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = [pool.submit(run) for _ in range(threads)]
            try:
                for each in running:
                    each.result()
            finally:
                with lock:
                    batches = iter(())
    finally:
        torch.set_num_threads(threads)


@contextmanager
def evaluating(model: RecommendingModel) -> Iterator[None]:
    """Turn dropout and gradients off; the model's mode is restored, also after an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def trained_length(model: RecommendingModel) -> int | None:
    """Return the number of newest events that the model was trained on; None if it has no such limit."""
    return int(model.hparams.get("max_length", 0)) or None


def item_ids_of(model: RecommendingModel) -> Vocabulary:
    """Return the log's item ids that a model knows; an `InputError` if it has none, or another catalogue's."""
    vocabulary, num_items = model.item_vocabulary, model.scorer().num_items
    if vocabulary is None:
        raise InputError(
            "the model does not know the log's item ids: load it with seqrec.inference.load, or set "
            "model.item_vocabulary = store.item_vocabulary"
        )
    if len(vocabulary) != num_items:
        raise InputError(f"model.item_vocabulary has {len(vocabulary)} items, but the model was trained on {num_items}")
    return vocabulary


def looked_up(vocabulary: Vocabulary, argument: str, external_ids: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Return internal ids, 0 for ids that the log does not have; an `InputError` names the argument of a wrong type."""
    try:
        return vocabulary.lookup(external_ids)
    except TypeError as error:
        raise InputError(f"{argument}: {error}") from error


def recommendation_frame(best: Recommendations, users: polars.Series, item_vocabulary: Vocabulary) -> polars.DataFrame:
    """Return a frame with one row per item: user_id, item_id, rank (1 is best) and score, user after user.

    `best` is (U, K) on the CPU, and `users` are the names of its rows.
    """
    import polars

    item_ids = best.item_ids.numpy()
    rows, columns = item_ids.nonzero()
    return polars.DataFrame(
        {
            "user_id": users.gather(rows),
            "item_id": item_vocabulary.external_series(item_ids[rows, columns]),
            "rank": (columns + 1).astype(np.int32),
            "score": best.scores.float().numpy()[rows, columns],
        }
    )
