"""Carry weights and optimizer state of a checkpoint over to a model of another catalogue.

V rows of a table here, N rows in the checkpoint, C values of a column here, K rows of which new items get the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.catalogue.sharding import PLACES
from seqrec.catalogue.table import ItemEmbedding
from seqrec.data.manifest import MissingStoreError
from seqrec.data.schema import CATEGORICAL, ITEMS, USERS
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, StoreError
from seqrec.models.column_heads import columns_of
from seqrec.models.sequential import SequentialRecommender
from seqrec.specs import from_spec, kind_of, shown_spec, to_spec, with_public_paths
from seqrec.training.optim import OptimizerFactory
from seqrec.training.optim.row_optimizer import RowOptimizer

# Rows that are copied at a time.
COPIED_ROWS = 1 << 18
_REMEDY = "or start with a fresh one: warm_start.optimizer_state: false"


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
        origin: A store whose first ids are the rows of the checkpoint's tables.
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
        self.origin = self._store_of_ids(record, given)
        self.items = self._ids(ITEMS, store.item_vocabulary, int(self._was["num_items"]))
        if not (self.items[1:] > 0).any():
            raise InputError(
                f"warm_start.ckpt={path} knows none of the {store.num_items:,} items of {store.directory}: its ids are "
                "those of another catalogue, so there is nothing to carry over"
            )
        # Name of a weight -> (V,) row of the checkpoint's weight, or -1 for a row that it does not have.
        self.by_name: dict[str, Tensor] = {**dict(self._of_tables()), **self._of_columns()}

    def _store_of_ids(self, record: Mapping[str, Any], given: str | None) -> EventStore:
        """Return a store whose first ids are the checkpoint's: the given one, this run's, or that of the record."""
        groups = [(ITEMS, "items", int(self._was["num_items"]))]
        if self._model.users is not None:
            groups.append((USERS, "users", int(self._was["num_users"])))
        places = [self._store.directory, record.get("store")] if given is None else [given]
        # By their absolute paths, as the record has the place, so that none is looked at twice.
        different = {Path(place).absolute(): place for place in places if place is not None}
        for folder in different:
            try:
                store = self._store if folder == self._store.directory.absolute() else EventStore.open(folder)
            except MissingStoreError:
                continue
            # A store with fewer ids has no digest, and neither have the oldest checkpoints.
            found = [(store.digest_of_first(group, count), record.get(key)) for group, key, count in groups]
            if all(digest is not None and digest == was for digest, was in found):
                return store
        looked = " and ".join(map(str, different.values()))
        raise StoreError(
            f"warm_start.ckpt={self._path}: no store with its items{' and users' if len(groups) > 1 else ''} is at "
            f"{looked}; give the folder of the store that it was trained on: warm_start.store"
        )

    def _ids(self, group: str, here: Vocabulary, count: int) -> Tensor:
        # (V,) row of each id in the checkpoint's table; 0 if it has none.
        if self.origin is self._store:
            ids = np.arange(len(here) + 1)
            return torch.from_numpy(np.where(ids <= count, ids, 0))
        origin = self.origin.item_vocabulary if group == ITEMS else self.origin.user_vocabulary
        return torch.from_numpy(origin.first(count).translation(here))

    def _of_tables(self) -> Iterator[tuple[str, Tensor]]:
        for name, table in self._model.tables_by_weight().items():
            is_users = table is self._model.users
            ids = self.items
            if is_users:
                ids = self._ids(USERS, self._store.user_vocabulary, int(self._was["num_users"]))
            rows = torch.where((ids > 0) | (torch.arange(len(ids)) == 0), ids, -1)
            local = slice(None) if table.spread is None else table.spread.shards.local
            yield name, rows[local]
            if table.content is not None:
                yield from self._of_content(name.partition(".")[0], table, USERS if is_users else ITEMS)

    def _of_content(self, prefix: str, table: ItemEmbedding, group: str) -> Iterator[tuple[str, Tensor]]:
        assert table.content is not None
        argument, columns = ("log_user_columns", "user_columns") if group == USERS else ("item_columns", "item_columns")
        for number, name in enumerate(table.content.names):
            here, there = getattr(self._store, columns)[name], getattr(self.origin, columns).get(name)
            if here.vocabulary is None:
                continue
            sizes, stem = self._was[argument][name], f"{prefix}.content.columns.{number}"
            codes = self._saved["state_dict"].get(f"{stem}.values")
            if there is None or (
                codes is not None and not np.array_equal(codes.numpy(), np.asarray(there.values[: len(codes)]))
            ):
                raise StoreError(
                    f"warm_start.ckpt={self._path} was trained with other values of {group}.{name} than "
                    f"{self.origin.directory} has; give the store that it was trained on: warm_start.store"
                )
            yield f"{stem}.weight", _codes(there.vocabulary.first(sizes["num_codes"] - 1), here.vocabulary)

    def _of_columns(self) -> dict[str, Tensor]:
        read, predicted = columns_of(self._was)
        found = {}
        for column in self._model.event_columns:
            if column.kind == CATEGORICAL:
                rows = _codes(read[column.name].vocabulary, column.vocabulary)
                found[f"column_embedding.layers.column_{column.name}.weight"] = rows
        for column in () if self._model.heads is None else self._model.heads.columns:
            if column.kind == CATEGORICAL:
                # A head has no output for code 0.
                rows = _codes(predicted[column.name].vocabulary, column.vocabulary)[1:]
                rows = torch.where(rows > 0, rows - 1, -1)
                stem = f"heads.layers.column_{column.name}"
                found |= {f"{stem}.weight": rows, f"{stem}.bias": rows}
        return found


def _codes(known: Vocabulary, here: Vocabulary) -> Tensor:
    # (C,) code in a checkpoint of each code here; -1 for values that it does not know.
    rows = torch.from_numpy(known.translation(here))
    return torch.where((rows > 0) | (torch.arange(len(rows)) == 0), rows, -1)


def carry_scales(model: SequentialRecommender, hparams: Mapping[str, Any], store: EventStore) -> None:
    """Let a model standardise numbers of columns as a checkpoint's does, in place.

    Args:
        model: The model.
        hparams: Hyperparameters of the checkpoint.
        store: The store of this run, with the columns of items and users.
    """
    read, predicted = columns_of(hparams)
    model.use_scales({**predicted, **read})
    model.use_content_scales(hparams, store)


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
        saved: Weights of the checkpoint by name; tables (N, D) are whole.
        sources: The checkpoint's rows.
        newest: (K,) rows of the checkpoint's tables whose mean new items start with; None keeps their fresh vectors.

    Raises:
        InputError: if a weight is missing, or has another shape.
    """
    tables = model.tables_by_weight()
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
            own[fresh] = 0  # adds nothing, as a value that training did not know
        elif name.startswith("column_embedding."):
            own[fresh] = there[0].to(own)  # until now the value was read as unknown, code 0


