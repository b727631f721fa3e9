"""Vectors of items and users, inside programs or in their own files. V rows, D width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqrec.models import SequentialRecommender

# Most numbers that are written at a time.
NUMBERS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ExportedTable:
    """Vectors (V, D) in float32, for any storage type of the model; row 0 is padding.

    Attributes:
        name: "items" embeds the history, "users" the user; "candidates" scores items if "items" does not.
        num_rows: V.
        width: D, plus a column for biases in the table that scores items.
        rows: Returns the rows from the first number to the second, exclusive.
    """

    name: str
    num_rows: int
    width: int
    rows: Callable[[int, int], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size in float32."""
        return 4 * self.num_rows * self.width

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.name}.npy"

    def write(self, directory: Path) -> int:
        """Write a file that numpy can map into memory, and return the byte at which its rows start."""
        shape = (self.num_rows, self.width)
        file = np.lib.format.open_memmap(directory / self.file, "w+", np.dtype("<f4"), shape)
        step = max(1, NUMBERS_AT_ONCE // self.width)
        for first in range(0, self.num_rows, step):
            last = min(first + step, self.num_rows)
            file[first:last] = self.rows(first, last).cpu().numpy()
        file.flush()
        return int(file.offset)


def model_tables(model: SequentialRecommender) -> dict[str, ExportedTable]:
    """Return the model's tables by name; without "candidates" if the history's table scores items too."""
    tables = {}
    for name, embedding in (("items", model.items), ("users", model.users)):
        if embedding is not None:
            tables[name] = _stored(name, embedding.weight.detach() if embedding.content is None else embedding.whole())
    scorer = model.scorer()
    if model.output_items is not None or model.item_table.temperature is not None:
        width = scorer.vectors(torch.zeros(1, dtype=torch.int64, device=model.device)).shape[1]

        def candidates(first: int, last: int) -> Tensor:
            return scorer.vectors(torch.arange(first, last, device=model.device)).detach()

        tables["candidates"] = ExportedTable("candidates", scorer.num_items + 1, width, candidates)
    return tables


def _stored(name: str, weight: Tensor) -> ExportedTable:
    num_rows, width = weight.shape
    return ExportedTable(name, num_rows, width, lambda first, last: weight[first:last].float())
