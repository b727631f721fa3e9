"""Times RecTools' training of SASRec, for a Python environment that has `rectools[torch]`.

`python rectools_training.py events.csv settings.json` prints JSON: events a second of each repetition by loss, the
number of targets of an epoch, and versions; `compare_training.py` calls it. Imports nothing of seqrec.
"""

from __future__ import annotations

import json
import time
import warnings
from typing import Any

import pytorch_lightning as pl
from rectools_recommend import read_arguments


class Clock(pl.Callback):
    """Counts the targets of all steps but the first few, and their seconds, with the loading of batches."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.events = 0
        self.began = self.ended = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.began = time.perf_counter()
        if batch_idx >= self.first:
            self.events += int((batch["y"] != 0).sum())

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()


def timed_fit(dataset: Any, loss: str, settings: dict[str, Any]) -> tuple[float, int]:
    """Events a second, and the targets of an epoch."""
    from rectools.models import SASRecModel

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_steps=settings["steps"] + settings["untimed"],
            accelerator="cpu",
            callbacks=[Clock(settings["untimed"])],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_factors=settings["d_model"],
        n_blocks=settings["num_layers"],
        n_heads=settings["num_heads"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["max_length"],
        batch_size=settings["batch_size"],
        loss=loss,
        n_negatives=1,
        get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    # RecTools trains with a copy of the trainer.
    clock = next(each for each in model.fit_trainer.callbacks if isinstance(each, Clock))
    sessions = model.data_preparator.get_dataloader_train().dataset.sessions
    return clock.events / (clock.ended - clock.began), sum(len(session) - 1 for session in sessions)


def main() -> None:
    """Print what each loss takes."""
    warnings.simplefilter("ignore")
    import rectools
    import torch

    (dataset, _, settings), found = read_arguments(), {}
    for loss in settings["losses"]:
        fits = [timed_fit(dataset, loss, settings) for _ in range(settings["repetitions"])]
        found[loss] = [speed for speed, _ in fits]
        targets = fits[0][1]
    versions = {"RecTools": rectools.__version__, "torch": torch.__version__, "lightning": pl.__version__}
    print(json.dumps({"events_per_second": found, "targets": targets, "versions": versions}))


if __name__ == "__main__":
    main()
