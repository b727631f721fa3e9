"""Recommendations for histories in the log's own ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.models import Recommender
from seqrec.types import History, RaggedItems, SequenceBatch


def recommend(
    model: Recommender,
    histories: Sequence[Sequence[Any]],
    vocabulary: Vocabulary,
    *,
    top_k: int = 10,
    max_length: int | None = None,
    filter_seen: bool = True,
    batch_size: int = 128,
) -> list[list[Any]]:
    """Best next items for users given by their histories; they need not have been in training.

    Args:
        model: A trained recommender.
        histories: For each user the log's own item ids, oldest first.
        vocabulary: `EventStore.item_vocabulary` of the store that the model was trained on.
        top_k: Items a user.
        max_length: Newest events that the model sees; None is what the model was trained with.
        filter_seen: Whether items of the history are left out.
        batch_size: Users encoded at a time.

    Returns:
        For each user at most `top_k` of the log's own item ids, best first.

    Raises:
        InputError: a history without any known item, a vocabulary of another catalogue, or a number out of range.

    Warns:
        UserWarning: items that the vocabulary does not know were dropped; says how many.
    """
    num_items = model.scorer().num_items
    if len(vocabulary) != num_items:
        raise InputError(f"vocabulary has {len(vocabulary)} items, but the model was trained on {num_items}")
    if batch_size < 1 or (max_length is not None and max_length < 1):
        raise InputError(f"batch_size={batch_size} and max_length={max_length} must be at least 1")
    known = _known_items(histories, vocabulary)
    limit = max_length or int(model.hparams.get("max_length", 0)) or max(map(len, known), default=1)
    # Users of like length go together; results keep the order that was given.
    order = sorted(range(len(known)), key=lambda user: min(len(known[user]), limit))
    results: list[list[Any]] = [[] for _ in known]
    with _evaluating(model):
        for begin in range(0, len(order), batch_size):
            users = order[begin : begin + batch_size]
            batch = _collate([known[user] for user in users], limit).to(model.device)
            states, exclude = model.last_states(batch), batch.seen if filter_seen else None
            best = model.scorer().top_k(states, top_k, batch.user_ids, exclude=exclude)
            for user, item_ids in zip(users, best.item_ids.cpu().numpy(), strict=True):
                results[user] = list(vocabulary.external_ids(item_ids[item_ids > 0]))
    return results


@contextmanager
def _evaluating(model: Recommender) -> Iterator[None]:
    """Dropout and gradients off; the model's mode comes back also after an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _known_items(
    histories: Sequence[Sequence[Any]], vocabulary: Vocabulary
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Internal ids of each history's known items."""
    known, dropped, total = [], 0, 0
    for user, history in enumerate(histories):
        item_ids = vocabulary.lookup(history)
        known.append(item_ids[item_ids > 0])
        dropped += len(item_ids) - len(known[-1])
        total += len(item_ids)
        if not len(known[-1]):
            raise InputError(
                f"history {user} has no item that the vocabulary knows ({len(item_ids)} unknown); leave it out, "
                "or train on a log that has its items"
            )
    if dropped:
        warnings.warn(
            f"dropped {dropped} of {total} events whose item the vocabulary does not know", stacklevel=3
        )
    return known


def _collate(histories: list[np.ndarray[Any, np.dtype[np.int64]]], limit: int) -> SequenceBatch:
    rows = [torch.from_numpy(history) for history in histories]
    newest = [row[-limit:] for row in rows]
    lengths = torch.tensor([len(row) for row in newest])
    item_ids = torch.nn.utils.rnn.pad_sequence(newest, batch_first=True)
    return SequenceBatch(
        History(item_ids, lengths),
        None,
        torch.zeros(len(rows), dtype=torch.int64),
        RaggedItems.from_rows(rows),
    )
