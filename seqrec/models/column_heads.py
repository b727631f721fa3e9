"""Columns of the next event as further targets of a model. B users, L events, D width, C values of a column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqrec.catalogue.histories import read_histories
from seqrec.catalogue.recommend import (
    RecommendingModel,
    evaluating,
    refuse_requests_before_events,
    trained_length,
)
from seqrec.data.event_columns import EventColumn, chosen_columns
from seqrec.data.schema import CATEGORICAL, VECTOR
from seqrec.errors import InputError
from seqrec.ops.problems import at_least_float32
from seqrec.specs import from_spec
from seqrec.types import History, SequenceBatch

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class ColumnHead:
    """A column of the next event that a model predicts besides the item.

    Attributes:
        column: A categorical or numeric column of events: its name in the log, or its description.
        weight: Weight of the column's loss in the sum, above 0; the item's loss has weight 1.

    Raises:
        InputError: if the weight is not above 0.

    Example:
        >>> from seqrec import ColumnHead, EventColumn, MambaRec
        >>> liked = EventColumn("is_like", "categorical", values=[0, 1])
        >>> model = MambaRec(num_items=20, d_model=8, heads=[ColumnHead(liked, weight=0.1)])
        >>> model.heads.columns[0].name
        'is_like'
    """

    column: str | EventColumn
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise InputError(f"heads: weight={self.weight} of {self.column!r} must be a finite number above 0")


def columns_of(hparams: Mapping[str, Any]) -> tuple[dict[str, EventColumn], dict[str, EventColumn]]:
    """Return the columns that a model with these hyperparameters reads, and those that it predicts, by name."""
    read = {each.name: each for each in from_spec(hparams.get("event_columns"), EventColumn) or ()}
    return read, {each.column.name: each.column for each in from_spec(hparams.get("heads"), ColumnHead) or ()}


class ColumnHeads(nn.Module):
    """Linear read-outs of columns of the next event.

    A categorical column with C values has C scores, of which the cross entropy is taken; a number has one output, of
    which the squared difference to the standardised number is taken. Missing values count for neither.

    Args:
        heads: What is predicted.
        log_columns: Columns of the log, needed for heads that are given by name.
        d_model: Width D of states.

    Attributes:
        columns: The columns of the heads.
        weights: The weights of the heads.

    Raises:
        InputError: if the log has no such column, it is a vector or has no values, or a column is given twice.
    """

    def __init__(self, heads: Sequence[ColumnHead], log_columns: Sequence[EventColumn] | None, d_model: int) -> None:
        super().__init__()
        self.columns = chosen_columns([head.column for head in heads], log_columns, argument="heads")
        self.weights = tuple(head.weight for head in heads)
        for column in self.columns:
            if column.kind == VECTOR:
                raise InputError(f"heads: the column {column.name!r} is a vector; heads are categorical or numeric")
            if column.kind == CATEGORICAL and column.num_codes < 2:
                raise InputError(f"heads: the column {column.name!r} has no values to predict")
        # Any name may be that of an attribute of a module.
        sizes = {f"column_{column.name}": max(1, column.num_codes - 1) for column in self.columns}
        self.layers = nn.ModuleDict({name: nn.Linear(d_model, size) for name, size in sizes.items()})

    @property
    def loss_names(self) -> list[str]:
        """Names under which the losses of the item and of each column are logged."""
        return ["train_item_loss", *(f"train_column_loss_{column.name}" for column in self.columns)]

    @property
    def described(self) -> list[ColumnHead]:
        """The heads with the descriptions of their columns, from which a checkpoint rebuilds them."""
        return [ColumnHead(column, weight) for column, weight in zip(self.columns, self.weights, strict=True)]

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Return the outputs for states (.., D) by column: scores (.., C), or standardised numbers (..)."""
        outputs = {column.name: self.layers[f"column_{column.name}"](states) for column in self.columns}
        return {c.name: outputs[c.name] if c.kind == CATEGORICAL else outputs[c.name].squeeze(-1) for c in self.columns}

    def losses(self, states: Tensor, batch: SequenceBatch) -> dict[str, Tensor]:
        """Return the mean loss () of each column over the batch's targets, without missing values; 0 without any.

        Args:
            states: (B, L, D), as asked at the times of the targets.
            batch: Targets with their columns, `SequenceBatch.target_features`.

        Raises:
            InputError: if the batch lacks a column.
        """
        losses = {}
        for column in self.columns:
            if batch.target_features is None or column.name not in batch.target_features:
                raise InputError(
                    f"the model predicts the column {column.name!r} of the next event, but the batch has no "
                    f"target_features[{column.name!r}]: train with a SequenceDataModule"
                )
            values = batch.target_features[column.name]
            known = (values > 0 if column.kind == CATEGORICAL else ~values.isnan()) & batch.is_target
            places = known.flatten().nonzero().squeeze(1)
            outputs = self.layers[f"column_{column.name}"](states.flatten(0, 1).index_select(0, places))
            wanted = values.flatten().index_select(0, places)
            outputs, count = at_least_float32(outputs), max(1, len(places))
            if column.kind == CATEGORICAL:
                # Code 0 is a missing value.
                losses[column.name] = F.cross_entropy(outputs, wanted - 1, reduction="sum") / count
            else:
                losses[column.name] = (outputs.squeeze(1) - wanted).square().sum() / count
        return losses

    def predictions(self, states: Tensor) -> dict[str, Tensor]:
        """Return probabilities (.., C) of a categorical column's values, and numbers (..) in the log's unit."""
        found = {name: at_least_float32(output) for name, output in self(states).items()}
        return {
            c.name: found[c.name].softmax(-1) if c.kind == CATEGORICAL else found[c.name] * c.std + c.mean
            for c in self.columns
        }


