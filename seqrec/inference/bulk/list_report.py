"""Coverage, mean popularity and novelty of recommendations that a job has written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import polars
import torch

from seqrec.data.splits import item_counts
from seqrec.data.store import EventStore
from seqrec.evaluation.metrics import list_metrics
from seqrec.types import Recommendations


def list_report(folder: Path, store: EventStore, top_k: int) -> dict[str, float | None]:
    """Return the metrics of the lists in a folder, and write them to `<folder>_metrics.json`.

    Args:
        folder: Parquet parts, of which all are written.
        store: The log that the model was trained on; all its events count for popularity and novelty.
        top_k: Length of the lists.

    Returns:
        `Coverage@K`, `Popularity@K` and `Novelty@K`; see `seqrec.evaluation.metrics`. None if there are no lists.
    """
    file = folder.with_name(f"{folder.stem}_metrics.json")
    metrics = list_metrics(torch.from_numpy(item_counts(store)), cutoffs=(top_k,))
    for part in sorted(folder.glob("part-*.parquet")):
        items = polars.read_parquet(part, columns=["item_id"])["item_id"].value_counts()
        ids = np.repeat(store.item_vocabulary.lookup(items["item_id"].to_list()), items["count"].to_numpy())
        # The metrics only count items, so lists of any users may hold them; item 0 fills the last one.
        lists = torch.from_numpy(np.pad(ids, (0, -len(ids) % top_k))).view(-1, top_k)
        metrics.update(Recommendations(lists, torch.zeros(lists.shape), torch.zeros(len(lists), dtype=torch.int64)))
    found = {name: float(value) for name, value in metrics.compute().items()}
    finite = {name: None if math.isnan(value) else value for name, value in found.items()}
    text = json.dumps(finite, indent=2) + "\n"
    # A job that was complete before leaves its files alone.
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    return finite
