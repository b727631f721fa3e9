"""Start training from a checkpoint, also one of another catalogue. V rows of a table here, N rows there, D width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.catalogue.sharding import PLACES
from seqrec.catalogue.table import ItemEmbedding
from seqrec.data.datamodule import SequenceDataModule
from seqrec.data.event_columns import EventColumn
from seqrec.data.manifest import MissingStoreError
from seqrec.data.new_events import NewEvents
from seqrec.data.schema import CATEGORICAL, ITEMS, USERS
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, StoreError, check_at_least
from seqrec.models.column_heads import ColumnHead
from seqrec.models.sequential import SequentialRecommender, kind_of, shown_spec
from seqrec.models.trained_on import CHECKPOINT_KEY
from seqrec.runs.checkpoints import read_checkpoint
from seqrec.runs.finding import find_checkpoint
from seqrec.specs import from_spec, to_spec, with_defaults, with_public_paths
from seqrec.training.optim import OptimizerFactory
from seqrec.training.optim.row_optimizer import RowOptimizer

NewItems = Literal["newest", "mean", "random"]
# Rows that are copied at a time.
COPIED_ROWS = 1 << 18
# New items start from the mean of this share of the known ones, but of so many at least.
NEWEST_SHARE, NEWEST_ITEMS = 0.05, 100
# Settings of the item table that decide what its weights mean.
_OF_TABLE = ("temperature", "bias", "separate_output", "content", "ids")


class WarmStart(pl.Callback):
    """Gives a fresh model the weights and the optimizer state of a checkpoint before a fit.

    The log may be another one than the checkpoint's: most often the same store, which has grown. Rows of items, and of
    users if the model has a table of them, are carried over by the log's ids, and rows of categories by their values.
    Schedule, step size and the position in the training order start anew. A run that resumes (`ckpt_path`) is not
    started again.

    Args:
        ckpt: A checkpoint, a run's folder, a folder of runs, or `last`; None does nothing.
        store: Folder of the event store that the checkpoint was trained on, which knows its ids. None looks in the
            store of this run, which may have grown from it, and then where the store was.
        new_items: First vectors of items that the checkpoint does not know: the mean of the known items that entered
            the log last ("newest"), of all known items ("mean"), or a fresh one ("random"). Items of a table with
            content start with their content alone.
        optimizer_state: Whether to carry the state of the optimizer over too. State of new rows is 0, as before their
            first gradient.
        replay: Trains only on events that are newer than the checkpoint's training part, and on older windows that are
            so large a share of all windows, at least 0 and below 1. None trains on all events.

    Raises:
        InputError: if an argument is out of range, or, when the fit starts, the checkpoint does not fit: another width,
            encoder, objective or kind of optimizer, none of the log's items, or no newer events with `replay`.
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

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Carry weights and optimizer state over, unless the run resumes, and choose the events to train on."""
        if self.ckpt is None:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SequenceDataModule) or not isinstance(pl_module, SequentialRecommender):
            raise InputError(
                f"warm_start.ckpt={self.ckpt} needs a SequentialRecommender and a SequenceDataModule, which has the ids"
            )
        path = Path(find_checkpoint(self.ckpt, argument="warm_start.ckpt="))
        # Mapped, because each process of a job reads only the rows that it holds.
        saved = read_checkpoint(path, mapped=True)
        record = saved.get(CHECKPOINT_KEY)
        record = record if isinstance(record, dict) else {}
        if self.replay is not None:
            if "newest" not in record:
                raise InputError(
                    f"warm_start.replay: {path} does not state up to which time it was trained, because its log has no "
                    "timestamps or it was written before seqrec 0.2; leave replay out"
                )
            data.new_events = NewEvents(int(record["newest"]), self.replay)
        if trainer.ckpt_path is not None:
            return
        check_settings(path, saved.get("hyper_parameters", {}), pl_module)
        sources = RowSources(path, saved, record, data.store, self.store, pl_module)
        carry_weights(path, pl_module, saved["state_dict"], sources, self._first_vectors(data, sources))
        pl_module.has_fresh_weights = False
        if self.optimizer_state:
            carry_optimizer_state(path, pl_module, trainer.optimizers, saved, sources)
        known = int((sources.items[1:] > 0).sum())
        rank_zero_info(
            f"warm start from {path}: {known:,} of {data.num_items:,} items are known"
            f"{', with the state of the optimizer' if self.optimizer_state else ''}"
        )

    def _first_vectors(self, data: SequenceDataModule, sources: RowSources) -> Tensor | None:
        """Return the rows (K,) of the checkpoint's table whose mean new items start with; None for fresh vectors."""
        if self.new_items == "random":
            return None
        known = np.flatnonzero(sources.items.numpy() > 0)
        if self.new_items == "newest":
            if data.store.timestamps is not None:
                known = known[np.argsort(data.first_event_times[known], kind="stable")]
            known = known[-max(NEWEST_ITEMS, int(NEWEST_SHARE * len(known))) :]
        return sources.items[torch.from_numpy(known)]


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


