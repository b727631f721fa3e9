"""Read histories and block lists in the log's ids; unknown items are dropped with a warning."""

from __future__ import annotations

import csv
import io
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.catalogue.candidates import Candidates, allowed_items
from seqrec.catalogue.recommend import (
    RecommendingModel,
    RecommendOptions,
    item_ids_of,
    looked_up,
    recommendation_frame,
)
from seqrec.catalogue.scorer import check_top_k
from seqrec.data.columns import Column
from seqrec.data.event_block import EventBlock
from seqrec.data.event_columns import read_columns
from seqrec.data.schema import ITEM_ID, TIMESTAMP, USER_ID
from seqrec.data.store import EventStore
from seqrec.data.user_files import read_text, refuse_special
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, MissingInputError
from seqrec.types import History, Recommendations

if TYPE_CHECKING:
    import polars

Int64 = NDArray[np.int64]

# Frames from which warnings of unknown ids point at the caller of `Recommender.recommend`.
CALLER = 5


def read_options(
    model: RecommendingModel,
    top_k: int,
    filter_seen: bool,
    block: Collection[Any] | None,
    at: int | datetime | None = None,
    candidates: Candidates | Collection[Any] | None = None,
) -> RecommendOptions:
    """Return options with lists of items in the model's ids; arguments as of `Recommender.recommend`.

    Raises:
        InputError: if `top_k` is out of range, `block` is not a collection of ids, `candidates` are not of this
            catalogue, both leave no item, or the model's `request_timestamp` refuses `at`.

    Warns:
        UserWarning: if items of the block list are not in the catalogue; with their number.
    """
    check_top_k(top_k, model.scorer().num_items)
    blocked = None if block is None else _blocked_items(item_ids_of(model), block)
    allowed = None if candidates is None else allowed_items(model, candidates)
    if allowed is not None and blocked is not None:
        allowed, blocked = allowed[~torch.isin(allowed, blocked)], None
        if not len(allowed):
            raise InputError("block has all items of candidates, so nothing is left to recommend")
    return RecommendOptions(top_k, filter_seen, blocked, model.request_timestamp(at), allowed)


def read_histories(
    model: RecommendingModel, histories: Sequence[Sequence[Any]] | polars.DataFrame | History
) -> tuple[EventBlock, Callable[[Recommendations], Any]]:
    """Read histories in one of the forms that `Recommender.recommend` takes, with its errors and warnings.

    The function that is returned, too, turns recommendations for them, on the CPU, into lists, a frame or internal ids,
    as they were given.
    """
    if isinstance(histories, History):
        return _block_of_history(model, histories), lambda best: best
    vocabulary = item_ids_of(model)
    if _is_frame(histories):
        users, events = _block_of_frame(model, vocabulary, histories)
        return events, lambda best: recommendation_frame(best, users, vocabulary)
    if model.event_columns:
        names = ", ".join(column.name for column in model.event_columns)
        raise InputError(
            f"histories are lists of item ids, but the model reads columns of events: {names}; give a frame with "
            f"user_id, item_id and {names}, or a History with features"
        )
    lists = cast("Sequence[Sequence[Any]]", histories)
    return _block_of_lists(vocabulary, lists), lambda best: id_lists(best.item_ids, vocabulary)


def read_block_list(path: str | Path, argument: str = "block") -> list[Any]:
    """Read a list of the log's item ids, such as those that are never recommended.

    Args:
        path: A Parquet file (`.parquet`) with the column item_id, or a text file. A text file has one id per line, or
            is a table with a line of column names, item_id among them, and fields between commas, semicolons or tabs.
            Quotes, a byte order mark and blanks around an id are no part of it; see `seqrec.data.ids`.
        argument: What the file is called in messages.

    Raises:
        MissingInputError: if the file does not exist.
        InputError: if it cannot be read, has no such column, or has lines of several fields without column names.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "block.txt"
        ...     _ = path.write_text("apple" + chr(10) + "bread")
        ...     read_block_list(path)
        ['apple', 'bread']
    """
    import polars

    from seqrec.data.ids import read_ids

    file = Path(path)
    refuse_special(file, f"{argument}={str(path)!r}")
    if not file.is_file():
        raise MissingInputError(
            f"{argument}={str(path)!r} does not exist; give a file with one item id per line, or Parquet"
        )
    try:
        if file.suffix == ".parquet":
            column = polars.scan_parquet(file).select(ITEM_ID).collect()[ITEM_ID]
        else:
            column = polars.Series(ITEM_ID, _text_ids(file, argument), polars.String)
    except (OSError, csv.Error, polars.exceptions.PolarsError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, PermissionError):
            raise InputError(f"{argument}={str(path)!r} cannot be read: permission denied") from error
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{argument}={str(path)!r} cannot be read as a list of item ids: {reason}; give one id per line, or "
            f"Parquet with a column {ITEM_ID}"
        ) from error
    if not (column.dtype.is_integer() or column.dtype == polars.String):
        raise InputError(f"{argument}={str(path)!r}: column {ITEM_ID} is {column.dtype}; make it integers or strings")
    found = read_ids(column.drop_nulls(), f"{argument}={str(path)!r}")
    if not len(found):
        raise InputError(f"{argument}={str(path)!r} has no item id; leave it out")
    return list(found)


