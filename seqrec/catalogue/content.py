"""Vectors of items or users from the columns of their table: categories, numbers and vectors.

N items that are read, V = num_items + 1, D width of item vectors, C codes of a column, W numbers of a vector column.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from seqrec.data.columns import Column
from seqrec.data.schema import CATEGORICAL, CATEGORIES, ITEMS, NUMERIC, USERS, VECTOR
from seqrec.errors import InputError
from seqrec.registry import did_you_mean

# A column of at most so many bytes is part of checkpoints. A larger one stays in its file in the store.
HELD_BYTES = 64 << 20
# Rows of a vector column whose mean length is computed.
MEASURED_ROWS = 1 << 12


class ItemContent(nn.Module):
    """The part of item vectors that columns of the item table determine: one linear map of all columns together.

    It is written as a sum over columns. A `categorical` column adds the vector of its code, `categories` the mean of
    the vectors of their codes, a `numeric` one its standardised number times a vector, and a `vector` column its
    product with a matrix (W, D). A missing value adds nothing, and padding, item 0, is zero. Vectors are multiplied by
    one number a column, so that their mean squared length is 1.

    Only the rows of the items that are asked for are read. Columns of up to `HELD_BYTES` (64 MiB) are buffers, part of
    checkpoints. Larger ones are mapped from the store's files, never copied as a whole, and a checkpoint names them
    by their SHA-256.

    With the group "users" all of this holds for users: row 0 is that of unknown users, without any value.

    Args:
        sizes: `Column.sizes` of each column by name.
        d_model: D.
        std: Standard deviation of the vectors and matrices at initialisation.
        group: "items" or "users", whose columns they are.

    Attributes:
        names: Names of the columns.

    Raises:
        InputError: if there are no columns.

    Example:
        >>> import numpy as np, torch
        >>> from seqrec.catalogue.content import ItemContent
        >>> from seqrec.data.columns import Column
        >>> years = Column("numeric", np.array([np.nan, 1990, 2000], np.float32), mean=1995.0, std=5.0)
        >>> content = ItemContent({"year": years.sizes}, d_model=4)
        >>> content.read({"year": years})
        >>> vectors = content(torch.tensor([0, 1, 2]))
        >>> vectors.shape, torch.equal(vectors[1], -vectors[2])
        (torch.Size([3, 4]), True)
    """

    def __init__(
        self, sizes: Mapping[str, Mapping[str, Any]], d_model: int, *, std: float = 0.02, group: str = ITEMS
    ) -> None:
        super().__init__()
        if not sizes:
            raise InputError("content needs at least one column of items")
        self.d_model = d_model
        self.group = group
        self.names = list(sizes)
        # Names of columns may contain any character, those of modules may not.
        self.columns = nn.ModuleList([_KINDS[own["kind"]](own, d_model, std) for own in sizes.values()])

    @property
    def summary(self) -> str:
        """Names of the columns, and which of them stay in the store."""
        places = {True: "", False: " (read from the store)"}
        return ", ".join(f"{name}{places[column.held]}" for name, column in self._named())

    def read(self, columns: Mapping[str, Column], *, sizes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Take the columns of a store. Columns of a checkpoint that was loaded stay.

        `sizes` are those of the store, with the SHA-256 of its files; None compares none.

        Raises:
            InputError: if a column is missing, or has another kind, size or SHA-256 than the model was built for.
        """
        for name, own in self._named():
            if own.held and own.filled:
                continue
            if name not in columns:
                where = f"data.schema.{self.group}"
                raise InputError(f"the model reads {self.group}.{name}, which the store has not: add it to {where}")
            found = dict(columns[name].sizes if sizes is None else sizes[name])
            differing = [key for key in found if own.sizes.get(key, found[key]) != found[key]]
            if differing:
                was = ", ".join(f"{key}={own.sizes[key]} (here {found[key]})" for key in differing)
                raise InputError(
                    f"{self.group}.{name} of the store is not the column that the model was built for: {was}; give the "
                    "store that it was trained on, or train a model on this one"
                )
            own.fill(columns[name])

    @property
    def sizes(self) -> dict[str, dict[str, Any]]:
        """`Column.sizes` of each column by name."""
        return {name: own.sizes for name, own in self._named()}

    def use_scales(self, sizes: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Column]) -> None:
        """Standardise numbers of a store's columns by the mean and standard deviation in other `sizes`."""
        for name, own in self._named():
            scale = {key: sizes[name][key] for key in ("mean", "std") if key in sizes[name]}
            if own.sizes["kind"] == NUMERIC and not scale.items() <= own.sizes.items():
                own.sizes |= scale
                own.fill(columns[name])

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of item ids (N,), best distinct ones.

        Raises:
            InputError: if the columns were neither read nor loaded.
        """
        for name, own in self._named():
            if not own.filled:
                cure = (
                    "call model.use_store(store) first, as trainers with a SequenceDataModule do"
                    if own.held
                    else "it is too large for checkpoints, so load the model by seqrec.load(.., store=FOLDER), or call "
                    "model.use_store(store)"
                )
                column_name = f"{self.group}.{name}"
                raise InputError(f"the model reads {column_name}, but has not got that column yet: {cure}")
        total: Tensor = self.columns[0](item_ids)
        for column in self.columns[1:]:
            total = total + column(item_ids)
        return total

    def _named(self) -> list[tuple[str, _ContentColumn]]:
        return list(zip(self.names, cast("Iterable[_ContentColumn]", self.columns), strict=True))


class _Mapped:
    """An array that stays where it is, most often in a file; copies of a model share it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def take(self, places: Tensor) -> NDArray[Any]:
        """Return the values (N, ..) at `places` (N,)."""
        found: NDArray[Any] = np.asarray(self.array).take(places.cpu().numpy(), axis=0)
        return found

    def __deepcopy__(self, memo: object) -> _Mapped:
        return self

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        # numpy would write the content of a mapped file.
        name = getattr(self.array, "filename", None)
        return (_Mapped, (self.array,)) if name is None else (_open, (str(name),))


