"""Optimizer state of sharded tables in checkpoints, which contain whole tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from seqrec.catalogue.sharding.embedding import ShardedEmbedding
from seqrec.catalogue.sharding.exchange import gathered
from seqrec.errors import InputError

# Entry of a checkpoint: for each optimizer the tables' names with their numbers in its state.
PLACES = "table_places"


def save_whole_state(
    checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], tables: Mapping[str, nn.Embedding]
) -> None:
    """Put the whole optimizer state of tables into a checkpoint, in place; all processes must call.

    State with rows, such as the moments (V_local, D) of Adam, becomes that of all rows on rank 0's CPU, and a tensor
    without data elsewhere. Numbers, such as a table's steps, are equal in all processes and unchanged. The tables,
    sharded or not, have the names of their weights; optimizers are in the order of the checkpoint's `optimizer_states`.

    Raises:
        InputError: if an optimizer keeps anything but numbers and one entry per row for a sharded table.
    """
    states = checkpoint.get("optimizer_states", [])
    if not states or not tables:
        return
    checkpoint[PLACES] = [_places(optimizer, tables) for optimizer in optimizers]
    for saved, places in zip(states, checkpoint[PLACES], strict=True):
        for name, place in places.items():
            table, state = tables[name], saved["state"].get(place, {})
            if isinstance(table, ShardedEmbedding) and table.is_spread and state:
                saved["state"] = {**saved["state"], place: _whole(table, name, state)}


def keep_own_state(checkpoint: dict[str, Any], tables: Mapping[str, nn.Embedding]) -> None:
    """Keep only this process's shard of the optimizer state of sharded tables in a checkpoint, in place.

    Raises:
        InputError: if the checkpoint has optimizer state without the tables' names.
    """
    spread = {name: table for name, table in tables.items() if isinstance(table, ShardedEmbedding) and table.is_spread}
    states = checkpoint.get("optimizer_states", [])
    if not states or not spread:
        return
    if PLACES not in checkpoint:
        raise InputError(
            "this checkpoint comes from a model without row-sparse tables, so its optimizer state cannot be sharded: "
            "continue without item_table.sharded, or start a new run from its weights"
        )
    for saved, places in zip(states, checkpoint[PLACES], strict=True):
        for name, table in spread.items():
            state = saved["state"].get(places.get(name))
            if state is not None:
                # Copied, so the whole can be freed.
                own = {
                    key: value[table.shards.local].clone() if _has_rows(value) else value
                    for key, value in state.items()
                }
                saved["state"] = {**saved["state"], places[name]: own}


def _places(optimizer: Optimizer, tables: Mapping[str, nn.Embedding]) -> dict[str, int]:
    """Return the tables' numbers in `Optimizer.state_dict`, which counts parameters over all groups."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    return {name: numbers[id(table.weight)] for name, table in tables.items() if id(table.weight) in numbers}


def _whole(table: ShardedEmbedding, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    whole = dict(state)
    for key in sorted(key for key, value in state.items() if _has_rows(value)):
        if len(state[key]) != table.shards.num_local:
            raise InputError(
                f"the optimizer's {key!r} of {name} has the shape {tuple(state[key].shape)}, which is not one entry "
                f"per row: use LazyAdam or RowwiseAdagrad for a sharded table"
            )
        whole[key] = gathered(state[key], table.shards)
    return whole


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
