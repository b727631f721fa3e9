"""`Recommender.recommend`: histories as lists, a polars frame or a `History`, and what is unknown among them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.event_block import EventBlock
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError
from seqrec.models.recommending import (
    RecommendOptions,
    block_of_history,
    item_ids_of,
    recommend_block,
    recommendation_frame,
)
from seqrec.types import History, Recommendations

if TYPE_CHECKING:
    import polars

    from seqrec.models.base import Recommender

Int64 = NDArray[np.int64]

# Frames from which warnings of unknown ids point at who called `Recommender.recommend`.
CALLER = 5


def recommend(
    model: Recommender,
    histories: Sequence[Sequence[Any]] | polars.DataFrame | History,
    *,
    top_k: int,
    filter_seen: bool,
    block: Collection[Any] | None,
    max_length: int | None,
    batch_size: int,
) -> Any:
    """See `Recommender.recommend`."""
    blocked = None if block is None else blocked_items(item_ids_of(model), block)
    terms = RecommendOptions(top_k, filter_seen, blocked)

    def best(events: EventBlock) -> Recommendations:
        return recommend_block(model, events, terms, max_length=max_length, batch_size=batch_size)

    if isinstance(histories, History):
        return best(block_of_history(model, histories))
    vocabulary = item_ids_of(model)
    if _is_frame(histories):
        users, events = _block_of_frame(model, vocabulary, histories)
        return recommendation_frame(best(events), users, vocabulary)
    lists = cast("Sequence[Sequence[Any]]", histories)
    found = best(_block_of_lists(vocabulary, lists)).item_ids.numpy()
    names = iter(vocabulary.external_series(found[found > 0]).to_list())
    return [[next(names) for _ in range(count)] for count in (found > 0).sum(1).tolist()]


def blocked_items(vocabulary: Vocabulary, block: Collection[Any]) -> Tensor:
    """(N,) ascending internal ids of the log's item ids that nobody gets.

    Raises:
        InputError: not a collection of ids.

    Warns:
        UserWarning: some of them are not in the catalogue; says how many.
    """
    if isinstance(block, (str, bytes)):
        raise InputError(f"block={block!r} must be a collection of item ids, as in [{block!r}]")
    try:
        found = vocabulary.lookup(block if isinstance(block, np.ndarray) else list(block))
    except TypeError as error:
        raise InputError(f"block: {error}") from error
    if unknown := int((found == 0).sum()):
        warnings.warn(
            f"{unknown} of {len(found)} items of the block list are not in the catalogue",
            stacklevel=CALLER - 1,
        )
    return torch.from_numpy(np.unique(found[found > 0]))


def _is_frame(histories: object) -> TypeGuard[polars.DataFrame]:
    # Of any kind, and without importing polars where nobody has.
    return type(histories).__module__.split(".")[0] == "polars"


def _block_of_lists(vocabulary: Vocabulary, histories: Sequence[Sequence[Any]]) -> EventBlock:
    rows = []
    for number, history in enumerate(histories):
        if isinstance(history, (str, bytes)):
            raise InputError(f"history {number} is {history!r}; give a list of item ids for each user")
        try:
            rows.append(vocabulary.lookup(history))
        except TypeError as error:
            raise InputError(f"history {number}: {error}") from error
    lengths = np.array([len(row) for row in rows], np.int64)
    item_ids = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    users = np.repeat(np.arange(len(rows)), lengths)
    return _known(vocabulary, item_ids, users, np.zeros(len(rows), np.int64), lambda row: f"history {row}")


def _block_of_frame(
    model: Recommender, vocabulary: Vocabulary, frame: Any
) -> tuple[polars.Series, EventBlock]:
    """The frame's users in the order in which they first stand there, and their events by time."""
    import polars

    frame = _checked(frame)
    users = frame[USER_ID].unique(maintain_order=True)
    keys = {
        USER_ID: polars.DataFrame({USER_ID: users, "row": np.arange(len(users))}),
        ITEM_ID: polars.DataFrame(
            {ITEM_ID: (items := frame[ITEM_ID].unique()), "item": _ids(vocabulary, items)}
        ),
    }
    for name, key in keys.items():
        frame = frame.join(key, on=name, how="left", maintain_order="left")
    has_times = TIMESTAMP in frame.columns
    # Events of the same time stay as they stand in the frame.
    frame = frame.sort(["row", TIMESTAMP] if has_times else ["row"], maintain_order=True)
    times = frame[TIMESTAMP].to_physical().cast(polars.Int64).to_numpy() if has_times else None
    known_users = np.zeros(len(users), np.int64)
    if model.user_vocabulary is not None:
        known_users = _ids(model.user_vocabulary, users)
    events = _known(
        vocabulary,
        frame["item"].to_numpy(),
        frame["row"].to_numpy(),
        known_users,
        lambda row: f"{USER_ID}={users[row]!r}",
        times,
    )
    return users, events


def _checked(frame: Any) -> polars.DataFrame:
    import polars

    if isinstance(frame, polars.LazyFrame):
        raise InputError("histories is a LazyFrame; collect() it first, or stream it with seqrec recommend")
    if not isinstance(frame, polars.DataFrame):
        raise InputError(f"histories is a polars {type(frame).__name__}; give a DataFrame")
    wanted = [USER_ID, ITEM_ID] + [TIMESTAMP] * (TIMESTAMP in frame.columns)
    for name in wanted:
        if name not in frame.columns:
            raise InputError(
                f"histories has no column {name!r}; it has {', '.join(frame.columns)}: rename one"
            )
        column = frame[name]
        if nulls := column.null_count():
            raise InputError(f"column {name!r} of histories has {nulls} nulls; drop those rows")
        fits = column.dtype.is_integer() or (
            column.dtype.is_temporal() if name == TIMESTAMP else column.dtype == polars.String
        )
        if not fits:
            allowed = "integers or times" if name == TIMESTAMP else "integers or strings"
            raise InputError(f"column {name!r} of histories is {column.dtype}; it must be {allowed}: cast it")
    return frame.select(wanted)


def _ids(vocabulary: Vocabulary, external_ids: polars.Series) -> Int64:
    import polars

    if external_ids.dtype.is_integer() and external_ids.dtype != polars.UInt64:
        return vocabulary.lookup(external_ids.cast(polars.Int64).to_numpy())
    return vocabulary.lookup(external_ids.to_list())


def _known(
    vocabulary: Vocabulary,
    item_ids: Int64,
    rows: Int64,
    user_ids: Int64,
    name: Any,
    times: Int64 | None = None,
) -> EventBlock:
    """The events whose item is known.

    Raises:
        InputError: a user without any; `name` says which.
    """
    known = item_ids > 0
    counts = np.bincount(rows[known], minlength=len(user_ids))
    if len(counts) and counts.min() == 0:
        row = int(counts.argmin())
        raise InputError(
            f"{name(row)} has no item that the model knows ({int((rows == row).sum())} unknown); leave it out, or "
            "train on a log that has its items"
        )
    if dropped := int(len(known) - known.sum()):
        message = f"dropped {dropped} of {len(known)} events whose item the model does not know"
        warnings.warn(message, stacklevel=CALLER)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return EventBlock(
        item_ids[known], offsets, user_ids, len(vocabulary), None if times is None else times[known]
    )
