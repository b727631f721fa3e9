"""Columns of items and users, from the tables of a source to the files of a store.

N items or users; the columns have N + 1 rows, in the order of internal ids, and row 0 is the unknown. W numbers a
vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.columns import Moments, file_names
from seqrec.data.ids import cleaned, whole_numbers
from seqrec.data.prepare.columns import BETWEEN, Codes, check_type, numbers, refuse_not_finite, vectors, width_of
from seqrec.data.prepare.spool import RawColumn, Workspace
from seqrec.data.schema import CATEGORICAL, NUMERIC, VECTOR
from seqrec.data.sources.checking import reading
from seqrec.data.sources.source import SideTable, Source
from seqrec.data.store import ArrayFile
from seqrec.data.vocabulary import Vocabulary
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


def write_table_columns(
    group: str, tables: list[OpenedTable], vocabulary: Vocabulary, directory: Path, work: Workspace
) -> tuple[dict[str, dict[str, Any]], list[ArrayFile], list[str]]:
    """Write the columns of some tables into a store.

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
        columns = {
            name: _column(group, name, opened, len(vocabulary), work)
            for name in opened.kinds
            if name not in opened.table.vectors
        }
        rows, unknown = _read(group, opened, columns, vocabulary, work)
        for name in opened.table.vectors:
            if name in opened.kinds:
                columns[name] = _MappedVectors(opened.table.vectors[name], rows, _where(group, name, opened.table))
        for name, kind in opened.kinds.items():
            entry, written = columns[name].write(directory, file_names(group, name, kind))
            described[name] = {"kind": kind, **entry}
            files += written
        if absent := int((rows[1:] == 0).sum()):
            notes.append(f"{absent:,} of {len(vocabulary):,} {group} have no row in {opened.table.origin}: unknown")
        if unknown:
            notes.append(f"{opened.table.origin}: left out {unknown:,} {group} that have no event")
    for note in notes:
        work.progress.note(note)
    return {name: described[name] for name in getattr(work.schema, group)}, files, notes


def _where(group: str, name: str, table: SideTable) -> str:
    return f"schema.{group}: {name!r} of {table.origin}"


def _read(
    group: str, opened: OpenedTable, columns: dict[str, _Column], vocabulary: Vocabulary, work: Workspace
) -> tuple[Int64, int]:
    # The row (N + 1,) of each id in the table, from 1, or 0 if it has none, and the number of rows without an id.
    table = opened.table
    work.limit.require(8 * (len(vocabulary) + 1), f"the places of {group} in {table.origin}")
    rows, count = np.zeros(len(vocabulary) + 1, np.int64), 0
    others = pl.DataFrame(schema={"key": pl.String, "row": pl.Int64})
    width = sum(column.width for column in columns.values())
    for batch in work.progress.track(f"reading {table.origin}", _batches(table, list(columns), width)):
        keys = _keys(batch[table.key], vocabulary)
        numbered = np.arange(count + 1, count + 1 + len(batch))
        if keys.null_count():
            row = numbered[int(keys.is_null().arg_max() or 0)]
            raise InputError(f"{table.origin}: row {row} has no {table.key}, which must name one of the {group}")
        ids = vocabulary.lookup(keys.to_list() if keys.dtype == pl.String else keys.to_numpy())
        known = ids > 0
        _refuse_repeated_keys(table, keys, ids, rows, numbered)
        rows[ids[known]] = numbered[known]
        if not known.all():
            strangers = pl.DataFrame({"key": keys.cast(pl.String), "row": numbered}).filter(pl.Series(~known))
            others = pl.concat([others, strangers])
        chosen = batch.filter(pl.Series(known))
        for name, column in columns.items():
            column.add(ids[known], chosen[name], numbered[known])
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


def _column(group: str, name: str, opened: OpenedTable, size: int, work: Workspace) -> _Column:
    kind, where, frame = opened.kinds[name], _where(group, name, opened.table), opened.table.frame
    dtype = frame.collect_schema()[name]
    if kind == VECTOR:
        with reading(opened.table.origin, "a table"):
            width = width_of(frame, name, where)
        return _Vectors(work.folder / f"{group}_{name}", size, width, where)
    work.limit.require(8 * (size + 1), f"the values of {where}")
    if kind == NUMERIC:
        return _Numbers(size, where)
    codes = Codes(dtype, work.limit, where)
    return _Categorical(size, codes) if kind == CATEGORICAL else _Categories(size, codes, work, where)


class _Column(ABC):
    """A column while a table is read. `width` is 0 unless a row has several numbers."""

    width = 0

    @abstractmethod
    def add(self, ids: Int64, values: pl.Series, rows: Int64) -> None:
        """Take the values (C,) of some ids; `rows` are their numbers in the table, for messages."""

    @abstractmethod
    def write(self, directory: Path, stems: dict[str, str]) -> tuple[dict[str, Any], list[ArrayFile]]:
        """Write the files, and return the column's description for the manifest, and the files."""


class _Numbers(_Column):
    def __init__(self, size: int, where: str) -> None:
        self._values = np.full(size + 1, np.nan, np.float32)
        self._where = where

    def add(self, ids: Int64, values: pl.Series, rows: Int64) -> None:
        self._values[ids] = numbers(values, self._where)

    def write(self, directory: Path, stems: dict[str, str]) -> tuple[dict[str, Any], list[ArrayFile]]:
        moments = Moments()
        moments.add(self._values)
        entry = {"missing": int(np.isnan(self._values[1:]).sum()), "mean": moments.mean, "std": moments.std}
        return entry, [write_array(directory, stems["values"], self._values)]


