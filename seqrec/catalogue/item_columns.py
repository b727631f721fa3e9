"""The columns of a catalogue's items, from an event store or a table of items, for conditions and titles.

N items; a column has N + 1 rows, in the order of internal ids, and row 0 is no item.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqrec.catalogue.conditions import columns_of, parse, rows_where, unknown_values
from seqrec.data.columns import Column
from seqrec.data.schema import BETWEEN, CATEGORICAL, CATEGORIES, ITEM_ID, NUMERIC
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError, MissingInputError
from seqrec.registry import did_you_mean

if TYPE_CHECKING:
    import polars

Int64 = NDArray[np.int64]
# Columns that contain what people call the items.
TITLES = ("title", "name", "item_name", "item_title", "product_name", "product_title")
# Longer titles are cut on pages.
SHOWN_CHARACTERS = 100


class ItemColumns:
    """Columns of a catalogue's items by name.

    Args:
        columns: The columns, with N + 1 rows each.
        vocabulary: The log's ids of the N items.
        names: Columns that conditions may read; None is all.

    Example:
        >>> import polars
        >>> from seqrec.catalogue.item_columns import ItemColumns
        >>> from seqrec.data.vocabulary import Vocabulary
        >>> songs = polars.DataFrame({"item_id": ["a", "b"], "genres": ["jazz|pop", "rock"]})
        >>> columns = ItemColumns.read(songs, Vocabulary(["a", "b"]))
        >>> columns.items_where("genres has 'pop'").tolist()
        [1]
    """

    def __init__(
        self, columns: Mapping[str, Column], vocabulary: Vocabulary, names: Collection[str] | None = None
    ) -> None:
        self._columns = columns
        self._names = list(columns if names is None else names)
        self.vocabulary = vocabulary

    @classmethod
    def read(
        cls,
        items: EventStore | polars.DataFrame | str | Path,
        vocabulary: Vocabulary | None = None,
        *,
        key: str = ITEM_ID,
    ) -> ItemColumns:
        """Return the columns of a store, of a frame, or of a file of one; arguments as of `Candidates.where`.

        Of a frame, numbers, whole or not, and booleans are compared as numbers; text is one value, or several if a row
        has `|` between them; lists of text or whole numbers are several. Rows of items that the catalogue lacks are
        left out, and items without a row have no values.

        Raises:
            InputError: if there are no columns, the vocabulary is missing, or an id is missing or twice.
            MissingInputError: if a file does not exist.
        """
        if isinstance(items, EventStore):
            if not items.item_columns:
                raise InputError(
                    f"{items.directory} has no columns of items, which conditions read: name them in data.schema.items "
                    "and prepare it again, or give a table of items"
                )
            return cls(items.item_columns, items.item_vocabulary)
        if vocabulary is None:
            raise InputError("vocabulary is needed for a table of items: give model.item_vocabulary")
        return cls(_TableColumns(items, vocabulary, key), vocabulary)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def only(self, names: Collection[str], argument: str) -> ItemColumns:
        """Return some of the columns, those of conditions of strangers; an `InputError` names an unknown one."""
        for name in names:
            self._check(name, f"{argument}={', '.join(names)}")
        return ItemColumns(self._columns, self.vocabulary, names)

    @property
    def title_column(self) -> str | None:
        """Name of the column that contains what people call the items, the first of `TITLES`; None if none is text."""
        by_name = {name.casefold(): name for name in self._columns}
        texts = (
            name for title in TITLES if (name := by_name.get(title)) and self._columns[name].vocabulary is not None
        )
        return next(texts, None)

    def titles(self, item_ids: Sequence[int] | Int64) -> list[str | None]:
        """Return the titles of items by internal id, shortened to `SHOWN_CHARACTERS`; None for an item without one."""
        name = self.title_column
        if name is None:
            return [None] * len(item_ids)
        column = self._columns[name]
        assert column.vocabulary is not None
        found: list[str | None] = []
        for item in map(int, item_ids):
            own = slice(item, item + 1) if column.offsets is None else slice(*column.offsets[item : item + 2])
            codes = np.asarray(column.values[own]).astype(np.int64)
            # A table's text with this sign in between was read as several values.
            text = BETWEEN.join(map(str, column.vocabulary.external_ids(codes[codes > 0])))
            found.append(shortened(text) or None)
        return found

    def items_where(self, condition: str, argument: str = "condition") -> Int64:
        """Return the internal ids (M,) of the items that meet a condition, ascending; see `Candidates.where`.

        Raises:
            InputError: if it is no condition, has an unknown column or a value of another kind, or no item meets it.
        """
        shown = f"{argument}={condition!r:.200}"
        try:
            tree = parse(condition)
            for name in columns_of(tree):
                self._check(name, "it")
            found = np.flatnonzero(rows_where(tree, self._columns))
        except InputError as error:
            raise InputError(f"{shown}: {error}") from error
        if not len(found):
            hint = unknown_values(tree, self._columns)
            raise InputError(f"{shown} leaves none of the {len(self.vocabulary):,} items{hint}")
        return found

    def _check(self, name: str, place: str) -> None:
        if name not in self._names:
            raise InputError(
                f"{place} has the column {name!r:.60}, which items do not have; columns: {', '.join(self._names)}"
                f"{did_you_mean(name, self._names)}"
            )


def shortened(text: str) -> str:
    """Return a text with at most `SHOWN_CHARACTERS`."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 2]}.."