def _weights(model: nn.Module, saved: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        # Buffers of items have columns of this log, so they stay.
        if name in saved and not name.endswith((".values", ".offsets", ".trained")):
            yield name, buffer


def _first_vector(there: Tensor, table: ItemEmbedding, newest: Tensor | None) -> Tensor | None:
    """Return the first row of a new item or user: the mean of some rows, and 0 in columns that content replaces.

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

    Args:
        path: The checkpoint.
        model: The model.
        optimizers: The trainer's, of which there must be one.
        saved: Content of the checkpoint; the state of tables is whole.
        sources: The checkpoint's rows.

    Raises:
        InputError: if it is the state of another kind of optimizer or of other shapes, or the optimizer is one that the
            model did not build.
    """
    tables = set(next(iter(saved.get(PLACES) or [{}])))
    found = _state_by_name(path, model, saved, tables)
    optimizer = optimizers[0]
    by_weight = {id(weight): name for name, weight in model.named_parameters()}
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    if len(optimizers) > 1 or any(id(weight) not in by_weight for weight in order):
        raise InputError(f"warm_start.ckpt={path}: the model builds optimizers of its own; {_REMEDY}")
    of_rows = _owners(optimizer)
    of_dense = {frozenset(entries) for name, entries in found.items() if entries and name not in tables}
    state = {}
    for number, weight in enumerate(order):
        name, owner = by_weight[id(weight)], of_rows.get(id(weight))
        if not (entries := found.get(name)):
            continue
        start = _new_state(weight, entries, owner, optimizer)
        if entries.keys() != {"step", *start} if owner else name in tables and frozenset(entries) not in of_dense:
            raise InputError(
                f"warm_start.ckpt={path} keeps {', '.join(sorted(entries))} of {name}, and model.optimizer another "
                f"state: give the same model.optimizer.table and model.item_table.sparse, {_REMEDY}"
            )
        rows, count = sources.by_name.get(name), saved["state_dict"][name].shape[:1]
        if odd := [key for key in start if entries[key].shape != count + start[key].shape[1:]]:
            raise InputError(f"warm_start.ckpt={path} has {odd[0]} of {name} in another shape; give another, {_REMEDY}")
        state[number] = {
            key: _carried(value, start.get(key), rows, whole_step=owner is not None) for key, value in entries.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_by_name(
    path: Path, model: SequentialRecommender, saved: Mapping[str, Any], tables: set[str]
) -> dict[str, dict[str, Any] | None]:
    """Return the state of each weight in a checkpoint, whose optimizer had these row-sparse tables."""
    spec, now = with_public_paths(saved.get("hyper_parameters", {}).get("optimizer")), to_spec(model.optimizer)
    if kind_of(spec) != kind_of(now):
        raise InputError(
            f"warm_start.ckpt={path} has the state of {shown_spec(kind_of(spec))}, but model.optimizer is "
            f"{shown_spec(kind_of(now))}: give the same, {_REMEDY}"
        )
    states = saved.get("optimizer_states") or [{}]
    names = _names_of_state(model, from_spec(spec, OptimizerFactory), tables)
    if not states[0] or len(names) != sum(len(group["params"]) for group in states[0]["param_groups"]):
        raise InputError(f"warm_start.ckpt={path} has no optimizer state of this model; give another, {_REMEDY}")
    return {name: states[0]["state"].get(place) for place, name in enumerate(names)}


def _owners(optimizer: Optimizer) -> dict[int, RowOptimizer]:
    """Return the row-sparse part of each table by its Python id."""
    parts = (part for part in getattr(optimizer, "parts", [optimizer]) if isinstance(part, RowOptimizer))
    return {id(weight): part for part in parts for group in part.param_groups for weight in group["params"]}


def _new_state(
    weight: Tensor, entries: Mapping[str, Any], owner: RowOptimizer | None, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Return the state of a weight before its first step, without single numbers, in the dtypes of saved entries."""
    of_elements = {key: each for key, each in entries.items() if isinstance(each, Tensor) and each.dim() > 0}
    if owner is not None:
        dtype = next((each.dtype for each in of_elements.values()), torch.float32)
        return owner.new_state(weight, dtype)
    own = optimizer.state.get(weight, {})
    return {key: own.get(key, torch.zeros_like(weight, dtype=each.dtype)) for key, each in of_elements.items()}


def _names_of_state(model: SequentialRecommender, factory: OptimizerFactory, tables: set[str]) -> list[str]:
    """Return the names of the parameters in the order of a checkpoint's optimizer, which had these row-sparse tables.

    A table becomes row-sparse when the catalogue grows, and then moves to another part of the optimizer.
    """
    embeddings = {name: table.table for name, table in model.tables_by_weight().items()}
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


def _carried(value: Any, start: Tensor | None, rows: Tensor | None, *, whole_step: bool) -> Any:
    """Return an entry of the state of a weight: by the checkpoint's rows if these are given, others as in `start`."""
    if start is None:
        # Row-sparse optimizers count steps as integers, torch's as tensors.
        return int(value) if whole_step else torch.as_tensor(value, dtype=torch.float32)
    if rows is None:
        return value.clone()
    _copy_rows(start, value, rows)
    return start