class RowSources:
    """For each row of a model's tables, the row of a checkpoint's that has the same id or value.

    Args:
        path: The checkpoint.
        saved: Its content.
        record: Its record of the log.
        store: The store of this run.
        given: Folder of the store that knows the checkpoint's ids, or None.
        model: The model.

    Attributes:
        items: (V,) row of each item in the checkpoint's table; 0 for items that it does not know.

    Raises:
        InputError: if no item of the store is known to the checkpoint.
        StoreError: if no store knows the ids of the checkpoint.
    """

    def __init__(
        self,
        path: Path,
        saved: Mapping[str, Any],
        record: Mapping[str, Any],
        store: EventStore,
        given: str | None,
        model: SequentialRecommender,
    ) -> None:
        self._path, self._saved, self._store, self._model = path, saved, store, model
        self._was = saved.get("hyper_parameters", {})
        self._origin = self._store_of_ids(record, given)
        self.items = self._ids(ITEMS, store.item_vocabulary, int(self._was["num_items"]))
        if not (self.items[1:] > 0).any():
            raise InputError(
                f"warm_start.ckpt={path} knows none of the {store.num_items:,} items of {store.directory}: its ids are "
                "those of another catalogue, so there is nothing to carry over"
            )
        # Name of a weight -> (V,) row of the checkpoint's weight, or -1 for a row that it does not have.
        self.by_name: dict[str, Tensor] = dict(self._of_tables())
        self._take_columns()

    def _store_of_ids(self, record: Mapping[str, Any], given: str | None) -> EventStore:
        """Return a store whose first ids are the checkpoint's: the given one, this run's, or that of the record."""
        groups = [(ITEMS, "items", int(self._was["num_items"]))]
        if self._model.users is not None:
            groups.append((USERS, "users", int(self._was["num_users"])))
        places = [given] if given is not None else [self._store.directory, record.get("store")]
        for place in places:
            try:
                store = self._store if place == self._store.directory else EventStore.open(str(place))
            except MissingStoreError:
                continue
            if all(store.digest_of_first(group, count) == record.get(key) for group, key, count in groups):
                return store
        looked = " and ".join(str(place) for place in dict.fromkeys(map(str, places)))
        raise StoreError(
            f"warm_start.ckpt={self._path}: no store with its items{' and users' if len(groups) > 1 else ''} is at "
            f"{looked}; give the folder of the store that it was trained on: warm_start.store"
        )

    def _ids(self, group: str, here: Vocabulary, count: int) -> Tensor:
        # (V,) row of each id in the checkpoint's table; 0 if it has none.
        if self._origin is self._store:
            ids = np.arange(len(here) + 1)
            return torch.from_numpy(np.where(ids <= count, ids, 0))
        origin = self._origin.item_vocabulary if group == ITEMS else self._origin.user_vocabulary
        return torch.from_numpy(origin.first(count).translation(here))

    def _of_tables(self) -> Iterator[tuple[str, Tensor]]:
        for name, table in self._model.item_tables():
            is_users = table is self._model.users
            ids = self.items
            if is_users:
                ids = self._ids(USERS, self._store.user_vocabulary, int(self._was["num_users"]))
            rows = torch.where((ids > 0) | (torch.arange(len(ids)) == 0), ids, -1)
            local = slice(None) if table.spread is None else table.spread.shards.local
            yield f"{name}.table.weight", rows[local]
            if table.content is not None:
                yield from self._of_content(name, table, USERS if is_users else ITEMS)

    def _of_content(self, prefix: str, table: ItemEmbedding, group: str) -> Iterator[tuple[str, Tensor]]:
        assert table.content is not None
        argument, columns = ("log_user_columns", "user_columns") if group == USERS else ("item_columns", "item_columns")
        for number, name in enumerate(table.content.names):
            here, there = getattr(self._store, columns)[name], getattr(self._origin, columns).get(name)
            if here.vocabulary is None:
                continue
            sizes, stem = self._was[argument][name], f"{prefix}.content.columns.{number}"
            codes = self._saved["state_dict"].get(f"{stem}.values")
            if there is None or (
                codes is not None and not np.array_equal(codes.numpy(), np.asarray(there.values[: len(codes)]))
            ):
                raise StoreError(
                    f"warm_start.ckpt={self._path} was trained with other values of {group}.{name} than "
                    f"{self._origin.directory} has; give the store that it was trained on: warm_start.store"
                )
            yield f"{stem}.weight", _codes(there.vocabulary.first(sizes["num_codes"] - 1), here.vocabulary)

    def _take_columns(self) -> None:
        """Standardise numbers of columns as the checkpoint does, and find the rows of their values."""
        model = self._model
        read = {each.name: each for each in from_spec(self._was.get("event_columns"), EventColumn) or ()}
        predicted = {each.column.name: each.column for each in from_spec(self._was.get("heads"), ColumnHead) or ()}
        for column in model.event_columns:
            if column.kind == CATEGORICAL:
                rows = _codes(read[column.name].vocabulary, column.vocabulary)
                self.by_name[f"column_embedding.layers.column_{column.name}.weight"] = rows
        for column in () if model.heads is None else model.heads.columns:
            if column.kind == CATEGORICAL:
                # A head has no output for code 0.
                rows = _codes(predicted[column.name].vocabulary, column.vocabulary)[1:]
                rows = torch.where(rows > 0, rows - 1, -1)
                stem = f"heads.layers.column_{column.name}"
                self.by_name |= {f"{stem}.weight": rows, f"{stem}.bias": rows}
        model.use_scales({**predicted, **read})
        model.use_content_scales(self._was, self._store)