class PredictingModel(RecommendingModel, Protocol):
    """The part of a model that predicting columns uses; every `SequentialRecommender` has it."""

    heads: ColumnHeads | None

    def request_states(self, batch: SequenceBatch) -> Tensor:
        """Return the (B, D) states after each row's newest event, as asked at the batch's times of requests."""


def predict_columns(
    model: PredictingModel,
    histories: Sequence[Sequence[Any]] | polars.DataFrame | History,
    *,
    max_length: int | None = None,
    batch_size: int = 128,
    at: int | datetime | Sequence[int | datetime] | None = None,
) -> dict[str, Any]:
    """Return what the model expects of columns of each user's next event; `heads` name the columns.

    Args:
        model: A model with heads.
        histories: Histories of U users, in a form that `recommend` takes.
        max_length: Newest events that the model sees; None is the length that it was trained with.
        batch_size: Users encoded at a time.
        at: When one asks, as in `recommend`.

    Returns:
        By column: for a categorical one the probability (U,) of each of the log's values, by value; for a number (U,)
        its expected value in the log's unit. Tensors are on the CPU, with users in the order of `recommend`.

    Raises:
        InputError: if the model has no heads, or `recommend` would refuse the histories.

    Example:
        >>> import torch
        >>> from seqrec import ColumnHead, EventColumn, History, SASRec
        >>> seconds = EventColumn("seconds", "numeric", mean=40.0, std=10.0)
        >>> model = SASRec(num_items=20, d_model=8, max_length=10, heads=[ColumnHead(seconds)])
        >>> history = History(item_ids=torch.tensor([[3, 7, 9]]), lengths=torch.tensor([3]))
        >>> model.predict_columns(history)["seconds"].shape
        torch.Size([1])
    """
    if model.heads is None:
        raise InputError("the model predicts no columns: it was trained without model.heads")
    asked = [model.request_timestamp(time) for time in (at if isinstance(at, Sequence) else [at])]
    events, _ = read_histories(model, histories)
    if at is not None:
        events = events.asked_at(asked if isinstance(at, Sequence) else asked * len(events))
    longest = int((events.offsets[1:] - events.offsets[:-1]).max(initial=1))
    length = max_length or trained_length(model) or longest
    states: Tensor | None = None
    with evaluating(model):
        for rows, batch in events.batches(length, batch_size=batch_size):
            refuse_requests_before_events(batch)
            found = model.request_states(batch.to(model.device))
            if states is None:
                states = found.new_zeros(len(events), found.shape[-1])
            states[torch.from_numpy(rows).to(states.device)] = found
        if states is None:
            return {column.name: torch.zeros(0) for column in model.heads.columns}
        predicted = {name: values.cpu() for name, values in model.heads.predictions(states).items()}
    return {
        column.name: dict(zip(column.values, predicted[column.name].unbind(-1), strict=True))
        if column.kind == CATEGORICAL
        else predicted[column.name]
        for column in model.heads.columns
    }
