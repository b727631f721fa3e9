"""Use a trained model with a newer item table: further items are recommended by their content. D width."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.catalogue.table import ItemEmbedding
from seqrec.data.columns import Column
from seqrec.data.store import EventStore
from seqrec.errors import InputError
from seqrec.models import SequentialRecommender


def with_items_of(model: SequentialRecommender, old: EventStore, new: EventStore) -> SequentialRecommender:
    """Return a trained model with `ItemTable.content` for the catalogue of another store; nothing is trained.

    Items of the model keep their vectors and take their columns from the new store. Further items have only their
    content. Values of categories that training did not know add nothing. Numbers are standardised, and vectors scaled,
    as in training.

    Args:
        model: The model. It is unchanged.
        old: The store that it was trained on.
        new: A store with all of its items, and others.

    Raises:
        InputError: if the model has no content, or the new store lacks items or columns of it.

    Example:
        >>> from seqrec import SASRec
        >>> with_items_of(SASRec(num_items=20, d_model=8), None, None)
        Traceback (most recent call last):
            ...
        seqrec.errors.InputError: the model has no item_table.content, so it knows nothing of other items; train a model
    """
    names = model.item_table.content
    if not names:
        raise InputError("the model has no item_table.content, so it knows nothing of other items; train a model")
    places = new.item_vocabulary.translation(old.item_vocabulary)
    if lacking := int((places[1:] == 0).sum()):
        raise InputError(
            f"{new.directory} lacks {lacking:,} of the {len(places) - 1:,} items that the model was trained on; keep "
            "them in the item table, and prepare it with data.filters.items_without_events: true"
        )
    sizes: dict[str, Any] = {}
    for name in names:
        if name not in new.item_columns or new.item_columns[name].kind != old.item_columns[name].kind:
            raise InputError(f"the model reads items.{name}, which {new.directory} has not, or as another kind")
        was = model.hparams["item_columns"][name]
        sizes[name] = {**new.item_column_sizes[name], "mean": was["mean"], "std": was["std"]}
    other = type(model).from_hyperparameters({**model.hparams, "num_items": new.num_items, "item_columns": sizes})
    state = model.state_dict()
    for prefix, table in (("items", other.items), ("output_items", other.output_items)):
        if table is not None:
            assert table.content is not None
            table.content.read(new.item_columns, sizes=sizes)
            _translate(prefix, state, table, torch.from_numpy(places), old, new, names)
    other.load_state_dict(state)
    other.use_store(new)
    return other.to(model.device).train(model.training)


def _translate(
    prefix: str,
    state: dict[str, Any],
    table: ItemEmbedding,
    places: Tensor,
    old: EventStore,
    new: EventStore,
    names: tuple[str, ...],
) -> None:
    """Replace the rows of items and of codes in a state by those of the other table."""
    wanted = table.state_dict()
    for name, own in wanted.items():
        if name in ("table.weight", "trained"):
            state[f"{prefix}.{name}"] = _moved(state[f"{prefix}.{name}"], places, len(own))
        elif name.endswith((".values", ".offsets")):
            state[f"{prefix}.{name}"] = own
    for number, name in enumerate(names):
        codes = _codes(old.item_columns[name], new.item_columns[name])
        if codes is not None:
            key = f"{prefix}.content.columns.{number}.weight"
            state[key] = _moved(state[key], torch.from_numpy(codes), new.item_columns[name].num_codes)
    # A column that has grown beyond checkpoints is in the store.
    for key in [key for key in state if key.startswith(f"{prefix}.")]:
        if key.removeprefix(f"{prefix}.") not in wanted:
            del state[key]


def _moved(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Return (count, ..) rows with each of the old ones at its place, and zeros."""
    found = rows.new_zeros(count, *rows.shape[1:])
    # A code that the new store has no longer is 0, as is padding, which stays zero.
    places = places.to(rows.device)
    found[places[places > 0]] = rows[places > 0]
    return found


def _codes(old: Column, new: Column) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    if old.vocabulary is None or new.vocabulary is None:
        return None
    return new.vocabulary.translation(old.vocabulary)
