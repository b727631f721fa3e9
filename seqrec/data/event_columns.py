"""Columns of events as a model reads them: values of a log become codes and numbers, also without the log.

N events, W numbers a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqrec.data.columns import Column
from seqrec.data.schema import CATEGORICAL, NUMERIC, VECTOR, Schema
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import BatchEntryError, InputError, StoreError
from seqrec.registry import did_you_mean

# Values of a categorical column whose codes are remembered, so that most events need no search.
REMEMBERED = 1 << 16
# Types of numbers that need no further look.
_NUMBERS = {int, float, bool, type(None)}


class EventColumn:
    """A column of events as a model reads it, which is part of the model's checkpoint.

    With it a model turns a log's own values into what it was trained on: `"click"` into a code, 12.5 into a
    standardised number. `SequenceDataModule.event_columns` describes the columns of a prepared log.

    Args:
        name: Name of the column in the log, as in `Schema.events`.
        kind: "categorical", "numeric" or "vector", as in `Schema`.
        values: Values of the codes 1, 2, .. of a categorical column, text or integers. Code 0 is a missing
            value, and any other.
        mean: With which a number is standardised; that of the training part.
        std: The standard deviation, likewise.
        width: Numbers of a vector, W.

    Raises:
        InputError: if an argument is out of range, or does not belong to the kind.

    Example:
        >>> from seqrec import EventColumn
        >>> action = EventColumn("action", "categorical", values=["buy", "view"])
        >>> action.read(["view", "buy", None, "rent"], lambda row: f"row {row}").tolist()
        [2, 1, 0, 0]
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        values: Sequence[str] | Sequence[int] | Vocabulary = (),
        mean: float = 0.0,
        std: float = 1.0,
        width: int = 0,
    ) -> None:
        Schema(events={name: kind})
        self.name, self.kind, self.mean, self.std, self.width = name, kind, float(mean), float(std), width
        given = {CATEGORICAL: bool(len(values)), NUMERIC: (mean, std) != (0, 1), VECTOR: bool(width)}
        for other, is_given in given.items():
            if is_given and other != kind:
                needless = {CATEGORICAL: "values", NUMERIC: "mean and std", VECTOR: "width"}[other]
                raise InputError(f"the column {name!r} is {kind}, but {needless} is for one that is {other}; remove it")
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise InputError(f"the column {name!r} has mean={mean} and std={std}; both must be finite, and std above 0")
        if kind == VECTOR and width < 1:
            raise InputError(f"the column {name!r} is a vector, so it needs width, at least 1; it has width={width}")
        self.vocabulary = values if isinstance(values, Vocabulary) else _vocabulary(name, values)
        self._codes: dict[Any, int] = {None: 0}

    @staticmethod
    def of_store(name: str, column: Column, scales: Mapping[str, tuple[float, float]]) -> EventColumn:
        """Return the description of a store's column; `scales` are those of `training_scales`."""
        if column.kind == CATEGORICAL:
            assert column.vocabulary is not None
            return EventColumn(name, CATEGORICAL, values=column.vocabulary)
        if column.kind == NUMERIC:
            mean, std = scales[name]
            return EventColumn(name, NUMERIC, mean=mean, std=std)
        return EventColumn(name, VECTOR, width=column.width)

    @property
    def values(self) -> list[str] | list[int]:
        """Values of the codes 1, 2, ..."""
        found = self.vocabulary.external_ids(np.arange(1, self.num_codes))
        return found.tolist() if isinstance(found, np.ndarray) else found

    @property
    def num_codes(self) -> int:
        """Number of codes, that of missing and unknown values included."""
        return len(self.vocabulary) + 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EventColumn):
            return NotImplemented
        mine, theirs = ((x.name, x.kind, x.mean, x.std, x.width) for x in (self, other))
        return mine == theirs and _same(self.vocabulary, other.vocabulary)

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.mean, self.std, self.width))

    def __repr__(self) -> str:
        own = {CATEGORICAL: f"{self.num_codes - 1} values", VECTOR: f"width={self.width}"}
        return f"EventColumn({self.name!r}, {self.kind!r}, {own.get(self.kind, f'mean={self.mean}, std={self.std}')})"

    def read(self, values: Sequence[Any] | NDArray[Any], place: Callable[[int], str]) -> NDArray[Any]:
        """Return a log's values as `Column.values` has them: codes (N,) int64; numbers (N,) float32, not standardised,
        NaN if missing; vectors (N, W) float32, zeros if missing.

        None is missing. So is a NaN, unless it is part of a vector.

        Args:
            values: N values: text, whole numbers or booleans of a categorical column; numbers; lists of W numbers.
            place: Returns the name of an event for messages.

        Raises:
            BatchEntryError: if a value has another type or width, or is infinite; its `index` is the event.
        """
        if self.kind == VECTOR:
            return self._vectors(values, place)
        plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
        return self._codes_of(plain, place) if self.kind == CATEGORICAL else self._numbers(plain, place)

    def external(self, values: NDArray[Any]) -> list[Any]:
        """Return the log's values of what `read` returned, as JSON can have them; unknown ones are None, too."""
        if self.kind == CATEGORICAL:
            known = iter(self.vocabulary.external_ids(values[values > 0]))
            return [next(known) if code else None for code in values.tolist()]
        plain: list[Any] = values.tolist()
        return [None if value != value else value for value in plain] if self.kind == NUMERIC else plain

    def of_column(self, column: Column) -> NDArray[Any]:
        """Return what `read` would return for the values of a store's column, which may have other codes."""
        values = np.asarray(column.values)
        if self.kind != CATEGORICAL:
            return values.astype(np.float32, copy=False)
        assert column.vocabulary is not None
        is_present = np.zeros(column.num_codes, bool)
        is_present[values] = True
        codes = np.flatnonzero(is_present[1:]) + 1
        translated = np.zeros(column.num_codes, np.int64)
        translated[codes] = self.vocabulary.lookup(column.vocabulary.external_ids(codes))
        found: NDArray[np.int64] = translated[values]
        return found

    def needed(self, features: Mapping[str, Tensor] | None, shape: Sequence[int]) -> Tensor:
        """Return this column's part of `History.features`, of events of a shape such as (B, L).

        Raises:
            InputError: if it is missing, or has another shape or type.
        """
        name = self.name
        if features is None or name not in features:
            has = f"only {', '.join(features)}" if features else "no columns"
            raise InputError(
                f"the model reads the column {name!r} of events, but the history has {has}: give a frame with a column "
                f"{name}, or History(.., features={{{name!r}: ..}})"
            )
        values = features[name]
        expected = (*shape, self.width) if self.kind == VECTOR else tuple(shape)
        if values.shape != expected:
            raise InputError(f"features[{name!r}] is {tuple(values.shape)}, but must be {expected}")
        if (values.dtype != torch.int64) if self.kind == CATEGORICAL else not values.is_floating_point():
            needs = "codes, int64" if self.kind == CATEGORICAL else "numbers, float32"
            raise InputError(f"features[{name!r}] is {values.dtype}, but {self.kind} needs {needs}")
        return values

    def checked(self, features: Mapping[str, Tensor] | None, shape: Sequence[int]) -> Tensor:
        """Return what `needed` does, but refuse codes that no value has and infinite numbers. A GPU is waited for.

        Raises:
            InputError: if this column has one.
        """
        values = self.needed(features, shape)
        if self.kind != CATEGORICAL and not (~values.isinf() if self.kind == NUMERIC else values.isfinite()).all():
            raise InputError(f"features[{self.name!r}] has a number that is not finite")
        if self.kind == CATEGORICAL and values.numel():
            least, most = (int(code) for code in values.aminmax())
            if not 0 <= least <= most < self.num_codes:
                raise InputError(
                    f"features[{self.name!r}] has the codes {least}..{most}, but the column has "
                    f"0..{len(self.vocabulary)}"
                )
        return values

    def column(self, values: NDArray[Any]) -> Column:
        """Return what `read` returned as a column, of which batches have the standardised values."""
        missing = int(np.isnan(values).sum()) if self.kind == NUMERIC else 0
        return Column(self.kind, values, missing, mean=self.mean, std=self.std)

    def check_column(self, column: Column | None, where: object) -> None:
        """Compare a store's column with this one, apart from the codes.

        Raises:
            InputError: if the store has no such column, or it has another kind or width.
        """
        if column is None:
            raise InputError(
                f"{where} has no column {self.name!r}, which the model reads; name it in data.schema.events, "
                f"{{{self.name}: {self.kind}}}"
            )
        if column.kind != self.kind or (self.kind == VECTOR and column.width != self.width):
            raise InputError(
                f"{where}: the column {self.name!r} is {column.describe()}, but the model reads it as {self!r}; "
                "give a log with the same schema"
            )

    def check_codes(self, vocabulary: Vocabulary | None, where: object) -> None:
        """Refuse a vocabulary with other codes.

        Raises:
            StoreError: if it has other values.
        """
        if self.kind == CATEGORICAL and not (vocabulary is not None and _same(self.vocabulary, vocabulary)):
            raise StoreError(
                f"{where} has other values of the column {self.name!r} than the model's log, so codes mean other "
                "values; give the store that the model was trained on, or train a model on this one"
            )

    def _codes_of(self, values: list[Any], place: Callable[[int], str]) -> NDArray[np.int64]:
        remembered = self._codes
        try:
            codes = {value: remembered.get(value) for value in dict.fromkeys(values)}
        except TypeError:
            self._refuse(next(i for i, x in enumerate(values) if isinstance(x, (list, dict, set))), values, place)
        new = {value: self._key(value, values, place) for value, code in codes.items() if code is None}
        if new:
            keys = _cleaned([key for key in new.values() if key is not None])
            found = iter(self.vocabulary.lookup(keys).tolist())
            learned = {value: 0 if key is None else next(found) for value, key in new.items()}
            codes.update(learned)
            if len(remembered) < REMEMBERED:
                remembered.update({value: code for value, code in learned.items() if code})
        return np.array([codes[value] for value in values], np.int64)

    def _key(self, value: Any, values: list[Any], place: Callable[[int], str]) -> int | str | None:
        """Return a value as the vocabulary has it; None if it is missing, or an integer that none can have."""
        plain = value.item() if isinstance(value, np.generic) else value
        if isinstance(plain, str):
            return plain
        if isinstance(plain, float) and math.isnan(plain):
            return None
        if not isinstance(plain, (int, float)) or plain != plain // 1:
            self._refuse(next(i for i, x in enumerate(values) if x is value), values, place)
        return int(plain) if -(2**63) <= plain < 2**63 else None

    def _numbers(self, values: list[Any], place: Callable[[int], str]) -> NDArray[np.float32]:
        plain = values
        if not set(map(type, values)) <= _NUMBERS:
            plain = [value.item() if isinstance(value, np.generic) else value for value in values]
            for index, value in enumerate(plain):
                if type(value) not in _NUMBERS:
                    self._refuse(index, values, place)
        with np.errstate(over="ignore"):
            try:
                numbers = np.array([math.nan if x is None else x for x in plain], np.float64).astype(np.float32)
            except OverflowError:
                # Of an integer with hundreds of digits.
                numbers = np.array([math.nan if x is None or abs(x) < 1e38 else math.inf for x in plain], np.float32)
        if np.isinf(numbers).any():
            self._refuse(int(np.isinf(numbers).argmax()), values, place)
        return numbers

    def _vectors(self, values: Sequence[Any] | NDArray[Any], place: Callable[[int], str]) -> NDArray[np.float32]:
        found = np.zeros((len(values), self.width), np.float32)
        for index, value in enumerate(values):
            if value is None:
                continue
            try:
                vector = np.asarray(value)
            except ValueError:
                vector = np.empty(0)
            if vector.dtype.kind not in "iuf" or vector.shape != (self.width,):
                self._refuse(index, values, place)
            with np.errstate(over="ignore"):
                found[index] = vector
            if not np.isfinite(found[index]).all():
                self._refuse(index, values, place)
        return found

    def _refuse(self, index: int, values: Sequence[Any] | NDArray[Any], place: Callable[[int], str]) -> NoReturn:
        needs = {
            CATEGORICAL: "text, a whole number, or None if it is missing",
            NUMERIC: "a finite number that float32 can hold, or None if it is missing",
            VECTOR: f"a list of {self.width} finite numbers, or None if it is missing",
        }
        shown = ascii(values[index])
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise BatchEntryError(
            f"{place(index)}: the column {self.name!r} has {shown}, but it is {self.kind} and needs {needs[self.kind]}",
            index,
        )