class _Categorical(_Column):
    def __init__(self, size: int, codes: Codes) -> None:
        self._values = np.zeros(size + 1, np.uint32)
        self._codes = codes

    def add(self, ids: Int64, values: pl.Series, rows: Int64) -> None:
        self._values[ids] = self._codes.add(values)

    def write(self, directory: Path, stems: dict[str, str]) -> tuple[dict[str, Any], list[ArrayFile]]:
        final = self._codes.ranks()[self._values]
        files = [write_array(directory, stems["values"], final)]
        files += write_vocabulary(directory, stems["vocabulary"], self._codes)
        return {"missing": int((final[1:] == 0).sum())}, files


class _Categories(_Column):
    """Lists of values, without repeated ones, each in ascending order."""

    def __init__(self, size: int, codes: Codes, work: Workspace, where: str) -> None:
        self._size = size
        self._codes = codes
        self._pieces: list[tuple[NDArray[np.uint32], NDArray[np.uint32]]] = []
        self._limit, self._where = work.limit, where

    def add(self, ids: Int64, values: pl.Series, rows: Int64) -> None:
        lists = values
        if not isinstance(values.dtype, (pl.List, pl.Array)):
            lists = values.cast(pl.String).str.split(BETWEEN)
        frame = pl.DataFrame({"id": ids.astype(np.uint32), "value": lists}).explode("value")
        codes = self._codes.add(frame["value"])
        self._limit.require(32 * len(codes), f"the values of {self._where}")
        self._pieces.append((frame["id"].to_numpy()[codes > 0], codes[codes > 0]))

    def write(self, directory: Path, stems: dict[str, str]) -> tuple[dict[str, Any], list[ArrayFile]]:
        owners = np.concatenate([np.zeros(0, np.uint32), *(ids for ids, _ in self._pieces)])
        final = self._codes.ranks()
        codes = final[np.concatenate([np.zeros(0, np.uint32), *(found for _, found in self._pieces)])]
        order = np.lexsort((codes, owners))
        owners, codes = owners[order], codes[order]
        kept = np.ones(len(owners), np.bool_)
        kept[1:] = (owners[1:] != owners[:-1]) | (codes[1:] != codes[:-1])
        owners, codes = owners[kept], codes[kept]
        offsets = np.zeros(self._size + 2, np.int64)
        np.cumsum(np.bincount(owners, minlength=self._size + 1), out=offsets[1:])
        files = [write_array(directory, stems["values"], codes), write_array(directory, stems["offsets"], offsets)]
        files += write_vocabulary(directory, stems["vocabulary"], self._codes)
        return {"missing": int((np.diff(offsets)[1:] == 0).sum())}, files


class _Vectors(_Column):
    """Vectors in lists. They are copied to a file first, because their order in the table may be any."""

    def __init__(self, file: Path, size: int, width: int, where: str) -> None:
        self.width = width
        self._copy, self._where = RawColumn(file, np.float32), where
        self._places, self._count, self._missing = np.zeros(size + 1, np.int64), 0, size

    def add(self, ids: Int64, values: pl.Series, rows: Int64) -> None:
        self._copy.append(vectors(values, self.width, self._where, rows))
        self._places[ids] = np.arange(self._count + 1, self._count + 1 + len(ids))
        self._count += len(ids)
        self._missing -= len(values) - values.null_count()

    def write(self, directory: Path, stems: dict[str, str]) -> tuple[dict[str, Any], list[ArrayFile]]:
        shape = (self._count, self.width)
        copied = np.memmap(self._copy.file, np.float32, "r", shape=shape) if self._count else np.zeros(shape)
        file = _write_vectors(directory, stems["values"], copied, self._places, self._where)
        del copied
        self._copy.file.unlink()
        return {"missing": self._missing}, [file]


class _MappedVectors(_Column):
    """Vectors in a file of numpy, row k for row k of the table."""

    def __init__(self, array: NDArray[np.floating[Any]], rows: Int64, where: str) -> None:
        self._array, self._rows, self._where = array, rows, where

    def add(self, ids: Int64, values: pl.Series, rows: Int64) -> None:
        raise AssertionError("its values are not in the table")

    def write(self, directory: Path, stems: dict[str, str]) -> tuple[dict[str, Any], list[ArrayFile]]:
        file = _write_vectors(directory, stems["values"], self._array, self._rows, self._where)
        return {"missing": int((self._rows[1:] == 0).sum())}, [file]


def _write_vectors(directory: Path, stem: str, array: NDArray[np.floating[Any]], rows: Int64, where: str) -> ArrayFile:
    # For each of `rows` (N + 1,), from 1, its vector in `array`; zeros for row 0. float16 stays, others become float32.
    width = array.shape[1]
    dtype = np.dtype(np.float16 if array.dtype == np.float16 else np.float32)
    file = ArrayFile(directory, stem, dtype, len(rows), width)
    size = max(_BATCH_NUMBERS // width, 1)
    for start in range(0, len(rows), size):
        of_block = rows[start : start + size]
        block = np.zeros((len(of_block), width), dtype)
        with np.errstate(over="ignore"):  # refused on the next line
            block[of_block > 0] = array[of_block[of_block > 0] - 1]
        refuse_not_finite(block, where, of_block)
        file.append(block)
    return file


def write_array(directory: Path, stem: str, values: NDArray[Any]) -> ArrayFile:
    """Write an array (N,) as one file of a store."""
    file = ArrayFile(directory, stem, values.dtype, len(values))
    file.append(values)
    return file


def write_vocabulary(directory: Path, stem: str, codes: Codes) -> list[ArrayFile]:
    """Write the values of a categorical column, in the form that `Vocabulary.open` reads."""
    return [write_array(directory, name, values) for name, values in codes.vocabulary().arrays(stem).items()]
