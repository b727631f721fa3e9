"""Several files of a table as one log: the same types in all, and one share of malformed rows."""

from __future__ import annotations

from collections.abc import Sequence

from seqrec.data.progress import Progress
from seqrec.data.schema import ITEM_ID, USER_ID
from seqrec.data.sources.base import CheckedLog
from seqrec.data.sources.malformed import leave_out
from seqrec.data.sources.table_file import TableFile
from seqrec.data.sources.table_survey import survey
from seqrec.errors import InputError


def check_tables(files: Sequence[TableFile], max_bad_share: float, progress: Progress | None) -> CheckedLog:
    """Read all files of a log to check them.

    Args:
        files: The files in the order of the log, of which one at least.
        max_bad_share: Largest share of malformed rows, of all files' rows, that are left out.
        progress: Told of each pass over a file.

    Returns:
        The interaction frame, files one after the other.

    Raises:
        InputError: a file is unreadable or empty, too many rows are malformed, or one file has dates and
            another numbers for times.
    """
    import polars as pl

    if len({file.time.is_date for file in files if file.time is not None}) > 1:
        raise InputError(
            f"timestamp={files[0].columns.timestamp!r}: {' and '.join(str(file.path) for file in files)} "
            "have dates in some files, numbers in others"
        )
    progress = progress or Progress()
    surveys = [survey(file, progress, in_millionths=False) for file in files]
    in_millionths = any(found.fractions for found in surveys)
    if in_millionths and any(found.far_times for found in surveys):
        surveys = [survey(file, progress, in_millionths=True) for file in files]
    rows = sum(found.malformed.rows for found in surveys)
    malformed = leave_out([found.malformed for found in surveys], rows, max_bad_share)
    id_types = {
        name: pl.Int64 if all(found.integer_ids[name] for found in surveys) else pl.String
        for name in (USER_ID, ITEM_ID)
    }
    frames = [
        file.interactions(id_types, in_millionths=in_millionths, all_fit=found.all_fit)
        for file, found in zip(files, surveys, strict=True)
    ]
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")
    return CheckedLog(frame, rows - sum(left.count for left in malformed), malformed)
