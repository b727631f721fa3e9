"""Start training from the weights of a checkpoint, also of another catalogue. V rows of a table here, D width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.item_counts import first_event_times
from seqrec.data.new_events import NewEvents
from seqrec.errors import InputError, check_at_least
from seqrec.models.carry_over import RowSources, carry_optimizer_state, carry_scales, carry_weights
from seqrec.models.sequential import SequentialRecommender
from seqrec.models.trained_on import record_in
from seqrec.runs.checkpoints import read_checkpoint
from seqrec.runs.finding import find_checkpoint
from seqrec.specs import kind_of, shown_spec, with_defaults

NewItems = Literal["newest", "mean", "random"]
# New items start from the mean of this share of the known ones, but of so many at least.
NEWEST_SHARE, NEWEST_ITEMS = 0.05, 100
# Settings of the item table that decide what its weights mean.
_OF_TABLE = ("temperature", "bias", "separate_output", "content", "ids")


class WarmStart(pl.Callback):
    """Gives a fresh model the weights and the optimizer state of a checkpoint before a fit.

    The log may be another one than the checkpoint's: most often the same store, which has grown. Rows of items, and of
    users if the model has a table of them, are carried over by the log's ids, and rows of categories by their values.
    Schedule, step size and the position in the training order start anew. A run that resumes (`ckpt_path`) is not
    started again, and neither is a model that is fitted again.

    Args:
        ckpt: A checkpoint, a run's folder, a folder of runs, or `last`; None does nothing.
        store: Folder of the event store that the checkpoint was trained on, which knows its ids. None looks in the
            store of this run, which may have grown from it, and then where the store was.
        new_items: First vectors of items that the checkpoint does not know: the mean of the known items that entered
            the log last ("newest", which needs timestamps and else is "mean"), of all known items ("mean"), or a fresh
            one ("random"). Items of a table with content start with their content alone, apart from a bias, which is
            the mean one too, or 0 with "random".
        optimizer_state: Whether to carry the state of the optimizer over too. State of new rows is the optimizer's
            own before their first gradient: 0, or `initial_accumulator` of `RowwiseAdagrad`.
        replay: Trains only on events that are newer than the checkpoint's training part, and on older windows that are
            so large a share of all windows, at least 0 and below 1. None trains on all events.

    Raises:
        InputError: if an argument is out of range, or, when the fit starts, the checkpoint does not fit: another width,
            encoder, objective or kind of optimizer, none of the log's items; or, with `replay`, there are no newer
            events, or a share is asked for of windows that overlap or are random.
        StoreError: if the ids of the checkpoint are not found.

    Example:
        >>> from seqrec.models import WarmStart
        >>> WarmStart("runs/version_0", replay=0.25).new_items
        'newest'
    """

    def __init__(
        self,
        ckpt: str | None = None,
        *,
        store: str | None = None,
        new_items: NewItems = "newest",
        optimizer_state: bool = True,
        replay: float | None = None,
    ) -> None:
        if new_items not in get_args(NewItems):
            raise InputError(f"warm_start.new_items={new_items!r} must be one of {', '.join(get_args(NewItems))}")
        if replay is not None:
            check_at_least(0, **{"warm_start.replay": replay})
            if replay >= 1:
                raise InputError(f"warm_start.replay={replay} must be below 1; leave it out to train on all events")
        self.ckpt = ckpt
        self.store = store
        self.new_items = new_items
        self.optimizer_state = optimizer_state
        self.replay = replay
        self._content: tuple[Path, dict[str, Any]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the events to train on, before a schedule asks for the loader."""
        if self.ckpt is None or stage != "fit":
            return
        data, _ = self._attached(trainer, pl_module)
        data.new_events, self._content = None, None
        if self.replay is not None:
            self._content = path, saved = self._read()
            record = record_in(saved)
            if "newest" not in record:
                raise InputError(
                    f"warm_start.replay: {path} does not state up to which time it was trained, because its log has no "
                    "timestamps or it was written before seqrec 0.2; leave replay out"
                )
            data.new_events = NewEvents(int(record["newest"]), self.replay)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Carry weights and optimizer state over, unless the run resumes or the model was started before."""
        content, self._content = self._content, None  # not kept, whatever follows
        if self.ckpt is None or trainer.ckpt_path is not None:
            return
        data, pl_module = self._attached(trainer, pl_module)
        if pl_module.warm_started_from == self.ckpt:
            rank_zero_info(
                f"warm_start.ckpt={self.ckpt}: the model was started from it before, and keeps the weights that it has "
                "now; its optimizer is a fresh one"
            )
            return
        path, saved = content or self._read()
        record = record_in(saved)
        check_settings(path, saved.get("hyper_parameters", {}), pl_module)
        sources = RowSources(path, saved, record, data.store, self.store, pl_module)
        carry_scales(pl_module, saved["hyper_parameters"], data.store)
        rows = rows_of_first_vectors(self.new_items, sources, record)
        carry_weights(path, pl_module, saved["state_dict"], sources, rows)
        pl_module.has_fresh_weights, pl_module.warm_started_from = False, self.ckpt
        if self.optimizer_state:
            carry_optimizer_state(path, pl_module, trainer.optimizers, saved, sources)
        known = int((sources.items[1:] > 0).sum())
        rank_zero_info(
            f"warm start from {path}: {known:,} of {data.num_items:,} items are known"
            f"{', with the state of the optimizer' if self.optimizer_state else ''}"
        )

    def _attached(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> tuple[SequenceDataModule, SequentialRecommender]:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule) or not isinstance(pl_module, SequentialRecommender):
            raise InputError(
                f"warm_start.ckpt={self.ckpt} needs a SequentialRecommender and a SequenceDataModule, which has the ids"
            )
        return data, pl_module

    def _read(self) -> tuple[Path, dict[str, Any]]:
        assert self.ckpt is not None
        path = Path(find_checkpoint(self.ckpt, argument="warm_start.ckpt="))
        # Mapped, because each process of a job reads only the rows that it holds.
        return path, read_checkpoint(path, mapped=True)


def rows_of_first_vectors(new_items: NewItems, sources: RowSources, record: Mapping[str, Any]) -> Tensor | None:
    """Return the rows (K,) of a checkpoint's table whose mean new items start with; None for fresh vectors.

    `record` is the checkpoint's. Of the newest items those count whose first event was not after its training part.
    """
    if new_items == "random":
        return None
    rows = sources.items[sources.items > 0].numpy()
    if new_items == "newest" and sources.origin.timestamps is None:
        rank_zero_info("warm_start.new_items=newest: the log has no timestamps, so new items start as with mean")
    elif new_items == "newest":
        times = first_event_times(sources.origin)[rows]
        is_trained = times <= record.get("newest", times.max())
        # The rows of others are as fresh as those of new items.
        rows, times = (rows[is_trained], times[is_trained]) if is_trained.any() else (rows, times)
        rows = rows[np.argsort(times, kind="stable")][-max(NEWEST_ITEMS, int(NEWEST_SHARE * len(rows))) :]
    return torch.from_numpy(rows)


def check_settings(path: Path, was: Mapping[str, Any], model: SequentialRecommender) -> None:
    """Compare what the weights of a checkpoint mean with what a model makes of them.

    `was` are the checkpoint's hyperparameters. Dropout, negatives, step size, batches and the storage of the item table
    may differ.

    Raises:
        InputError: if anything else does; the message has all differences.
    """
    before, now = _meaning(was, model.hparams), _meaning(dict(model.hparams), model.hparams)
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        found = ", ".join(
            f"{name}={shown_spec(before.get(name))} (here {shown_spec(now.get(name))})" for name in sorted(differing)
        )
        raise InputError(f"warm_start.ckpt={path} has weights of another model: {found}; give the same settings")


def _meaning(hparams: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    # Settings by name, with defaults for those that older versions lack.
    encoder, table, loss, time = (
        with_defaults(hparams.get(name), here.get(name)) for name in ("encoder", "item_table", "loss", "time")
    )
    found = {"encoder": kind_of(encoder), "loss": kind_of(loss), "time": time}
    arguments = encoder.get("init_args", {}) if isinstance(encoder, dict) else {}
    found |= {name: value for name, value in arguments.items() if "dropout" not in name}
    of_table = table.get("init_args", {}) if isinstance(table, dict) else {}
    found |= {f"item_table.{name}": of_table.get(name) for name in _OF_TABLE}
    found |= {name: hparams.get(name) for name in ("positions", "user_embedding", "user_columns")}
    if hparams.get("positions"):
        found["max_length"] = hparams.get("max_length")
    for name in ("event_columns", "heads"):
        columns = [each["init_args"] for each in hparams.get(name) or ()]
        columns = [each["column"]["init_args"] if name == "heads" else each for each in columns]
        found[name] = [f"{each['name']} ({each['kind']})" for each in columns]
    return found
