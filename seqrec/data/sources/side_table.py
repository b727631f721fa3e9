"""Read a table of items or users: CSV, TSV, JSON lines or Parquet, and vectors in files of numpy next to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.ids import MISSING_VALUES, cleaned
from seqrec.data.sources.checking import reading
from seqrec.data.sources.csv_rows import CsvRows
from seqrec.data.sources.json_rows import JsonRows
from seqrec.data.sources.source import SideTable, suffix
from seqrec.data.sources.table_file import SEPARATORS
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

_SCANS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": pl.scan_parquet,
    ".jsonl": pl.scan_ndjson,
    ".ndjson": pl.scan_ndjson,
}


def read_table(
    files: Sequence[Path],
    key: str,
    *,
    separator: str | None = None,
    quote: str | None = '"',
    header: Sequence[str] = (),
    keys: Sequence[str] = (),
    missing_values: Sequence[str] | None = None,
    texts: Collection[str] = (),
    derive: Callable[[pl.LazyFrame], pl.LazyFrame] | None = None,
    names: Sequence[str] = (),
    vectors: Mapping[str, str] | None = None,
) -> SideTable:
    """Return the table in some files, at least one, read one after the other.

    CSV and TSV files start with a line of names, and the first 10,000 values decide the type of a column, as in
    `seqrec.Table`.

    Args:
        files: The files.
        key: Name of the column of ids.
        separator: Character between the fields of a text file; None is a tab for `.tsv`, else a comma.
        quote: Character around fields; None if quotes are characters like others.
        header: Names of the columns, if the first line of a text file does not contain them.
        keys: Keys to read of the objects in JSON lines, as text with types as in text files; none reads all.
        missing_values: Text of a missing value; None is `seqrec.data.ids.MISSING_VALUES`.
        texts: Columns that are text though their first values may be numbers.
        derive: Returns the frame of a file with other columns.
        names: Names of the files for messages; none are their paths.
        vectors: `.npy` files by the name of the column that each gives.

    Raises:
        InputError: if a file cannot be read, has no column `key`, or has a row with more fields than columns.
    """
    shown = list(names) or [str(file) for file in files]
    origin = shown[0] if len(files) == 1 else f"{shown[0]} and {len(files) - 1} more"
    missing = MISSING_VALUES if missing_values is None else missing_values
    frames = []
    for file, name in zip(files, shown, strict=True):
        with reading(name, "a table"):
            rows = _text_rows(file, name, separator, quote, header, keys, missing)
            frame = _SCANS[suffix(file)](file) if rows is None else _text_frame(rows, key, texts, missing)
            frames.append(frame if derive is None else derive(frame))
            frames[-1].collect_schema()
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    columns = frame.collect_schema().names()
    if key not in columns:
        raise InputError(f"{origin} has no column {key!r}; it has {', '.join(columns)}{did_you_mean(key, columns)}")
    arrays = {name: _vectors(name, Path(file)) for name, file in (vectors or {}).items()}
    return SideTable(origin, key, frame, arrays)


def _text_rows(
    file: Path,
    origin: str,
    separator: str | None,
    quote: str | None,
    header: Sequence[str],
    keys: Sequence[str],
    missing_values: Sequence[str],
) -> CsvRows | JsonRows | None:
    # None for a file that polars reads with its types.
    if keys:
        return JsonRows(file, origin, keys, missing_values)
    if (kind := suffix(file)) in _SCANS:
        return None
    return CsvRows(file, origin, separator or SEPARATORS.get(kind, ","), quote, list(header) or None, missing_values)


def _text_frame(
    rows: CsvRows | JsonRows, key: str, texts: Collection[str], missing_values: Sequence[str]
) -> pl.LazyFrame:
    if isinstance(rows, JsonRows):
        rows.check()
    with rows.naming_bad_lines():
        long = rows.frame.with_row_index("row").filter(rows.is_long).head(1).collect(engine="streaming")["row"]
        if len(long):
            (line,) = rows.lines_of(long.to_list())
            raise InputError(
                f"{rows.origin} line {line} has more fields than the {len(rows.names)} columns of the table"
            )
        # Ids are read as text, because they have rules of their own.
        others = [name for name in rows.names if name != key]
        ids = [cleaned(pl.col(key), missing_values)] if key in rows.names else []
        return rows.frame.filter(~rows.is_blank).select(*ids, *rows.typed(others, texts))


def _vectors(name: str, file: Path) -> NDArray[np.floating[Any]]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"vectors: {file}, of {name!r}, cannot be read as an array of numpy: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"vectors: {file}, of {name!r}, has {found}; give a row of floats for each row of the table")
    return array