def chosen_columns(
    event_columns: Sequence[str | EventColumn] | None,
    log_columns: Iterable[EventColumn] | None,
    argument: str = "event_columns",
) -> tuple[EventColumn, ...]:
    """Return the columns of a model's `event_columns`, those that are given by name from the columns of its log.

    Messages call them `argument`.

    Raises:
        InputError: if the log has no column of a name, or a column is given twice.
    """
    if isinstance(event_columns, str):
        raise InputError(f"{argument}={event_columns!r} must be a list of names, as in [{event_columns}]")
    known = {column.name: column for column in log_columns or ()}
    found: dict[str, EventColumn] = {}
    for each in event_columns or ():
        name = each if isinstance(each, str) else each.name
        if name in found:
            raise InputError(f"{argument} has {name!r} twice")
        if isinstance(each, str) and each not in known:
            if log_columns is None:
                raise InputError(
                    f"{argument}: {each!r} is the name of a column; give log_columns=data.event_columns, or an "
                    "EventColumn instead of the name"
                )
            hint = did_you_mean(each, known) or "; name it in data.schema.events"
            has = ", ".join(known) or "no columns of events"
            raise InputError(f"{argument}: the log has no column {each!r}; it has {has}{hint}")
        found[name] = known[each] if isinstance(each, str) else each
    return tuple(found.values())


