"""Writes generated logs of any size in the two largest published formats, to measure their preparation.

    python tests/data/large_logs.py yambda-5b /tmp/large/multi_event.parquet --rows 100000000
    python tests/data/large_logs.py vk-lsvd /tmp/large/interactions --rows 100000000

Users are uniform, items follow Zipf's law. The guide page on data has the figures.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

ROWS_OF_PART = 10_000_000
USERS = ITEMS = 1_000_000
EVENT_TYPES = ["listen", "like", "dislike", "unlike", "undislike"]
# Seconds of the 10 months of Yambda.
SECONDS = 26_000_000


def popular_items(rng: np.random.Generator, rows: int) -> pl.Series:
    """Item ids from 1, of which number n is drawn about 1 / n times as often as number 1."""
    return pl.Series(np.exp(rng.random(rows) * np.log(ITEMS)), dtype=pl.UInt32)


def listens(rows: int) -> Iterator[pl.DataFrame]:
    """Parts of a flat `multi_event.parquet` of Yambda: by user, and by time for each user."""
    rng = np.random.default_rng(0)
    parts = -(-rows // ROWS_OF_PART)
    for part in range(parts):
        size = min(ROWS_OF_PART, rows - part * ROWS_OF_PART)
        first, after = USERS * part // parts, USERS * (part + 1) // parts
        ratio = pl.Series(rng.integers(0, 101, size), dtype=pl.UInt16)
        kind = pl.Series(np.where(rng.random(size) < 0.95, 0, rng.integers(1, 5, size)), dtype=pl.UInt8)
        frame = pl.DataFrame(
            {
                "uid": pl.Series(rng.integers(first, after, size), dtype=pl.UInt32),
                "timestamp": pl.Series(5 * rng.integers(0, SECONDS // 5, size), dtype=pl.UInt32),
                "item_id": popular_items(rng, size),
                "is_organic": pl.Series(rng.integers(0, 2, size), dtype=pl.UInt8),
                "played_ratio_pct": ratio,
                "track_length_seconds": pl.Series(rng.integers(30, 400, size), dtype=pl.UInt32),
                "event_type": kind,
            }
        )
        is_listen = pl.col("event_type") == 0
        yield frame.sort("uid", "timestamp").with_columns(
            pl.when(is_listen).then("played_ratio_pct"),
            pl.when(is_listen).then("track_length_seconds"),
            pl.col("event_type").replace_strict(dict(enumerate(EVENT_TYPES)), return_dtype=pl.Enum(EVENT_TYPES)),
        )


def impressions(rows: int) -> Iterator[pl.DataFrame]:
    """Weeks of VK-LSVD, in the order of time."""
    rng = np.random.default_rng(0)
    for begin in range(0, rows, ROWS_OF_PART):
        size = min(ROWS_OF_PART, rows - begin)
        yield pl.DataFrame(
            {
                "user_id": pl.Series(rng.integers(0, USERS, size), dtype=pl.UInt32),
                "item_id": popular_items(rng, size),
                "place": pl.Series(rng.integers(0, 24, size), dtype=pl.UInt8),
                "timespent": pl.Series(rng.integers(0, 256, size), dtype=pl.UInt8),
                "like": rng.random(size) < 0.02,
                "dislike": rng.random(size) < 0.001,
            }
        )


def write(log: str, path: Path, rows: int) -> None:
    """Write a log: VK-LSVD as a folder of weeks, Yambda as one file."""
    if log == "vk-lsvd":
        (path / "train").mkdir(parents=True, exist_ok=True)
        for number, week in enumerate(impressions(rows)):
            week.write_parquet(path / f"train/week_{number:02}.parquet")
        return
    parts = path.parent / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(listens(rows)):
        part.write_parquet(parts / f"{number:04}.parquet")
    pl.scan_parquet(parts / "*.parquet").sink_parquet(path)
    shutil.rmtree(parts)


def main() -> None:
    """Write the log that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=["vk-lsvd", "yambda-5b"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=100_000_000)
    given = parser.parse_args()
    write(given.log, given.path, given.rows)


if __name__ == "__main__":
    main()
