"""Read a table of items or users: CSV, TSV, JSON lines or Parquet, and vectors in files of numpy next to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from seqrec.data.ids import MISSING_VALUES, cleaned
from seqrec.data.sources.checking import reading
from seqrec.data.sources.csv_rows import CsvRows
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
    missing_values: Sequence[str] = MISSING_VALUES,
    vectors: Mapping[str, str] | None = None,
) -> SideTable:
    """Return the table in some files, at least one, read one after the other.

    CSV and TSV files start with a line of names, and the first 10,000 values decide the type of a column, as in
    `seqrec.Table`.

    Args:
        files: The files.
        key: Name of the column of ids.
        separator: Character between the fields of a text file; None is a tab for `.tsv`, else a comma.
        missing_values: Text of a missing value.
        vectors: `.npy` files by the name of the column that each gives.

    Raises:
        InputError: if a file cannot be read, has no column `key`, or has a row with more fields than columns.
    """
    origin = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    frames = [_frame(file, key, separator, missing_values) for file in files]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    names = frame.collect_schema().names()
    if key not in names:
        raise InputError(f"{origin} has no column {key!r}; it has {', '.join(names)}{did_you_mean(key, names)}")
    arrays = {name: _vectors(name, Path(file)) for name, file in (vectors or {}).items()}
    return SideTable(origin, key, frame, arrays)


def _frame(file: Path, key: str, separator: str | None, missing_values: Sequence[str]) -> pl.LazyFrame:
    kind = suffix(file)
    with reading(file, "a table"):
        if kind in _SCANS:
            frame = _SCANS[kind](file)
            frame.collect_schema()
            return frame
        rows = CsvRows(file, str(file), separator or SEPARATORS.get(kind, ","), '"', missing_values=missing_values)
        with rows.naming_stray_quotes():
            long = rows.frame.with_row_index("row").filter(rows.is_long).head(1).collect(engine="streaming")["row"]
            if len(long):
                (line,) = rows.lines_of(long.to_list())
                raise InputError(f"{file} line {line} has more fields than the {len(rows.names)} columns of the table")
            # Ids are read as text, because they have rules of their own.
            others = [name for name in rows.names if name != key]
            ids = [cleaned(pl.col(key), missing_values)] if key in rows.names else []
            return rows.frame.filter(~rows.is_blank).select(*ids, *rows.typed(others))


def _vectors(name: str, file: Path) -> NDArray[np.floating[Any]]:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"vectors: {file}, of {name!r}, cannot be read as an array of numpy: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"vectors: {file}, of {name!r}, has {found}; give a row of floats for each row of the table")
    return array