def _codes(known: Vocabulary, here: Vocabulary) -> Tensor:
    # (C,) code in a checkpoint of each code here; -1 for values that it does not know.
    rows = torch.from_numpy(known.translation(here))
    return torch.where((rows > 0) | (torch.arange(len(rows)) == 0), rows, -1)


@torch.no_grad()
def carry_weights(
    path: Path,
    model: SequentialRecommender,
    saved: Mapping[str, Tensor],
    sources: RowSources,
    newest: Tensor | None,
) -> None:
    """Copy the weights of a checkpoint into a model, in place.

    Args:
        path: The checkpoint.
        model: The model.
        saved: Weights of the checkpoint by name; tables are whole.
        sources: The checkpoint's rows.
        newest: (K,) rows of the checkpoint's tables whose mean new items start with; None keeps their fresh vectors.

    Raises:
        InputError: if a weight is missing, or has another shape.
    """
    tables = {f"{name}.table.weight": table for name, table in model.item_tables()}
    for name, own in _weights(model, saved):
        there, rows = saved.get(name), sources.by_name.get(name)
        if there is None or there.shape[rows is not None :] != own.shape[rows is not None :]:
            state = "has no" if there is None else "has another"
            raise InputError(
                f"warm_start.ckpt={path} {state} {name}, so it may be of another version of the code; train a new model"
            )
        if rows is None:
            own.copy_(there)
            continue
        _copy_rows(own, there, rows)
        fresh = (rows < 0).nonzero().squeeze(1).to(own.device)
        if name in tables and len(fresh):
            first = _first_vector(there, tables[name], None if tables[name] is model.users else newest)
            if first is not None:
                own[fresh] = first.to(own)
        elif ".content." in name:
            own[fresh] = 0  # as a value that training did not know
        elif name.startswith("column_embedding."):
            own[fresh] = there[0].to(own)  # as which it was read before


