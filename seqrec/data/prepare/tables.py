"""Columns of items and users, from the tables of a source to the files of a store.

N items or users; the columns have N + 1 rows, in the order of internal ids, and row 0 is the unknown. W numbers a
vector.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.array_files import ArrayFile, write_arrays
from seqrec.data.columns import Moments
from seqrec.data.ids import cleaned, whole_numbers
from seqrec.data.prepare.columns import Codes, check_type, count_missing, refuse_not_finite, width_of
from seqrec.data.prepare.spool import SpooledColumn, SpooledLists, Workspace, gather, spooled_column, use_prefix
from seqrec.data.schema import VECTOR, file_names
from seqrec.data.sources.checking import reading
from seqrec.data.sources.source import SideTable, Source
from seqrec.data.vocabulary import TRANSLATED, Vocabulary
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

Int64 = NDArray[np.int64]
# Numbers of a batch of rows, and of a block of vectors that is copied at a time.
_BATCH_NUMBERS = 1 << 22


@dataclass(frozen=True)
class OpenedTable:
    """A table with the columns of the schema that it gives, kind by name."""

    table: SideTable
    kinds: dict[str, str]


def open_tables(source: Source, group: str, work: Workspace) -> list[OpenedTable]:
    """Return the tables of "items" or "users" that have columns of the schema.

    Raises:
        InputError: if no table has a column, or several have it, or it does not suit its kind.
    """
    kinds, title = getattr(work.schema, group), source.name or type(source).__name__
    if not kinds:
        return []
    tables = source.tables(group, work.progress)
    if not tables:
        raise InputError(
            f"schema.{group} names columns, but the source {title} has no table of {group}; a Table has one by its "
            f"argument {group}: {{path: {group}.csv, key: id}}"
        )
    types: list[dict[str, pl.DataType | None]] = []
    for table in tables:
        with reading(table.origin, "a table"):
            found = dict(table.frame.collect_schema())
        types.append({name: kind for name, kind in found.items() if name != table.key} | dict.fromkeys(table.vectors))
    known = list(dict.fromkeys(name for names in types for name in names))
    opened = [OpenedTable(table, {}) for table in tables]
    for name, kind in kinds.items():
        places = [place for place, names in enumerate(types) if name in names]
        if not places:
            origins = " and ".join(table.origin for table in tables)
            hint = did_you_mean(name, known)
            raise InputError(f"schema.{group}: no column {name!r} in {origins}; columns: {', '.join(known)}{hint}")
        if len(places) > 1:
            twice = " and ".join(tables[place].origin for place in places)
            raise InputError(f"schema.{group}: the column {name!r} is in {twice}; rename one of them")
        dtype, where = types[places[0]][name], _where(group, name, tables[places[0]])
        if dtype is not None:
            check_type(kind, dtype, where)
        elif kind != VECTOR:
            raise InputError(f"{where} is an array of numpy, so its kind is {VECTOR}, not {kind}")
        opened[places[0]].kinds[name] = kind
    return [table for table in opened if table.kinds]


def listed_ids(tables: list[OpenedTable], work: Workspace, *, is_text: bool) -> pl.Series:
    """Return the ids of the items in some tables, which `Filters.items_without_events` keeps, as those of the log.

    Raises:
        InputError: if there is no table, or an id is text and those of the log are integers.
    """
    if not tables:
        raise InputError("filters.items_without_events needs the source's table of items: name columns in schema.items")
    of_log = Vocabulary([] if is_text else np.empty(0, np.int64))
    found = [pl.Series("key", [], pl.String if is_text else pl.Int64)]
    for table in (opened.table for opened in tables):
        for batch in work.progress.track(f"listing items of {table.origin}", _batches(table, [], 0)):
            keys = _keys(batch[table.key], of_log).drop_nulls()
            if keys.dtype != found[0].dtype:
                raise InputError(
                    f"{table.origin}: {table.key} is not always a whole number as the log's item ids are, so "
                    "filters.items_without_events cannot number its items"
                )
            found.append(keys.alias("key"))
    return pl.concat(found)


def write_table_columns(
    group: str, tables: list[OpenedTable], vocabulary: Vocabulary, directory: Path, work: Workspace
) -> tuple[dict[str, dict[str, Any]], list[ArrayFile], list[str]]:
    """Write the columns of some tables into a store. Values of rows without an id are in the vocabularies too.

    Returns:
        The description of each column by name, for the manifest; the files; and notes on ids without a row, and on rows
        without an id.

    Raises:
        InputError: if a table cannot be read, if a key is missing or repeated, or a value does not suit its kind.
    """
    described: dict[str, dict[str, Any]] = {}
    files: list[ArrayFile] = []
    notes: list[str] = []
    for opened in tables:
        table, folder = opened.table, work.folder / group
        folder.mkdir()
        columns = _spooled(group, opened, folder, work)
        rows, unknown = _read(group, opened, columns, vocabulary, work)
        for name, kind in opened.kinds.items():
            stems, column = file_names(group, name, kind), columns.get(name)
            if isinstance(column, SpooledLists):
                entry, written = _write_lists(directory, stems, column, rows)
            else:
                take = _taker(table.vectors[name], _where(group, name, table)) if column is None else column.take
                entry, written = _write_values(directory, stems["values"], take, rows)
            if column is not None and column.codes is not None:
                written += write_vocabulary(directory, stems["vocabulary"], column.codes)
            described[name] = {"kind": kind, **entry}
            files += written
        shutil.rmtree(folder)
        if absent := int((rows[1:] == 0).sum()):
            notes.append(f"{absent:,} of {len(vocabulary):,} {group} have no row in {table.origin}: unknown")
        if unknown:
            notes.append(f"{table.origin}: left out {unknown:,} {group} that have no event")
    for note in notes:
        work.progress.note(note)
    return {name: described[name] for name in getattr(work.schema, group)}, files, notes


def _spooled(group: str, opened: OpenedTable, folder: Path, work: Workspace) -> dict[str, SpooledColumn]:
    # Empty columns for those that the table itself has.
    table, columns = opened.table, {}
    names = [name for name in opened.kinds if name not in table.vectors]
    for place, name in enumerate(names):
        file, where = folder / str(place), _where(group, name, table)
        with reading(table.origin, "a table"):
            dtype, kind = table.frame.collect_schema()[name], opened.kinds[name]
            width = width_of(table.frame, name, where) if kind == VECTOR else None
            columns[name] = spooled_column(kind, file, dtype, width, where, work.limit)
    use_prefix(work, group, columns)
    return columns


def _where(group: str, name: str, table: SideTable) -> str:
    return f"schema.{group}: {name!r} of {table.origin}"


def _read(
    group: str, opened: OpenedTable, columns: dict[str, SpooledColumn], vocabulary: Vocabulary, work: Workspace
) -> tuple[Int64, int]:
    # The row (N + 1,) of each id in the table, from 1, or 0 if it has none, and the number of rows without an id.
    table = opened.table
    # Text is held once more as a column, which is made of Python's strings.
    size = sum(array.nbytes for array in vocabulary.arrays("").values())
    work.limit.require(8 * (len(vocabulary) + 1) + 4 * size, f"ids of {group} and their rows in {table.origin}")
    rows, count, texts = np.zeros(len(vocabulary) + 1, np.int64), 0, _texts(vocabulary)
    others = pl.DataFrame(schema={"key": pl.String, "row": pl.Int64})
    width = sum(column.width or 0 for column in columns.values())
    for batch in work.progress.track(f"reading {table.origin}", _batches(table, list(columns), width)):
        keys = _keys(batch[table.key], vocabulary)
        numbered = np.arange(count + 1, count + 1 + len(batch))
        if keys.null_count():
            row = numbered[int(keys.is_null().arg_max() or 0)]
            raise InputError(f"{table.origin}: row {row} has no {table.key}, which must name one of the {group}")
        ids = _lookup(keys, vocabulary, texts)
        known = ids > 0
        _refuse_repeated_keys(table, keys, ids, rows, numbered)
        rows[ids[known]] = numbered[known]
        if not known.all():
            strangers = pl.DataFrame({"key": keys.cast(pl.String), "row": numbered}).filter(pl.Series(~known))
            others = pl.concat([others, strangers])
        for name, column in columns.items():
            column.append(batch[name])
        count += len(batch)
    if (twice := others.filter(pl.col("key").is_duplicated())).height:
        key = twice["key"][0]
        raise _repeated(table, key, *twice.filter(pl.col("key") == key)["row"][:2])
    for name, array in table.vectors.items():
        if name in opened.kinds and len(array) != count:
            raise InputError(f"{_where(group, name, table)} has {len(array):,} vectors, but the table {count:,} rows")
    return rows, others.height


def _batches(table: SideTable, names: list[str], width: int) -> Iterator[pl.DataFrame]:
    size = max(_BATCH_NUMBERS // (8 + width), 1)
    with reading(table.origin, "a table"):
        frame = table.frame.select(table.key, *names)
        batches = frame.collect_batches(chunk_size=size, maintain_order=True, engine="streaming")
        batch = next(batches, None)
    while batch is not None:
        yield batch
        with reading(table.origin, "a table"):
            batch = next(batches, None)


def _keys(keys: pl.Series, vocabulary: Vocabulary) -> pl.Series:
    """Return the ids of a table as those of the log are written, by the rules of `seqrec.data.ids`; null if missing."""
    if keys.dtype.is_integer() and vocabulary.is_integer:
        return keys.cast(pl.Int64, strict=False)
    text = pl.DataFrame({"key": keys.cast(pl.String)}).select(cleaned(pl.col("key")))
    if not vocabulary.is_integer:
        return text["key"]
    # Text that is no whole number may be the id of an item that the log does not have.
    whole = text.select(pl.coalesce(whole_numbers(pl.col("key")).cast(pl.String), pl.col("key")))["key"]
    return whole if whole.cast(pl.Int64, strict=False).null_count() > whole.null_count() else whole.cast(pl.Int64)


def _texts(vocabulary: Vocabulary) -> pl.Series | None:
    """Return the ids of a vocabulary of text in ascending order as one column, in which thousands are found at once.

    None for other vocabularies.
    """
    if vocabulary.is_integer or not len(vocabulary) or not vocabulary.is_ascending:
        return None
    firsts = range(1, len(vocabulary) + 1, TRANSLATED)
    blocks = (np.arange(first, min(first + TRANSLATED, len(vocabulary) + 1)) for first in firsts)
    return pl.concat([vocabulary.external_series(block) for block in blocks], rechunk=True)


def _lookup(keys: pl.Series, vocabulary: Vocabulary, texts: pl.Series | None) -> Int64:
    # Internal ids (C,), 0 if unknown.
    if texts is None:
        return vocabulary.lookup(keys.to_list() if keys.dtype == pl.String else keys.to_numpy())
    places = np.minimum(texts.search_sorted(keys).to_numpy(), len(texts) - 1)
    ids: Int64 = np.where((texts.gather(places) == keys).to_numpy(), places.astype(np.int64) + 1, 0)
    return ids


def _refuse_repeated_keys(table: SideTable, keys: pl.Series, ids: Int64, rows: Int64, numbered: Int64) -> None:
    known = np.flatnonzero(ids)
    before = known[rows[ids[known]] > 0]
    if len(before):
        place = int(before[0])
        raise _repeated(table, keys[place], int(rows[ids[place]]), int(numbered[place]))
    _, first = np.unique(ids[known], return_index=True)
    if len(first) < len(known):
        place = int(np.setdiff1d(known, known[first])[0])
        earlier = int(np.flatnonzero(ids == ids[place])[0])
        raise _repeated(table, keys[place], int(numbered[earlier]), int(numbered[place]))


def _repeated(table: SideTable, key: object, first: int, second: int) -> InputError:
    return InputError(f"{table.origin}: rows {first} and {second} have the same {table.key}={key!r}; keep one of them")


def _taker(array: NDArray[np.floating[Any]], where: str) -> Callable[[Int64], NDArray[Any]]:
    # The vectors of an array by row, checked. float16 stays, others become float32.
    dtype = np.float16 if array.dtype == np.float16 else np.float32

    def take(rows: Int64) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # refused on the next line
            found: NDArray[np.floating[Any]] = gather(array, rows).astype(dtype)
        refuse_not_finite(found, where, rows)
        return found

    return take


def _write_values(
    directory: Path, stem: str, take: Callable[[Int64], NDArray[Any]], rows: Int64
) -> tuple[dict[str, Any], list[ArrayFile]]:
    # The value of each of `rows` (N + 1,), a block at a time, and the description of the column.
    first = take(rows[:1])
    file = ArrayFile(directory, stem, first.dtype, len(rows), first.shape[1] if first.ndim > 1 else None)
    moments, missing = Moments(), -count_missing(first)
    for block in _blocks(rows, first.size):
        values = take(block)
        file.append(values)
        missing += count_missing(values)
        if first.dtype == np.float32 and first.ndim == 1:
            moments.add(values)
    scale = {"mean": moments.mean, "std": moments.std} if moments.count else {}
    return {"missing": missing, **scale}, [file]


def _write_lists(
    directory: Path, stems: dict[str, str], column: SpooledLists, rows: Int64
) -> tuple[dict[str, Any], list[ArrayFile]]:
    counts = gather(np.diff(column.ends), rows)
    values = ArrayFile(directory, stems["values"], column.dtype, int(counts.sum()))
    for block in _blocks(rows, 1):
        values.append(column.take(block))
    offsets = ArrayFile(directory, stems["offsets"], np.int64, len(rows) + 1)
    offsets.append(np.concatenate([[0], np.cumsum(counts)]))
    return {"missing": int((counts[1:] == 0).sum())}, [values, offsets]


def _blocks(rows: Int64, width: int) -> Iterator[Int64]:
    size = max(_BATCH_NUMBERS // width, 1)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def write_vocabulary(directory: Path, stem: str, codes: Codes) -> list[ArrayFile]:
    """Write the values of a categorical column, in the form that `Vocabulary.open` reads."""
    return write_arrays(directory, codes.vocabulary().arrays(stem))
