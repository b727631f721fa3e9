"""One cell of `benchmark memory`: train a model where the signal lies so many events back, and see if it finds it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.models import Recommender

# Items of the catalogue, all alike: ten guesses are right in one case of fifteen.
NUM_ITEMS = 150
# Training ends where validation HR@10 is above: the signal is found, and at what cost is known.
ENOUGH = 0.95
# Presets whose attention is told distances between events, and not only their items.
ROTARY = ("SASRec", "MoEMaTrRec")


def find_signal(
    folder: str,
    lag: int,
    model: str,
    events: int,
    seconds: float,
    seed: int,
    device: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Train one model until it finds the signal, or its time is over, and test it.

    Args:
        folder: Where event stores are.
        lag: How many events back the signal lies.
        model: Name of an encoder's preset, or of a baseline.
        events: Events of the generated log, before users whose history hardly exceeds the lag are left out.
        seconds: Most time of training, validation included.
        seed: Of weights and order; the log's is 0.
        device: cpu or cuda.
        settings: `d_model`, `num_layers`, `lr`, and `batch_size`, windows of twice the lag.

    Returns:
        `HR@10` and `NDCG@10` of the test, `epochs`, `steps`, `events` and `train_seconds` of the training, and
        `parameters` of the encoder.
    """
    import lightning.pytorch as pl

    from seqrec.models import Baseline
    from seqrec.runs.callbacks import RunMonitor
    from seqrec.runs.provenance import parameter_counts

    pl.seed_everything(seed, verbose=False)
    data = signal_log(folder, lag, events, settings["batch_size"], seed)
    recommender = _recommender(model, data, settings)
    monitor = RunMonitor()
    trainer = pl.Trainer(
        max_epochs=-1,
        max_time=timedelta(seconds=seconds),
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        callbacks=[monitor, _stop_when_found()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recommender, data)
    (metrics,) = trainer.test(recommender, data, verbose=False)
    # Lightning counts the batches of a baseline as steps, though nothing is optimised.
    trained = not isinstance(recommender, Baseline)
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
    """A log in which every event follows from the one `lag` places back, and from nothing else.

    Histories are 1.1 times as long at least, so that every test can be answered, and 1.6 times in the mean; windows
    of twice the lag show each of them whole, or nearly.
    """
    from seqrec.data.datamodule import SequenceDataModule
    from seqrec.data.prepare import Filters
    from seqrec.data.sources import Synthetic
    from seqrec.data.windows import StridedWindows

    mean_events = max(1.6 * lag, 8)
    source = Synthetic(
        num_users=max(1, round(events / mean_events)),
        num_items=NUM_ITEMS,
        mean_events=mean_events,
        lag=lag,
        signal=1.0,
        repeat=0.0,
        popularity_exponent=0.0,
    )
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
    from seqrec import models
    from seqrec.catalogue.table import ItemTable
    from seqrec.evaluation.protocols import FullRanking
    from seqrec.training.losses import FullSoftmax
    from seqrec.training.optim import Adam

    cls = getattr(models, name)
    if issubclass(cls, models.Baseline):
        recommender = cls(data.num_items)
    else:
        recommender = cls(
            data.num_items,
            d_model=settings["d_model"],
            num_layers=settings["num_layers"],
            # Learned positions would have to learn each pair of places anew.
            positions=False,
            max_length=data.max_length,
            dropout=0.0,
            loss=FullSoftmax(),
            optimizer=Adam(settings["lr"]),
            # An item and its successor then have nothing in common that would have to be unlearned.
            item_table=ItemTable(separate_output=True),
            **({"rotary": True} if name in ROTARY else {}),
        )
    # With so few items all have been seen.
    recommender.protocol = FullRanking(filter_seen=False)
    made: Recommender = recommender
    return made


def _stop_when_found() -> pl.Callback:
    import lightning.pytorch as pl

    class StopWhenFound(pl.Callback):
        """Ends training once validation says that the signal is found."""

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if float(trainer.callback_metrics["val_HR@10"]) > ENOUGH:
                trainer.should_stop = True

    return StopWhenFound()
