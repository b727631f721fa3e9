"""Results files of runs that never were: targets and attributes of a fixed log, ranks as good as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from seqrec.evaluation.results import Header

PROTOCOL = "full-seenout-tiemean-loo"


def header(**changes: Any) -> Header:
    plain = {
        "model": "SASRec",
        "protocol": PROTOCOL,
        "settings": {"split": "loo", "seen": "out"},
        "normaliser": "achievable",
        "num_items": 500,
        "head_from": 200,
        "torso_from": 100,
    }
    return Header(**plain | changes)


def frame(*, seed: int = 0, users: int = 400, chance: float = 0.05, targets: int = 1) -> pl.DataFrame:
    """Ranks by `seed` and `chance` of a hit a place; all else is the same for all."""
    log, ranks = np.random.default_rng(0), np.random.default_rng(seed)
    rows = users * targets
    lengths = log.integers(3, 200, users)
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users) * 3 + 7, targets),
            "item_id": log.permuted(np.tile(np.arange(1, 501), (users, 1)), axis=1)[:, :targets].flatten(),
            "better": ranks.geometric(chance, rows) - 1,
            "tied": ranks.integers(0, 2, rows),
            "history_length": np.repeat(lengths, targets),
            "item_train_events": log.integers(0, 300, rows),
            "repeated": log.random(rows) < 0.2,
            "timestamp": log.integers(10**9, 10**9 + 10**6, rows),
        }
    )


def write(path: Path, rows: pl.DataFrame, **changes: Any) -> str:
    rows.write_parquet(path, metadata=header(**changes).as_metadata())
    return str(path)
