"""`seqrec benchmark recall`: which encoder finds a signal a given number of events back, and at which cost."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl

from seqrec.benchmark import harness
from seqrec.benchmark.harness import Benchmark, Row
from seqrec.benchmark.measurement import run_measured
from seqrec.catalogue.table import ItemTable
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.prepare import Filters
from seqrec.data.prepare.memory import spoken_bytes
from seqrec.data.sources import Synthetic
from seqrec.data.windows import StridedWindows
from seqrec.errors import InputError
from seqrec.evaluation.protocols import FullRanking
from seqrec.experiments import ENCODERS, MODELS, is_baseline
from seqrec.models import Recommender
from seqrec.runs.callbacks import RunMonitor
from seqrec.runs.provenance import parameter_counts
from seqrec.training.losses import FullSoftmax
from seqrec.training.optim import Adam

# Items of the catalogue, all alike: ten random items contain the target in one case of fifteen.
NUM_ITEMS = 150
# A signal counts as found above this HR@10 of the test. Training stops above the other HR@10 of validation.
FOUND, ENOUGH = 0.9, 0.95
# Presets with attention that knows distances between events, and not only their items.
ROTARY = ("SASRec", "MoEMaTrRec")
# Baselines that need no times: those of the generated log have no meaning.
BASELINES = ("Popularity", "Markov", "ItemKNN")


def benchmark_recall(
    lags: Sequence[int] = (10, 100, 1000),
    *,
    encoders: Sequence[str] = ("Popularity", *ENCODERS),
    events: int = 2_400_000,
    minutes: float = 10.0,
    d_model: int = 64,
    num_layers: int = 1,
    lr: float = 0.003,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
    json_file: str | None = None,
) -> None:
    """Train encoders on logs in which the next event follows only from the one `lag` places back.

    Every event from the `lag`-th on is the known successor of the event `lag` places back. The events before are drawn
    evenly from 150 items. The events in between therefore carry no information, and popularity is chance. Attention
    has rotary positions, the other encoders know only the order of events. Items have separate vectors as input and as
    output. Each cell trains in a process of its own until validation HR@10 is above .95 or its time is over. The test
    has other targets.

    Args:
        lags: Events from the signal to the target. Histories are windows of twice as many events.
        encoders: Names of presets and baselines.
        events: Events of each generated log. Equal at any lag, to give all encoders the same amount of data.
        minutes: Most time of a cell's training.
        d_model: Width.
        num_layers: Blocks.
        lr: Step size of Adam.
        batch_size: Windows per batch.
        seed: Seed of weights and order.
        device: cpu or cuda.
        json_file: File for the figures, as JSON; written anew after each cell.

    Raises:
        InputError: if an argument is out of range.
    """
    harness.check_numbers(1, lags=lags, empty=False)
    harness.check_names([*ENCODERS, *BASELINES], encoders=encoders)
    for name, value in {"events": events, "minutes": minutes, "lr": lr, "num_layers": num_layers}.items():
        if not value > 0:
            raise InputError(f"{name}={value} must be positive")
    harness.check_device(device)
    settings = {"d_model": d_model, "num_layers": num_layers, "lr": lr, "batch_size": batch_size}
    shared = {"events": events, "seconds": 60 * minutes, "seed": seed, "device": device, "settings": settings}
    benchmark = Benchmark(json_file, settings=shared, cells=[])
    with tempfile.TemporaryDirectory(prefix="seqrec-recall-") as folder:

        def measure(cell: Row) -> Row:
            measured = run_measured(find_signal, {**cell, "folder": folder, "shared": shared})
            return {**measured.value, "peak_bytes": measured.peak_resident}

        cells = [{"lag": lag, "model": model} for lag, model in itertools.product(lags, encoders)]
        benchmark.run("cells", cells, measure, "{model}, {lag:,} events back", _outcome)
    title = (
        f"signal so many events back, {NUM_ITEMS} items, histories of up to twice as many events; width {d_model}, "
        f"blocks {num_layers}, Adam {lr:g}, batches of {batch_size}, {events:,} events before short histories are "
        f"left out, at most {minutes:g} min of training on {device}; found: test HR@10 > {FOUND:g}"
    )
    head = "model | events back | found | HR@10 | NDCG@10 | epochs | steps | train s | events/s | memory"
    benchmark.finish(title, harness.table(head, map(_cells, benchmark["cells"])))


def _outcome(row: Row) -> str:
    found = "found" if row["HR@10"] > FOUND else "not found"
    return f"{found}, HR@10 {row['HR@10']:.4f} after {row['train_seconds']:,.0f} s"


def _cells(row: Row) -> list[str]:
    name = [f"{row['model']}{' (rotary)' if row['model'] in ROTARY else ''}", f"{row['lag']:,}"]
    if harness.failed(row):
        return [*name, harness.DID_NOT_RUN]
    found = ["yes" if row["HR@10"] > FOUND else "no", f"{row['HR@10']:.4f}", f"{row['NDCG@10']:.4f}"]
    counts = [f"{row[count]:,}" for count in ("epochs", "steps")]
    rate = f"{row['events'] / row['train_seconds']:,.0f}" if row["steps"] else ""
    return [*name, *found, *counts, f"{row['train_seconds']:,.0f}", rate, spoken_bytes(row["peak_bytes"])]


def find_signal(folder: str, lag: int, model: str, shared: dict[str, Any]) -> dict[str, Any]:
    """Train one model until it finds the signal or its time is over, and test it.

    See `benchmark_recall` for the arguments. `folder` contains event stores. `shared` are `events`, `seconds` of
    training with validation, `seed`, `device`, and `settings`: `d_model`, `num_layers`, `lr` and `batch_size`.

    Returns:
        `HR@10` and `NDCG@10` of the test, `epochs`, `steps`, `events` and `train_seconds` of the training, and
        `parameters` of the encoder.
    """
    seed, settings = shared["seed"], shared["settings"]
    pl.seed_everything(seed, verbose=False)
    data = signal_log(folder, lag, shared["events"], settings["batch_size"], seed)
    recommender = _recommender(model, data, settings)
    monitor = RunMonitor()
    trainer = pl.Trainer(
        max_epochs=-1,
        max_time=timedelta(seconds=shared["seconds"]),
        accelerator="cpu" if shared["device"] == "cpu" else "gpu",
        devices=1,
        callbacks=[monitor, _StopWhenFound()],
        num_sanity_val_steps=0,
        **harness.QUIET,
    )
    trainer.fit(recommender, data)
    (metrics,) = trainer.test(recommender, data, verbose=False)
    # Lightning counts the batches of a baseline as steps, though nothing is optimised.
    trained = not is_baseline(model)
    return {
        "HR@10": metrics["test_HR@10"],
        "NDCG@10": metrics["test_NDCG@10"],
        "epochs": trainer.current_epoch if trained else 0,
        "steps": trainer.global_step if trained else 0,
        "events": monitor.events,
        "train_seconds": monitor.clock.seconds.get("train", 0.0),
        "parameters": parameter_counts(recommender)["encoder"],
    }


def signal_log(folder: str, lag: int, events: int, batch_size: int, seed: int) -> SequenceDataModule:
    """Return a log in which every event follows from the one `lag` places back, and from nothing else.

    Histories have at least 1.1 times as many events, which makes every target predictable, and 1.6 times on average.
    Windows of twice the lag contain each of them completely, or nearly.
    """
    mean_events = max(1.6 * lag, 8)
    num_users = max(1, round(events / mean_events))
    source = Synthetic(num_users, NUM_ITEMS, mean_events, lag, signal=1.0, repeat=0.0, popularity_exponent=0.0)
    return SequenceDataModule(
        source,
        store=f"{folder}/lag_{lag}",
        # The two newest events are held out.
        filters=Filters(min_user_events=int(1.1 * lag) + 3),
        train_windows=StridedWindows(),
        max_length=2 * lag,
        batch_size=batch_size,
        eval_batch_size=32,
        val_users=500,
        seed=seed,
    )


def _recommender(name: str, data: SequenceDataModule, settings: dict[str, Any]) -> Recommender:
    make: Any = MODELS[name]
    arguments: dict[str, Any] = {
        "d_model": settings["d_model"],
        "num_layers": settings["num_layers"],
        # Learned positions would have to learn each pair of places anew.
        "positions": False,
        "max_length": data.max_length,
        "dropout": 0.0,
        "loss": FullSoftmax(),
        "optimizer": Adam(settings["lr"]),
        # An item and its successor then share no vector, which would have to be unlearned.
        "item_table": ItemTable(separate_output=True),
        **({"rotary": True} if name in ROTARY else {}),
    }
    recommender: Recommender = make(data.num_items, **({} if is_baseline(name) else arguments))
    # With so few items, every user has seen all of them.
    recommender.protocol = FullRanking(filter_seen=False)
    return recommender


class _StopWhenFound(pl.Callback):
    """Stop training when validation shows that the signal is found."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if float(trainer.callback_metrics["val_HR@10"]) > ENOUGH:
            trainer.should_stop = True
