"""Events a second of our training beside RecTools', for SASRec with two objectives, on the same log and settings.

    python -m venv peers && peers/bin/pip install -r tests/peers/requirements.txt
    SEQREC_PEERS_PYTHON=peers/bin/python python tests/peers/compare_training.py [ml-1m.zip]

An event is a position with a target, without padding. Both sides train on the newest 200 targets of each user, all of
the log, in batches of 128 users in random order, with Adam of the same settings, one negative uniform over the
catalogue for BCE, and all items for softmax. Steps are timed with the loading of their batches, after two untimed ones.
Ours are the steps of an epoch, as batches of similar lengths differ. RecTools pads each batch to 200, so that a few
steps do. The sides take turns; the fastest repetition of each counts. Set OMP_NUM_THREADS to the threads that both may
use.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from compare_metrics import peers_python
from compare_recommend import events_of, theirs

from seqrec.aliases import __version__
from seqrec.benchmark.harness import QUIET
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.sources import ML1M, Source, Synthetic
from seqrec.data.splits import LeaveOneOut
from seqrec.data.store import EventStore
from seqrec.models import SASRec
from seqrec.training.losses import BCE, FullSoftmax
from seqrec.training.negatives import UniformNegatives
from seqrec.training.optim import Adam
from seqrec.types import SequenceBatch

SETTINGS = {"d_model": 64, "max_length": 200, "num_layers": 2, "num_heads": 2, "dropout": 0.2, "batch_size": 128}
UNTIMED = 2
# RecTools' name of an objective -> ours.
LOSSES = {
    "BCE": lambda: BCE(UniformNegatives(1, exclude_seen=False)),
    "softmax": lambda: FullSoftmax(),
}


class WholeLog(LeaveOneOut):
    """All events are for training."""

    def history_stops(self, store: EventStore, stage: str) -> np.ndarray:
        return np.asarray(store.offsets)[1:]


class Clock(pl.Callback):
    """Counts the targets of all steps but the first few, and their seconds, with the loading of batches."""

    def __init__(self) -> None:
        self.events = self.all_events = 0
        self.began = self.ended = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: SequenceBatch, batch_idx: int) -> None:
        if batch_idx == UNTIMED:
            self.began = time.perf_counter()
        targets = int((batch.targets != 0).sum())
        self.all_events += targets
        self.events += targets if batch_idx >= UNTIMED else 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = time.perf_counter()


def ours(source: Source, folder: Path, loss: str) -> tuple[float, int]:
    """Events a second of an epoch, and its targets."""
    torch.manual_seed(0)
    sizes = {name: SETTINGS[name] for name in ("max_length", "batch_size")}
    data = SequenceDataModule(source, store=str(folder / "store"), split=WholeLog(), **sizes)
    shape = {name: value for name, value in SETTINGS.items() if name != "batch_size"}
    model = SASRec(data.num_items, **shape, loss=LOSSES[loss](), optimizer=Adam(lr=1e-3))
    clock = Clock()
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[clock], limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=data)
    return clock.events / (clock.ended - clock.began), clock.all_events


def compare(
    source: Source, python: str, *, rounds: int = 2, steps: int = 10, losses: tuple[str, ...] = tuple(LOSSES)
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Events a second by objective and side, the fastest of all rounds, and RecTools' versions."""
    best: dict[str, dict[str, float]] = {loss: {"RecTools": 0.0, "seqrec": 0.0} for loss in losses}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = SequenceDataModule(source, store=str(folder / "store")).store
        events_of(store).write_csv(folder / "events.csv")
        own = {"threads": torch.get_num_threads(), "untimed": UNTIMED, "repetitions": 1, "steps": steps}
        for _ in range(rounds):
            for loss in losses:
                (folder / "settings.json").write_text(json.dumps(SETTINGS | own | {"losses": [loss]}))
                found = theirs("rectools_training.py", folder / "events.csv", folder / "settings.json", python)
                best[loss]["RecTools"] = max(best[loss]["RecTools"], *found["events_per_second"][loss])
                for _ in range(2):
                    speed, targets = ours(source, folder, loss)
                    best[loss]["seqrec"] = max(best[loss]["seqrec"], speed)
                    assert targets == found["targets"]
    return best, found["versions"]


def main() -> None:
    """Print events a second and ratios."""
    warnings.simplefilter("ignore")
    python = peers_python()
    if python is None:
        raise SystemExit("error: set SEQREC_PEERS_PYTHON to a Python with tests/peers/requirements.txt installed")
    source = ML1M(sys.argv[1]) if len(sys.argv) > 1 else Synthetic(num_users=600, num_items=500, mean_events=60)
    found, versions = compare(source, python)
    threads = os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())
    print(f"{', '.join(f'{name} {value}' for name, value in SETTINGS.items())}, threads {threads}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"seqrec {__version__}, torch {torch.__version__}, lightning {pl.__version__}")
    for loss, speeds in found.items():
        for side, events in speeds.items():
            print(f"{loss:<9}{side:<10}{events:>10,.0f} events/s{events / speeds['RecTools']:>8.2f} of RecTools")


if __name__ == "__main__":
    main()
