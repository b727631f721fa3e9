"""Times RecTools' SASRec `recommend`, for a Python environment that has `rectools[torch]`.

`python rectools_recommend.py events.csv settings.json` prints the seconds of each repetition as JSON;
`compare_recommend.py` calls it. Imports nothing of seqrec.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd


def untrained_model(settings: dict[str, Any]) -> Any:
    """A SASRec that `fit` takes two steps with, as only the time of its recommendations matters."""
    from pytorch_lightning import Trainer
    from rectools.models import SASRecModel

    def trainer() -> Trainer:
        return Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    return SASRecModel(
        n_factors=settings["d_model"],
        n_blocks=settings["num_layers"],
        n_heads=settings["num_heads"],
        session_max_len=settings["max_length"],
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )


def read_arguments() -> tuple[Any, Any, dict[str, Any]]:
    """RecTools' data set of the first argument, users of its events, and the settings, whose threads torch then has."""
    import torch
    from rectools import Columns
    from rectools.dataset import Dataset

    events, settings = pd.read_csv(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(settings["threads"])
    events = events.rename(columns={"timestamp": Columns.Datetime})
    events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
    events[Columns.Weight] = 1.0
    return Dataset.construct(events), events[Columns.User].unique(), settings


def main() -> None:
    """Print the seconds of each repetition."""
    warnings.simplefilter("ignore")
    dataset, users, settings = read_arguments()
    model = untrained_model(settings)
    model.fit(dataset)
    seconds = []
    for _ in range(settings["repetitions"]):
        begin = time.perf_counter()
        found = model.recommend(users, dataset, k=settings["top_k"], filter_viewed=True)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"users": len(users), "rows": len(found), "seconds": seconds}))


if __name__ == "__main__":
    main()
