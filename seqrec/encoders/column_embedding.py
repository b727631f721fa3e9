"""Columns of events as inputs of a model. B batch, L events, D width, W numbers of a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from seqrec.data.event_columns import EventColumn
from seqrec.data.schema import CATEGORICAL, NUMERIC
from seqrec.encoders.layers.positionwise import Linear
from seqrec.ops.event_input import TableRows, added


class ColumnEmbedding(nn.Module):
    """Vectors of the columns of events, added up.

    A code has a vector, that of code 0 starts at zero. A number x has the vector `W2 gelu(w1 x + b1) + b2`, as its
    effect need not grow with it. A missing number is 0, the mean, like in `History.features`; a NaN is the same. A
    vector is mapped linearly, without a bias, so a missing one adds nothing.

    Args:
        columns: What is read; names are distinct.
        d_model: Width D.

    Example:
        >>> import torch
        >>> from seqrec import EventColumn
        >>> from seqrec.encoders.column_embedding import ColumnEmbedding
        >>> layer = ColumnEmbedding([EventColumn("tab", "categorical", values=["home", "search"])], d_model=8)
        >>> layer({"tab": torch.tensor([[2, 1, 0]])}, (1, 3)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, columns: Sequence[EventColumn], d_model: int) -> None:
        super().__init__()
        self.columns = tuple(columns)
        # Any name may be that of an attribute of a module.
        self.layers = nn.ModuleDict({f"column_{column.name}": _layer(column, d_model) for column in columns})

    def forward(self, features: Mapping[str, Tensor] | None, shape: Sequence[int]) -> Tensor:
        """Return vectors (B, L, D) of features as `History.features` has them.

        Args:
            features: Codes (B, L) int64, numbers (B, L), vectors (B, L, W) by name; others are not read.
            shape: B and L.

        Raises:
            InputError: if a column is missing, or has another shape or type.
        """
        return added(*self.parts(features, shape))

    def parts(
        self, features: Mapping[str, Tensor] | None, shape: Sequence[int], *, check: bool = False
    ) -> tuple[list[TableRows], list[Tensor]]:
        """Return what `forward` adds up: rows of tables, and vectors (*shape, D).

        With `check` infinite numbers are refused, and codes are left to the tables, which refuse them on a CPU.
        """
        rows, vectors = [], []
        for column, layer in zip(self.columns, self.layers.values(), strict=True):
            if column.kind == CATEGORICAL:
                values = column.needed(features, shape)
                rows.append(TableRows(cast("nn.Embedding", layer).weight, values))
                continue
            values = column.checked(features, shape) if check else column.needed(features, shape)
            floats = values.to(next(layer.parameters()).dtype)
            if column.kind == NUMERIC:
                floats = torch.where(floats.isnan(), 0, floats).unsqueeze(-1)
            vectors.append(layer(floats))
        return rows, vectors

    def check(self, features: Mapping[str, Tensor] | None, shape: Sequence[int]) -> None:
        """Refuse infinite numbers and codes that no value has. A GPU is waited for.

        Raises:
            InputError: if a column has one, is missing, or has another shape or type.
        """
        for column in self.columns:
            column.checked(features, shape)

    def missing(self, *shape: int) -> dict[str, Tensor]:
        """Return features of events whose columns are all missing, by name, for batches of a shape such as (B, L)."""
        return {
            column.name: torch.zeros(
                (*shape, column.width) if column.width else shape,
                dtype=torch.int64 if column.kind == CATEGORICAL else torch.float32,
            )
            for column in self.columns
        }


def _layer(column: EventColumn, d_model: int) -> nn.Module:
    if column.kind == CATEGORICAL:
        table = nn.Embedding(column.num_codes, d_model)
        nn.init.normal_(table.weight, std=0.02)
        nn.init.zeros_(table.weight.detach()[0])
        return table
    out = Linear(d_model if column.kind == NUMERIC else column.width, d_model, bias=column.kind == NUMERIC)
    nn.init.normal_(out.weight, std=0.02)
    return nn.Sequential(Linear(1, d_model), nn.GELU(), out) if column.kind == NUMERIC else out