class _TableColumns(Mapping[str, Column]):
    """Columns of a table of items, each converted when it is first read."""

    def __init__(self, items: polars.DataFrame | str | Path, vocabulary: Vocabulary, key: str) -> None:
        frame, origin = _frame(items, key)
        if key not in frame.columns:
            raise InputError(f"{origin} has no column {key!r}; it has {', '.join(frame.columns)}: give key=..")
        if missing := frame[key].null_count():
            raise InputError(f"{origin} has {missing:,} rows without {key}; leave them out")
        found = vocabulary.lookup_series(frame[key])
        rows = np.flatnonzero(found)
        order = rows[np.argsort(found[rows], kind="stable")]
        self._items, self._num_items = found[order], len(vocabulary)
        twice = np.flatnonzero(self._items[1:] == self._items[:-1])
        if len(twice):
            raise InputError(f"{origin} has two rows with {key}={frame[key][int(order[twice[0]])]!r}; leave one")
        if not len(order):
            raise InputError(f"{origin} has none of the {len(vocabulary):,} items of the catalogue in its {key}")
        self._frame = frame.drop(key)[order]
        self._origin = origin
        self._converted: dict[str, Column] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._frame.columns)

    def __len__(self) -> int:
        return len(self._frame.columns)

    def __contains__(self, name: object) -> bool:
        return name in self._frame.columns

    def __getitem__(self, name: str) -> Column:
        if name not in self._converted:
            self._converted[name] = self._column(name)
        return self._converted[name]

    def _column(self, name: str) -> Column:
        import polars

        values = self._frame[name]
        if isinstance(values.dtype, (polars.Categorical, polars.Enum)):
            values = values.cast(polars.String)
        inner = getattr(values.dtype, "inner", values.dtype)
        if values.dtype.is_numeric() or values.dtype == polars.Boolean:
            numbers = np.full(self._num_items + 1, np.nan)
            numbers[self._items] = values.cast(polars.Float64).fill_null(float("nan")).to_numpy()
            return Column(NUMERIC, numbers)
        if values.dtype == polars.String and values.str.contains(BETWEEN, literal=True).any():
            values = values.str.split(BETWEEN)
            inner = polars.String()
        if not (inner == polars.String or inner.is_integer()):
            raise InputError(
                f"column {name!r} of {self._origin} is {values.dtype}, which cannot be compared; cast it to text, such "
                "as '2020-01-31', or to a number"
            )
        if values.dtype == polars.String:
            codes, vocabulary = _codes(values)
            return Column(CATEGORICAL, self._spread(codes), vocabulary=vocabulary)
        codes, vocabulary = _codes(values.filter(values.list.len().fill_null(0) > 0).explode())
        counts = self._spread(values.list.len().fill_null(0).to_numpy())
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Column(CATEGORIES, codes, vocabulary=vocabulary, offsets=offsets)

    def _spread(self, values: NDArray[Any]) -> Int64:
        """Return values of the table's rows for all items (N + 1,), 0 for those without a row."""
        found = np.zeros(self._num_items + 1, np.int64)
        found[self._items] = values
        return found


def _frame(items: polars.DataFrame | str | Path, key: str) -> tuple[polars.DataFrame, str]:
    """Return the table, and what it is called in messages."""
    import polars

    from seqrec.data.sources.checking import reading
    from seqrec.data.sources.side_table import read_table

    if isinstance(items, polars.LazyFrame):
        return items.collect(), "items"
    if isinstance(items, polars.DataFrame):
        return items, "items"
    if not isinstance(items, (str, Path)):
        raise InputError(f"items={items!r:.60} must be an event store, a polars frame, or a file of a table")
    file = Path(items)
    if not file.is_file():
        raise MissingInputError(f"items={str(file)!r} does not exist; give a Parquet, CSV, TSV or JSON lines file")
    with reading(file, "a table"):
        return read_table([file], key).frame.collect(), str(file)


def _codes(values: polars.Series) -> tuple[Int64, Vocabulary]:
    """Return the codes (S,) of text or integers, 0 if missing, and their values in ascending order."""
    import polars

    from seqrec.data.ids import cleaned

    if values.dtype == polars.String:
        values = values.to_frame("text").select(cleaned(polars.col("text")))["text"]
        vocabulary = Vocabulary(values.unique().drop_nulls().sort().to_list())
    else:
        vocabulary = Vocabulary(values.unique().drop_nulls().cast(polars.Int64).sort().to_numpy())
    distinct = values.unique()
    known = np.zeros(len(distinct), np.int64)
    known[distinct.is_not_null().to_numpy()] = vocabulary.lookup_series(distinct.drop_nulls())
    places = values.to_frame("value").join(
        polars.DataFrame({"value": distinct, "code": known}),
        on="value",
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    return places["code"].to_numpy(), vocabulary
