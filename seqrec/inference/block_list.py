"""Files of items that nobody gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqrec.data.schema import ITEM_ID
from seqrec.errors import InputError, MissingInputError


def read_block_list(path: str | Path) -> list[Any]:
    """The log's item ids of a block list: a line each, or the column item_id of a Parquet file.

    Args:
        path: A file whose name ends in `.parquet`, or a text file; blank lines are left out.

    Raises:
        MissingInputError: there is no such file.
        InputError: it cannot be read, or has no such column.
    """
    import polars

    file = Path(path)
    if not file.is_file():
        raise MissingInputError(
            f"block={str(path)!r} does not exist; give a file of item ids, a line each, or Parquet"
        )
    try:
        if file.suffix != ".parquet":
            lines = file.read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
        column = polars.scan_parquet(file).select(ITEM_ID).collect()[ITEM_ID]
    except (UnicodeDecodeError, OSError, polars.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"block={str(path)!r} cannot be read as a list of item ids: {reason}; give a line for each, or Parquet "
            f"with a column {ITEM_ID}"
        ) from error
    if not (column.dtype.is_integer() or column.dtype == polars.String):
        raise InputError(
            f"block={str(path)!r}: column {ITEM_ID} is {column.dtype}; make it integers or strings"
        )
    return list(column.drop_nulls())