def checked_scales(
    columns: Iterable[EventColumn], log: Mapping[str, Column], where: object
) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the numeric columns that a model reads, for batches of a log.

    Raises:
        InputError: if the log has no such column, or it has another kind or width.
        StoreError: if it has other values.
    """
    scales = {}
    for column in columns:
        own = log.get(column.name)
        column.check_column(own, where)
        column.check_codes(None if own is None else own.vocabulary, where)
        if column.kind == NUMERIC:
            scales[column.name] = column.mean, column.std
    return scales


def read_columns(
    columns: Iterable[EventColumn], given: Callable[[str], Sequence[Any] | NDArray[Any]], place: Callable[[int], str]
) -> dict[str, Column]:
    """Return the columns that a model reads, by name, from those that `given` returns for a name; see `read`."""
    return {column.name: column.column(column.read(given(column.name), place)) for column in columns}


def _vocabulary(name: str, values: Sequence[str] | Sequence[int]) -> Vocabulary:
    is_text = all(isinstance(value, str) for value in values)
    if not is_text and not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InputError(f"the column {name!r} has values of several types; give text only, or integers only")
    try:
        return Vocabulary([str(value) for value in values] if is_text else np.array(values, np.int64), any_order=True)
    except (ValueError, OverflowError) as error:
        raise InputError(f"the values of the column {name!r} must be distinct") from error


def _same(one: Vocabulary, other: Vocabulary) -> bool:
    ours, theirs = one.arrays("values"), other.arrays("values")
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


def _cleaned(keys: list[int | str]) -> list[int | str]:
    """Return keys with text as a store has it; that of a missing value becomes empty, which no store has."""
    text = [key for key in keys if isinstance(key, str)]
    if not text:
        return keys
    # Training needs columns, but not polars.
    import polars

    from seqrec.data.ids import cleaned

    series = polars.Series("text", text).to_frame().select(cleaned(polars.col("text")).fill_null(""))["text"]
    clean = iter(series.to_list())
    return [next(clean) if isinstance(key, str) else key for key in keys]
