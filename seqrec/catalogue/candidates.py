"""The items among which a recommendation chooses: a list of ids, a mask, or the items that meet a condition."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from seqrec.catalogue.item_columns import ItemColumns
from seqrec.catalogue.recommend import RecommendingModel, item_ids_of, looked_up
from seqrec.data.schema import ITEM_ID
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.errors import InputError

if TYPE_CHECKING:
    import polars


class Candidates:
    """Items of a catalogue, the only ones that are recommended; made once, used for any number of users.

    The constructor takes internal ids, which `History` and `Recommendations` have too; `of_items`, `of_mask` and
    `where` make candidates of other forms.

    Args:
        item_ids: (N,) internal ids in any order, at least one; repeats count once.
        num_items: Items of the catalogue.
        vocabulary: The log's ids of the catalogue, with which a model's are compared; None compares the number alone.

    Attributes:
        item_ids: (N,) int64 internal ids, ascending and distinct.
        num_items: As given.

    Raises:
        InputError: if there are no items, or an id is not in 1..num_items.

    Example:
        >>> import numpy as np
        >>> from seqrec import Candidates, Popularity
        >>> from seqrec.data.vocabulary import Vocabulary
        >>> model = Popularity.from_counts(np.array([0, 5, 9, 1]))
        >>> model.item_vocabulary = Vocabulary(["apple", "bread", "cheese"])
        >>> fruit_or_milk = Candidates.of_items(["apple", "cheese"], model.item_vocabulary)
        >>> model.recommend([["bread"]], top_k=2, candidates=fruit_or_milk)
        [['apple', 'cheese']]
    """

    def __init__(self, item_ids: ArrayLike | Tensor, num_items: int, *, vocabulary: Vocabulary | None = None) -> None:
        found = np.asarray(item_ids).astype(np.int64)
        if (found[1:] <= found[:-1]).any():
            found = np.unique(found)
        if not len(found):
            raise InputError("item_ids is empty, so nothing would be left to recommend")
        if found[0] < 1 or found[-1] > num_items:
            bad = found[0] if found[0] < 1 else found[-1]
            raise InputError(f"item_ids has {bad}, and internal ids are 1..num_items={num_items}")
        self.item_ids = torch.from_numpy(found)
        self.num_items = num_items
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.item_ids)

    def __and__(self, other: Candidates) -> Candidates:
        """Return the items that both have.

        Raises:
            InputError: if there are none, or the catalogues differ.
        """
        other.check_catalogue(self.num_items, self._vocabulary)
        both = np.intersect1d(self.item_ids.numpy(), other.item_ids.numpy(), assume_unique=True)
        if not len(both):
            raise InputError(f"{self} and {other} have no item in common, so nothing would be left to recommend")
        return Candidates(both, self.num_items, vocabulary=self._vocabulary or other._vocabulary)

    def __repr__(self) -> str:
        return f"Candidates({len(self):,} of {self.num_items:,} items)"

    @classmethod
    def of_items(cls, items: Collection[Any], vocabulary: Vocabulary, *, argument: str = "items") -> Candidates:
        """Return candidates of the log's item ids, all of which must be known.

        Args:
            items: The ids.
            vocabulary: The log's item ids, such as `model.item_vocabulary`.
            argument: What the ids are called in messages.

        Raises:
            InputError: if there are no ids, one is not in the catalogue, or `items` is a text.
        """
        if isinstance(items, (str, bytes)) or not isinstance(items, (Collection, np.ndarray)):
            raise InputError(f"{argument}={items!r} must be a collection of item ids, as in [{items!r}]")
        if not len(items):
            raise InputError(f"{argument} has no item id, so nothing would be left to recommend; leave it out for all")
        found = looked_up(vocabulary, argument, items if isinstance(items, np.ndarray) else list(items))
        if unknown := int((found == 0).sum()):
            example = next(iter(itertools.compress(items, found == 0)))
            raise InputError(
                f"{argument} has {example!r}, which is not in the catalogue of {len(vocabulary):,} items; leave out "
                f"such ids ({unknown:,} of {len(found):,})"
            )
        return cls(found, len(vocabulary), vocabulary=vocabulary)

    @classmethod
    def of_mask(cls, mask: ArrayLike | Tensor) -> Candidates:
        """Return candidates of a mask over the catalogue.

        Args:
            mask: (num_items + 1,) bool by internal id, True for candidates; element 0 is no item and must be False.

        Raises:
            InputError: if it is no such mask, or is True for no item.
        """
        found = np.asarray(mask)
        if found.dtype != bool or found.ndim != 1 or not len(found) or found[0]:
            raise InputError(
                f"mask of shape {found.shape} and type {found.dtype} must be bool (num_items + 1,), False at 0, which "
                "is no item"
            )
        if not found.any():
            raise InputError(
                f"mask is True for none of {len(found) - 1:,} items, so nothing would be left to recommend"
            )
        return cls(found.nonzero()[0], len(found) - 1)

    @classmethod
    def where(
        cls,
        condition: str,
        items: EventStore | ItemColumns | polars.DataFrame | str | Path,
        vocabulary: Vocabulary | None = None,
        *,
        key: str = ITEM_ID,
        argument: str = "condition",
    ) -> Candidates:
        """Return the items that meet a condition, such as `genres has 'jazz' and year > 1990`.

        Comparisons are `=`, `!=`, `<`, `<=`, `>`, `>=`, `in (..)`, `is null`, and `has`, which is `=` for a column of
        several values; they are combined by `and`, `or`, `not` and brackets. A comparison with a missing value is
        neither true nor false, as in SQL. With a column of several values, it is true if it is for any of them. See
        `seqrec.catalogue.conditions`.

        Args:
            condition: The condition.
            items: The items' columns: an event store with `Schema.items`; a polars frame, or a file of one (Parquet,
                CSV, TSV or JSON lines), with a row for each item; or `ItemColumns`, which are read once for several
                conditions.
            vocabulary: The log's item ids, such as `model.item_vocabulary`; needed for a frame or a file.
            key: The column of a frame or file with the log's item ids.
            argument: What the condition is called in messages.

        Raises:
            InputError: if it is no condition, has an unknown column or a value of another kind than its column's, or no
                item meets it.
            MissingInputError: if a file does not exist.

        Example:
            >>> import polars
            >>> from seqrec import Candidates
            >>> from seqrec.data.vocabulary import Vocabulary
            >>> songs = polars.DataFrame({"item_id": ["a", "b", "c"], "year": [1959, 1991, None]})
            >>> Candidates.where("year < 1990 or year is null", songs, Vocabulary(["a", "b", "c"])).item_ids.tolist()
            [1, 3]
        """
        columns = items if isinstance(items, ItemColumns) else ItemColumns.read(items, vocabulary, key=key)
        return cls(columns.items_where(condition, argument), len(columns.vocabulary), vocabulary=columns.vocabulary)

    def check_catalogue(self, num_items: int, vocabulary: Vocabulary | None, argument: str = "candidates") -> None:
        """Raise an `InputError` if the candidates are of another catalogue than a model's."""
        if self.num_items != num_items:
            raise InputError(
                f"{argument} is of a catalogue of {self.num_items:,} items, but the model has {num_items:,}; make it "
                "from the model's own ids or store"
            )
        if self._vocabulary is None or vocabulary is None or self._vocabulary is vocabulary:
            return
        own, theirs = (each.arrays("ids") for each in (self._vocabulary, vocabulary))
        if own.keys() != theirs.keys() or not all(np.array_equal(own[name], theirs[name]) for name in own):
            raise InputError(
                f"{argument} is of a catalogue with other item ids than the model's {num_items:,}; make it from the "
                "model's own ids or store"
            )
        # Equal, so the next check is fast.
        self._vocabulary = vocabulary


def allowed_items(
    model: RecommendingModel, candidates: Candidates | Collection[Any], argument: str = "candidates"
) -> Tensor:
    """Return the internal ids (N,), ascending, of candidates or of the log's item ids.

    Raises:
        InputError: if they are of another catalogue, or an id is unknown.
    """
    if not isinstance(candidates, Candidates):
        if isinstance(candidates, str):
            raise InputError(
                f"{argument}={candidates!r} must be Candidates or a collection of item ids; Candidates.where("
                f"{candidates!r}, store) makes them of a condition"
            )
        candidates = Candidates.of_items(candidates, item_ids_of(model), argument=argument)
    candidates.check_catalogue(model.scorer().num_items, model.item_vocabulary, argument)
    return candidates.item_ids
