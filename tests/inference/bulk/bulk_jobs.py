"""What tests of `seqrec recommend` share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars

from seqrec.data.store import EventStore

COLUMNS = ["user_id", "item_id", "rank", "score"]


def log_of(ckpt: Path) -> polars.DataFrame:
    """The events of the training log, in order."""
    store = EventStore.open(ckpt.parent / "store")
    users = np.repeat(np.arange(1, store.num_users + 1), np.diff(store.offsets))
    return polars.DataFrame(
        {
            "user_id": store.user_vocabulary.external_series(users),
            "item_id": store.item_vocabulary.external_series(np.asarray(store.item_ids)),
            "timestamp": np.asarray(store.timestamps),
        }
    )


def read(folder: str | Path) -> polars.DataFrame:
    """A job's rows; the folder must be one that polars reads as it is."""
    return polars.scan_parquet(folder).collect()


def summary_of(name: str) -> dict[str, Any]:
    return json.loads(Path(f"{name}_summary.json").read_text())