def _text_ids(file: Path, argument: str) -> list[str]:
    """Return the fields of a text file that contain ids."""
    text = read_text(file, f"{argument}={str(file)!r}")
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = next((each for each in "\t;," if each in first), ",")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(field.strip() for field in row)]
    names = [field.strip() for field in rows[0]] if rows else []
    if ITEM_ID in names:
        place = names.index(ITEM_ID)
        return [row[place] if place < len(row) else "" for row in rows[1:]]
    long = next((number for number, row in enumerate(rows, start=1) if len(row) > 1), None)
    if long is not None:
        raise InputError(
            f"{argument}={str(file)!r} row {long} has {len(rows[long - 1])} fields, expected one id; give one id per "
            f"line, or a first line of column names with {ITEM_ID}"
        )
    return [row[0] for row in rows]


def read_candidates(
    model: RecommendingModel, file: str | None, where: str | None, items: EventStore | str, key: str = ITEM_ID
) -> Candidates | None:
    """Return the candidates of a list in a file, of a condition, or those of both; None without either.

    Args:
        model: The model, whose item ids are read.
        file: A list of item ids, as `read_block_list` takes it.
        where: A condition, as `Candidates.where` takes it.
        items: The items' columns for the condition: a store, or a file of a table.
        key: The column of a table with the item ids.

    Raises:
        InputError: if a file cannot be read, an id or a column is unknown, or no item is left.
    """
    vocabulary, found = item_ids_of(model), None
    if file is not None:
        found = Candidates.of_items(read_block_list(file, "candidates"), vocabulary, argument=f"candidates={file!r}")
    if where is not None:
        meeting = Candidates.where(where, items, vocabulary, key=key, argument="where")
        found = meeting if found is None else found & meeting
    return found


def id_lists(item_ids: Tensor, vocabulary: Vocabulary) -> list[list[Any]]:
    """Return the log's ids of internal ids (U, K) on the CPU for each row, without 0."""
    found = item_ids.numpy()
    names = iter(vocabulary.external_series(found[found > 0]).to_list())
    return [[next(names) for _ in range(count)] for count in (found > 0).sum(1).tolist()]


def _blocked_items(vocabulary: Vocabulary, block: Collection[Any]) -> Tensor:
    """Return (N,) ascending internal ids."""
    if isinstance(block, (str, bytes)):
        raise InputError(f"block={block!r} must be a collection of item ids, as in [{block!r}]")
    found = looked_up(vocabulary, "block", block if isinstance(block, np.ndarray) else list(block))
    if unknown := int((found == 0).sum()):
        example = next(iter(itertools.compress(block, found == 0)))
        if unknown == len(found) and vocabulary.is_integer and not any(map(_is_whole_number, block)):
            raise InputError(f"block has no item id such as {vocabulary.external_ids([1])[0]}, but such as {example!r}")
        warnings.warn(
            f"{unknown} of {len(found)} items of the block list are not in the catalogue, such as {example!r}"
            + ("; no item is blocked" if unknown == len(found) else ""),
            stacklevel=CALLER - 1,
        )
    blocked = np.unique(found[found > 0])
    if len(blocked) == len(vocabulary):
        raise InputError(f"block has all {len(blocked):,} items of the catalogue, so nothing is left to recommend")
    return torch.from_numpy(blocked)


def _is_whole_number(external_id: object) -> bool:
    return str(external_id).removeprefix("-").isdecimal()


def _block_of_history(model: RecommendingModel, history: History) -> EventBlock:
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
    columns = {}
    for column in model.event_columns:
        column.checked(history.features, history.item_ids.shape)
        assert history.features is not None
        values = history.features[column.name][history.valid]
        # Numbers are standardised already.
        columns[column.name] = replace(column.column(values.numpy()), mean=0.0, std=1.0)
    return EventBlock(item_ids.numpy(), offsets.numpy(), users.numpy(), num_items, times, event_columns=columns)