def _weights(model: nn.Module, saved: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        # Those of items are of this log.
        if name in saved and not name.endswith((".values", ".offsets", ".trained")):
            yield name, buffer


def _first_vector(there: Tensor, table: ItemEmbedding, newest: Tensor | None) -> Tensor | None:
    """Return the first row of a new item or user: the mean of some rows, and 0 in columns that content stands in for.

    Users have no `newest`, and start fresh.
    """
    if newest is None:
        return None if table.content is None else there.new_zeros(there.shape[1], dtype=torch.float32)
    first = there[newest].float().mean(0)
    if table.content is not None:
        first[: table.own_columns] = 0
    return first


def _copy_rows(own: Tensor, there: Tensor, rows: Tensor) -> None:
    """Write row `rows[r]` of a checkpoint's tensor into each row r (V,) of another; -1 leaves a row unchanged."""
    for first in range(0, len(rows), COPIED_ROWS):
        part = rows[first : first + COPIED_ROWS]
        known = (part >= 0).nonzero().squeeze(1)
        own[(known + first).to(own.device)] = there[part[known]].to(own)


def carry_optimizer_state(
    path: Path,
    model: SequentialRecommender,
    optimizers: list[Optimizer],
    saved: Mapping[str, Any],
    sources: RowSources,
) -> None:
    """Give the optimizer of a model the state of a checkpoint's; its settings, such as the step size, stay.

    Raises:
        InputError: if it is the state of another kind of optimizer, or of one that the model did not build.
    """
    remedy = "or start with a fresh one: warm_start.optimizer_state: false"
    spec, now = with_public_paths(saved.get("hyper_parameters", {}).get("optimizer")), to_spec(model.optimizer)
    if kind_of(spec) != kind_of(now):
        raise InputError(
            f"warm_start.ckpt={path} has the state of {shown_spec(kind_of(spec))}, but model.optimizer is "
            f"{shown_spec(kind_of(now))}: give the same, {remedy}"
        )
    states = saved.get("optimizer_states") or [{}]
    optimizer = optimizers[0]
    tables = next(iter(saved.get(PLACES) or [{}]))
    names = _names_of_state(model, from_spec(spec, OptimizerFactory), set(tables))
    if not states[0] or len(names) != sum(len(group["params"]) for group in states[0]["param_groups"]):
        raise InputError(f"warm_start.ckpt={path} has no optimizer state of this model; give another, {remedy}")
    found = {name: states[0]["state"].get(place) for place, name in enumerate(names)}
    by_weight = {id(weight): name for name, weight in model.named_parameters()}
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    if len(optimizers) > 1 or any(id(weight) not in by_weight for weight in order):
        raise InputError(f"warm_start.ckpt={path}: the model builds optimizers of its own; {remedy}")
    of_rows = {
        id(weight)
        for part in getattr(optimizer, "parts", [optimizer])
        if isinstance(part, RowOptimizer)
        for group in part.param_groups
        for weight in group["params"]
    }
    state = {}
    for number, weight in enumerate(order):
        entries, rows = found.get(by_weight[id(weight)]), sources.by_name.get(by_weight[id(weight)])
        if entries:
            state[number] = {
                key: _carried(value, rows, whole_step=id(weight) in of_rows) for key, value in entries.items()
            }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names_of_state(model: SequentialRecommender, factory: OptimizerFactory, tables: set[str]) -> list[str]:
    """Return the names of the parameters in the order of a checkpoint's optimizer, which had these row-sparse tables.

    A table becomes row-sparse when the catalogue grows, and then moves to another part of the optimizer.
    """
    embeddings = {f"{name}.table.weight": table.table for name, table in model.item_tables()}
    before = {name: each.sparse for name, each in embeddings.items()}
    try:
        for name, each in embeddings.items():
            each.sparse = name in tables
        built = factory.build(model)
    finally:
        for name, each in embeddings.items():
            each.sparse = before[name]
    names = {id(weight): name for name, weight in model.named_parameters()}
    return [names[id(weight)] for group in built.param_groups for weight in group["params"]]


def _carried(value: Any, rows: Tensor | None, *, whole_step: bool) -> Any:
    """Return an entry of the state of a weight, by the checkpoint's rows if these are given."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        # Row-sparse optimizers count steps as integers, torch's as tensors.
        return int(value) if whole_step else torch.as_tensor(value, dtype=torch.float32)
    if rows is None:
        return value.clone()
    found = value.new_zeros(len(rows), *value.shape[1:])
    _copy_rows(found, value, rows)
    return found
