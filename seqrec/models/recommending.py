"""Recommendations outside a trainer: histories in the log's own ids, frames, or internal ids. U users, K top-k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqrec.catalogue.scorer import Scorer, check_top_k
from seqrec.data.event_block import EventBlock
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.types import History, Recommendations, SequenceBatch

if TYPE_CHECKING:
    import polars

    from seqrec.models.base import Recommender


@dataclass(frozen=True)
class RecommendOptions:
    """What is recommended to each user.

    Attributes:
        top_k: Items a user.
        filter_seen: Whether items of the user's history are left out.
        blocked: (N,) int64, ascending: items that nobody gets; None is none.
    """

    top_k: int = 10
    filter_seen: bool = True
    blocked: Tensor | None = None


def best_items(
    model: Recommender, scorer: Scorer, batch: SequenceBatch, terms: RecommendOptions
) -> Recommendations:
    """The best items for the users of a batch on the model's device, by the model's search."""
    states, exclude = model.last_states(batch), batch.seen if terms.filter_seen else None
    blocked = None if terms.blocked is None else terms.blocked.to(states.device)
    return model.search.top_k(scorer, states, terms.top_k, batch.user_ids, exclude=exclude, blocked=blocked)


def recommend_block(
    model: Recommender,
    block: EventBlock,
    terms: RecommendOptions,
    *,
    max_length: int | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    done: Callable[[int], object] | None = None,
) -> Recommendations:
    """The best items for the users of a block, on the CPU, in the block's order.

    Args:
        model: A trained recommender; its mode comes back also after an error.
        block: Histories.
        terms: What is recommended.
        max_length: Newest events that the model sees; None is what it was trained with, or all where it does not say.
        batch_size: Users encoded at a time; None with `max_tokens`.
        max_tokens: Events encoded at a time.
        done: Told the users of each batch.

    Returns:
        (U, K), also for users without events, who get nothing.

    Raises:
        InputError: a number out of range.
    """
    scorer = model.scorer()
    check_top_k(terms.top_k, scorer.num_items)
    for name, value in (("max_length", max_length), ("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    longest = int((block.offsets[1:] - block.offsets[:-1]).max(initial=1))
    limit = max_length or int(model.hparams.get("max_length", 0)) or longest
    shape = (len(block), terms.top_k)
    item_ids, scores = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -torch.inf)
    with evaluating(model):
        for places, batch in block.batches(limit, batch_size=batch_size, max_tokens=max_tokens):
            best = best_items(model, scorer, batch.to(model.device), terms)
            rows = torch.from_numpy(places)
            item_ids[rows], scores[rows] = best.item_ids.cpu(), best.scores.float().cpu()
            if done is not None:
                done(len(rows))
    return Recommendations(item_ids, scores, torch.from_numpy(block.user_ids))


@contextmanager
def evaluating(model: Recommender) -> Iterator[None]:
    """Dropout and gradients off; the model's mode comes back also after an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def recommendation_frame(
    best: Recommendations, users: polars.Series, item_vocabulary: Vocabulary
) -> polars.DataFrame:
    """One row an item, with the columns user_id, item_id, rank (1 is best) and score, user after user.

    Args:
        best: (U, K) on the CPU.
        users: (U,) what to call the users.
        item_vocabulary: The log's item ids.
    """
    import numpy as np
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


def item_ids_of(model: Recommender) -> Vocabulary:
    """The log's item ids that a model knows.

    Raises:
        InputError: it knows none, or those of another catalogue.
    """
    vocabulary, num_items = model.item_vocabulary, model.scorer().num_items
    if vocabulary is None:
        raise InputError(
            "the model does not know the log's item ids: load it with seqrec.inference.load, or set "
            "model.item_vocabulary = store.item_vocabulary"
        )
    if len(vocabulary) != num_items:
        raise InputError(
            f"model.item_vocabulary has {len(vocabulary)} items, but the model was trained on {num_items}"
        )
    return vocabulary


def block_of_history(model: Recommender, history: History) -> EventBlock:
    """A `History` of internal ids as a block.

    Raises:
        InputError: a row without events, or an id that is not in the catalogue.
    """
    num_items, history = model.scorer().num_items, history.to("cpu")
    if len(history.lengths) and int(history.lengths.min()) < 1:
        row = int(history.lengths.argmin())
        raise InputError(f"history row {row} has no event; leave it out")
    item_ids = history.item_ids[history.valid]
    if len(item_ids) and not 1 <= int(item_ids.min()) <= int(item_ids.max()) <= num_items:
        raise InputError(
            f"history has items {int(item_ids.min())}..{int(item_ids.max())}, but the catalogue has 1..{num_items}"
        )
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), history.lengths.cumsum(0)])
    times: Any = None if history.timestamps is None else history.timestamps[history.valid].numpy()
    users = torch.zeros(len(history.lengths), dtype=torch.int64)
    return EventBlock(item_ids.numpy(), offsets.numpy(), users.numpy(), num_items, times)