def _is_frame(histories: object) -> TypeGuard[polars.DataFrame]:
    # A frame of any kind, found without importing polars.
    return type(histories).__module__.split(".")[0] == "polars"


def _block_of_lists(vocabulary: Vocabulary, histories: Sequence[Sequence[Any]]) -> EventBlock:
    rows = []
    for number, history in enumerate(histories):
        if isinstance(history, (str, bytes)):
            raise InputError(f"history {number} is {history!r}; give a list of item ids for each user")
        rows.append(looked_up(vocabulary, f"history {number}", history))
    lengths = np.array([len(row) for row in rows], np.int64)
    item_ids = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    users = np.repeat(np.arange(len(rows)), lengths)
    return _known(vocabulary, item_ids, users, np.zeros(len(rows), np.int64), lambda row: f"history {row}")


def _block_of_frame(model: RecommendingModel, vocabulary: Vocabulary, frame: Any) -> tuple[polars.Series, EventBlock]:
    """Return the frame's users in order of appearance, and their events by time."""
    import polars

    checked = _checked(frame)
    columns = _columns_of_frame(model, frame)
    frame = checked.with_columns(place=np.arange(len(checked)))
    users = frame[USER_ID].unique(maintain_order=True)
    keys = {
        USER_ID: polars.DataFrame({USER_ID: users, "row": np.arange(len(users))}),
        ITEM_ID: polars.DataFrame(
            {ITEM_ID: (items := frame[ITEM_ID].unique()), "item": vocabulary.lookup_series(items)}
        ),
    }
    for name, key in keys.items():
        frame = frame.join(key, on=name, how="left", maintain_order="left")
    has_times = TIMESTAMP in frame.columns
    # Events with equal times keep the frame's order.
    frame = frame.sort(["row", TIMESTAMP] if has_times else ["row"], maintain_order=True)
    times = frame[TIMESTAMP].to_physical().cast(polars.Int64).to_numpy() if has_times else None
    known_users = np.zeros(len(users), np.int64)
    if model.user_vocabulary is not None:
        known_users = model.user_vocabulary.lookup_series(users)
    events = _known(
        vocabulary,
        frame["item"].to_numpy(),
        frame["row"].to_numpy(),
        known_users,
        lambda row: f"{USER_ID}={users[row]!r}",
        times,
        {name: column.taken(frame["place"].to_numpy()) for name, column in columns.items()},
    )
    return users, events


def _columns_of_frame(model: RecommendingModel, frame: Any) -> dict[str, Column]:
    """Return the columns of a frame that the model reads, in the order of its rows."""

    def values(name: str) -> list[Any]:
        if name not in frame.columns:
            raise InputError(
                f"histories has no column {name!r}, which the model reads; it has {', '.join(frame.columns)}"
            )
        found: list[Any] = frame[name].to_list()
        return found

    return read_columns(model.event_columns, values, lambda row: f"histories, row {row}")


def _checked(frame: Any) -> polars.DataFrame:
    import polars

    if isinstance(frame, polars.LazyFrame):
        raise InputError("histories is a LazyFrame; collect() it first, or stream it with seqrec recommend")
    if not isinstance(frame, polars.DataFrame):
        raise InputError(f"histories is a polars {type(frame).__name__}; give a DataFrame")
    wanted = [USER_ID, ITEM_ID] + [TIMESTAMP] * (TIMESTAMP in frame.columns)
    for name in wanted:
        if name not in frame.columns:
            raise InputError(f"histories has no column {name!r}; it has {', '.join(frame.columns)}: rename one")
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


def _known(
    vocabulary: Vocabulary,
    item_ids: Int64,
    rows: Int64,
    user_ids: Int64,
    name: Any,
    times: Int64 | None = None,
    columns: Mapping[str, Column] = MappingProxyType({}),
) -> EventBlock:
    """Return the events with known items; refuse a row without any, which `name` names."""
    known = item_ids > 0
    counts = np.bincount(rows[known], minlength=len(user_ids))
    if len(counts) and counts.min() == 0:
        row = int(counts.argmin())
        raise InputError(
            f"{name(row)} has no item that the model knows ({int((rows == row).sum())} unknown); leave it out, or "
            "train on a log that has its items"
        )
    if dropped := int(len(known) - known.sum()):
        message = f"dropped {dropped} of {len(known)} events with items that the model does not know"
        warnings.warn(message, stacklevel=CALLER)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    times = None if times is None else times[known]
    kept = {name: column.taken(known) for name, column in columns.items()}
    return EventBlock(item_ids[known], offsets, user_ids, len(vocabulary), times, event_columns=kept)