def _open(name: str) -> _Mapped:
    return _Mapped(np.load(name, mmap_mode="r", allow_pickle=False))


class _ContentColumn(nn.Module, ABC):
    """A column and its share of the linear map.

    Attributes:
        sizes: See `Column.sizes`.
        held: Whether the values are buffers, in checkpoints.
        filled: Whether the values are known.
    """

    def __init__(self, sizes: Mapping[str, Any], weight_rows: int, d_model: int, std: float) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.held = self.sizes["bytes"] <= HELD_BYTES
        self.filled = False
        self.weight = nn.Parameter(torch.empty(weight_rows, d_model).normal_(std=std))
        self._mapped: dict[str, _Mapped] = {}

    def fill(self, column: Column) -> None:
        """Take the values of a column."""
        for name, array in {"values": column.values, "offsets": column.offsets}.items():
            if array is None:
                continue
            if self.held:
                # torch has few operations for unsigned integers.
                signed = np.int32 if array.dtype.kind == "u" else array.dtype
                self.get_buffer(name).copy_(torch.from_numpy(np.asarray(array).astype(signed)))
            else:
                self._mapped[name] = _Mapped(array)
        self.filled = True

    def hold(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Make the buffer of values that are part of checkpoints."""
        if self.held:
            self.register_buffer(name, torch.zeros(*shape, dtype=dtype))

    def take(self, name: str, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values (N, ..) at `places` (N,), on their device."""
        if self.held:
            return self.get_buffer(name)[places].to(dtype)
        found = self._mapped[name].take(places)
        # Integers of the file may be unsigned.
        found = found.astype(np.int64) if dtype == torch.int64 else found
        return torch.from_numpy(found).to(places.device).to(dtype)

    @abstractmethod
    def forward(self, item_ids: Tensor) -> Tensor:
        """Return what the column adds (N, D) to the vectors of items (N,)."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self.filled = self.filled or (self.held and f"{prefix}values" in state_dict)


class _Code(_ContentColumn):
    """A code's vector; that of code 0 is zero."""

    def __init__(self, sizes: Mapping[str, Any], d_model: int, std: float) -> None:
        super().__init__(sizes, sizes["num_codes"], d_model, std)
        with torch.no_grad():
            self.weight[0].zero_()
        self.hold("values", (sizes["num_values"],), torch.int32)

    def forward(self, item_ids: Tensor) -> Tensor:
        return F.embedding(self.take("values", item_ids, torch.int64), self.weight, padding_idx=0)


class _Codes(_Code):
    """The mean of the vectors of an item's codes; zero without any."""

    def __init__(self, sizes: Mapping[str, Any], d_model: int, std: float) -> None:
        super().__init__(sizes, d_model, std)
        self.hold("offsets", (sizes["num_rows"] + 1,), torch.int64)

    def forward(self, item_ids: Tensor) -> Tensor:
        first = self.take("offsets", item_ids, torch.int64)
        counts = self.take("offsets", item_ids + 1, torch.int64) - first
        begins = counts.cumsum(0) - counts
        shift = torch.repeat_interleave(first - begins, counts)
        places = torch.arange(len(shift), device=item_ids.device) + shift
        codes = self.take("values", places, torch.int64)
        return F.embedding_bag(codes, self.weight, begins, mode="mean", padding_idx=0)


class _Number(_ContentColumn):
    """The standardised number times a vector; a missing one is 0."""

    def __init__(self, sizes: Mapping[str, Any], d_model: int, std: float) -> None:
        super().__init__(sizes, 1, d_model, std)
        self.hold("values", (sizes["num_rows"],), torch.float32)

    def fill(self, column: Column) -> None:
        super().fill(column)
        if self.held:
            # A checkpoint has the numbers as the model reads them.
            self.get_buffer("values").copy_(self._standardised(self.get_buffer("values")))

    def forward(self, item_ids: Tensor) -> Tensor:
        numbers = self.take("values", item_ids, self.weight.dtype)
        return (numbers if self.held else self._standardised(numbers)).unsqueeze(1) * self.weight

    def _standardised(self, numbers: Tensor) -> Tensor:
        mean, std = float(self.sizes["mean"]), float(self.sizes["std"])
        return ((numbers - mean) / std).nan_to_num(nan=0.0)


class _Vector(_ContentColumn):
    """The product of a vector with a matrix (W, D)."""

    scale: Tensor

    def __init__(self, sizes: Mapping[str, Any], d_model: int, std: float) -> None:
        super().__init__(sizes, sizes["width"], d_model, std)
        dtype = torch.float16 if sizes["dtype"] == "float16" else torch.float32
        self.hold("values", (sizes["num_rows"], sizes["width"]), dtype)
        self.register_buffer("scale", torch.ones(()))

    def fill(self, column: Column) -> None:
        super().fill(column)
        # Rows at equal distances, so that the file is not read as a whole.
        step = max(1, math.ceil(len(column.values) / MEASURED_ROWS))
        some = np.asarray(column.values[1::step]).astype(np.float64)
        lengths = np.square(some).sum(1)
        if lengths.any():
            self.scale.fill_(1 / math.sqrt(lengths[lengths > 0].mean()))

    def forward(self, item_ids: Tensor) -> Tensor:
        return (self.take("values", item_ids, self.weight.dtype) * self.scale.to(self.weight.dtype)) @ self.weight


_KINDS: dict[str, Any] = {CATEGORICAL: _Code, CATEGORIES: _Codes, NUMERIC: _Number, VECTOR: _Vector}


def sizes_of_content(
    names: Sequence[str], sizes: Mapping[str, Mapping[str, Any]] | None, *, group: str = ITEMS
) -> dict[str, Mapping[str, Any]]:
    """Return the sizes of the columns that `ItemTable.content` names, or `user_columns` with the group "users".

    Raises:
        InputError: if there are none of that name.
    """
    found: dict[str, Mapping[str, Any]] = {}
    asked, given = {
        ITEMS: ("item_table.content", "item_columns=store.item_column_sizes"),
        USERS: ("user_columns", "log_user_columns=store.user_column_sizes"),
    }[group]
    if isinstance(names, str):
        raise InputError(f"{asked}={names!r} must be a list of names, as in [{names}]")
    for name in names:
        if name not in (sizes or {}):
            known = ", ".join(sizes) if sizes else "none"
            raise InputError(
                f"{asked}: no column {name!r} of {group}; known: {known}{did_you_mean(name, list(sizes or {}))}. Add "
                f"it to data.schema.{group}; without a data module, give {given}"
            )
        found[name] = (sizes or {})[name]
    return found


def check_same_content(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the columns that a checkpoint's model reads from the store with those of a model that gets its weights.

    `was` and `now` are their hyperparameters.

    Raises:
        InputError: if a column that is not in the checkpoint has another SHA-256.
    """
    for group, argument in ((ITEMS, "item_columns"), (USERS, "log_user_columns")):
        before, after = was.get(argument) or {}, now.get(argument) or {}
        changed = [
            name
            for name, sizes in before.items()
            if sizes["bytes"] > HELD_BYTES and sizes.get("sha256") != after.get(name, sizes).get("sha256")
        ]
        for name in changed:
            raise InputError(
                f"{group}.{name} of the store is not the column that the checkpoint's model was trained with: give the "
                "store that it was trained on, or begin a new run"
            )
