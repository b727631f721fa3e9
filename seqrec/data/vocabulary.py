"""External ids <-> internal ids, memory-mapped. Internal ids are 1..N, most often in order of external id."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqrec.data.pieces import first_at_least

if TYPE_CHECKING:
    import polars

Int64Array = NDArray[np.int64]
# Ids to translate at a time.
TRANSLATED = 1 << 20


class Vocabulary:
    """The log's ids of one kind, users or items.

    Internal id 0 is padding. In a store that `prepare` made, internal id i is the i-th smallest external id. In one
    that has grown, later ids follow in the order of their arrival. Strings are ordered by their UTF-8 bytes, which is
    also the order of Python strings. They are stored as one run of bytes, so millions of them open at once.

    Args:
        external_ids: The ids 1, 2, .., an int64 array or strings.
        any_order: Whether they may come in any order.

    Raises:
        ValueError: if the ids are not distinct, or not ascending without `any_order`.

    Example:
        >>> import numpy as np
        >>> vocabulary = Vocabulary(np.array([7, 10, 20]))
        >>> vocabulary.lookup([20, "7", 8]).tolist(), vocabulary.external_ids([3, 1]).tolist()
        ([3, 1, 0], [20, 7])
    """

    def __init__(self, external_ids: Int64Array | Sequence[str], *, any_order: bool = False) -> None:
        if isinstance(external_ids, np.ndarray) and external_ids.dtype.kind in "iu":
            values = external_ids.astype(np.int64, copy=False)
            offsets, encoded = None, []
            ascending = bool(np.all(values[1:] > values[:-1]))
        else:
            encoded = [str(external_id).encode() for external_id in external_ids]
            offsets = np.zeros(len(encoded) + 1, np.int64)
            np.cumsum([len(text) for text in encoded], out=offsets[1:])
            values = np.frombuffer(b"".join(encoded), np.uint8)
            ascending = all(low < high for low, high in pairwise(encoded))
        order: Int64Array | None = None
        if not ascending:
            if not any_order:
                raise ValueError("external_ids must be distinct and in ascending order")
            keys = values if offsets is None else np.array(encoded, object)
            order = np.argsort(keys, kind="stable").astype(np.int64)
            if np.any(keys[order[1:]] == keys[order[:-1]]):
                raise ValueError("external_ids must be distinct")
        self._set(values, offsets, order)

    def _set(
        self, values: NDArray[np.generic], offsets: Int64Array | None, order: NDArray[np.integer[Any]] | None = None
    ) -> None:
        # `values` are the ids if these are integers. If they are strings, `values` are their bytes, and string k
        # ends before offsets[k + 1].
        self._values = values
        self._offsets = offsets
        # Row order[k], from 0, has the k-th smallest id; None if the rows are in this order.
        self._order: NDArray[np.integer[Any]] | None = order

    @property
    def is_integer(self) -> bool:
        """True if external ids are integers, False if they are strings."""
        return self._offsets is None

    @property
    def is_ascending(self) -> bool:
        """True if internal ids are in the order of external ids."""
        return self._order is None

    def __len__(self) -> int:
        return len(self._values) if self._offsets is None else len(self._offsets) - 1

    def external_ids(self, internal_ids: ArrayLike) -> Int64Array | list[str]:
        """Return the log's ids of `internal_ids` (N,), which lie in 1..len(self).

        Returns:
            An int64 array (N,), or a list if the log's ids are strings.

        Raises:
            ValueError: if an id is 0, which is padding, or beyond the last one.
        """
        rows = np.atleast_1d(np.asarray(internal_ids)).astype(np.int64) - 1
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            bad = int(rows[outside][0]) + 1
            reason = " (0 is padding)" if bad == 0 else ""
            raise ValueError(f"internal id {bad} must lie in 1..{len(self)}{reason}")
        if self._offsets is None:
            return np.asarray(self._values)[rows].astype(np.int64, copy=False)
        return [self._text(int(row)).decode() for row in rows]

    def external_series(self, internal_ids: NDArray[np.integer[Any]]) -> polars.Series:
        """Return the log's ids of `internal_ids` (N,) as a column, Int64 or String.

        Raises:
            ValueError: as for `external_ids`.
        """
        # Training needs vocabularies, but not polars.
        import polars

        if self._offsets is None:
            return polars.Series(self.external_ids(internal_ids), dtype=polars.Int64)
        distinct, places = np.unique(internal_ids, return_inverse=True)
        return polars.Series(self.external_ids(distinct), dtype=polars.String).gather(places)

    def translation(self, other: Vocabulary) -> Int64Array:
        """Return this vocabulary's id (len(other) + 1,) for each internal id of another; 0 if it is unknown here."""
        ids = np.zeros(len(other) + 1, np.int64)
        for first in range(1, len(ids), TRANSLATED):
            some = np.arange(first, min(first + TRANSLATED, len(ids)))
            ids[some] = self.lookup(other.external_ids(some))
        return ids

    def lookup(self, external_ids: Sequence[int | str] | NDArray[np.generic]) -> Int64Array:
        """Return internal ids (N,) int64 of the log's ids; 0 if an id is unknown.

        An integer and its decimal string are the same id, so integers can be looked up as text.

        Raises:
            TypeError: if an id is neither an integer nor a string.
        """
        if isinstance(external_ids, np.ndarray) and external_ids.dtype.kind == "i" and self._offsets is None:
            return self._lookup_integers(external_ids.astype(np.int64, copy=False))
        if self._offsets is None and set(map(type, external_ids)) <= {int}:
            # Faster than one by one, unless an id is too large.
            with suppress(OverflowError):
                return self._lookup_integers(np.array(external_ids, np.int64))
        for external_id in external_ids:
            if isinstance(external_id, (bool, np.bool_)) or not isinstance(external_id, (int, str, np.integer)):
                raise TypeError(f"external id {external_id!r} must be an integer or a string")
        if self._offsets is None:
            numbers = [_as_int64(external_id) for external_id in external_ids]
            keys = np.array([number or 0 for number in numbers], np.int64)
            known = np.array([number is not None for number in numbers], bool)
            return np.where(known, self._lookup_integers(keys), 0)
        return self._lookup_strings([str(external_id).encode() for external_id in external_ids])

    def lookup_series(self, external_ids: polars.Series) -> Int64Array:
        """Return internal ids (N,) int64 of a column, read by the rules of `seqrec.data.ids`; 0 if an id is unknown."""
        import polars

        from seqrec.data.ids import cleaned, whole_numbers

        if external_ids.dtype.is_integer() and external_ids.dtype != polars.UInt64:
            return self.lookup(external_ids.cast(polars.Int64).to_numpy())
        if external_ids.dtype == polars.String:
            text = cleaned(polars.col("text"), [])
            text = whole_numbers(text) if self.is_integer else text
            external_ids = external_ids.to_frame("text").select(text)["text"]
        found = np.zeros(len(external_ids), np.int64)
        found[external_ids.is_not_null().to_numpy()] = self.lookup(external_ids.drop_nulls().to_list())
        return found

    def _lookup_integers(self, keys: Int64Array) -> Int64Array:
        if len(self) == 0:
            return np.zeros(len(keys), np.int64)
        values, rows = np.asarray(self._values), self._integer_places(keys)
        if self._order is not None:
            rows = self._order[np.minimum(rows, len(self) - 1)].astype(np.int64)
        found = values[np.minimum(rows, len(self) - 1)] == keys
        return np.where(found, rows + 1, 0).astype(np.int64)

    def _integer_places(self, keys: Int64Array) -> Int64Array:
        """Return the first place (N,), in order, with an id of at least each of `keys` (N,)."""
        values, order = np.asarray(self._values), self._order
        if order is None:
            return np.searchsorted(values, keys)
        # `numpy.searchsorted` would copy the whole order at each call, as integers of eight bytes.
        rows, ends = np.asarray(order), np.full(len(keys), len(self))
        return first_at_least(lambda places: values[rows[places]], keys, np.zeros_like(ends), ends)

    def _lookup_strings(self, keys: list[bytes]) -> Int64Array:
        # If the keys are in order, like another vocabulary's, each search starts at the end of the last one.
        found, start, last = np.zeros(len(keys), np.int64), 0, b""
        for place, key in enumerate(keys):
            start = self._place(key, start if key >= last else 0)
            last = key
            if start < len(self) and self._bytes(start) == key:
                found[place] = 1 + (start if self._order is None else int(self._order[start]))
        return found

    def _place(self, key: bytes, start: int) -> int:
        """Return the first place, in order, from `start` on with an id of at least `key`. A near one is found soon."""
        step, end = 1, start
        while end < len(self) and self._bytes(end) < key:
            start, end, step = end + 1, end + step, 2 * step
        return bisect_left(range(len(self)), key, start, min(end, len(self)), key=self._bytes)

    def _bytes(self, place: int) -> bytes:
        return self._text(place if self._order is None else int(self._order[place]))

    def _text(self, row: int) -> bytes:
        assert self._offsets is not None
        return self._values[self._offsets[row] : self._offsets[row + 1]].tobytes()

    def first(self, count: int) -> Vocabulary:
        """Return a vocabulary with the ids 1..count alone, at most all: what this one was before it grew."""
        found, order = Vocabulary.__new__(Vocabulary), None
        if self._order is not None:
            order = self._order[self._order < count].astype(np.min_scalar_type(count))
            order = None if np.array_equal(order, np.arange(count)) else order
        if self._offsets is None:
            found._set(self._values[:count], None, order)
        else:
            found._set(self._values[: self._offsets[count]], self._offsets[: count + 1], order)
        return found

    def grown(self, external_ids: Int64Array | Sequence[str]) -> Vocabulary:
        """Return a vocabulary with the same ids and, after them, further ones, of which this one knows none."""
        others = Vocabulary(external_ids if self.is_integer else list(map(str, external_ids)), any_order=True)
        first, size = len(self), len(self) + len(others)
        dtype = np.min_scalar_type(size)
        mine = np.arange(first, dtype=dtype) if self._order is None else self._order.astype(dtype)
        theirs = np.arange(len(others)) if others._order is None else others._order
        found = Vocabulary.__new__(Vocabulary)
        if self._offsets is None:
            assert others._offsets is None
            values = np.concatenate([self._values, others._values])
            places = self._integer_places(others._values[theirs])  # type: ignore[arg-type]  # they are int64
            found._set(values, None)
        else:
            assert others._offsets is not None
            ends = others._offsets[1:] + self._offsets[-1]
            found._set(np.concatenate([self._values, others._values]), np.concatenate([self._offsets, ends]))
            keys = [others._text(int(row)) for row in theirs]
            places = np.array([self._place(key, 0) for key in keys], np.int64)
        if self._order is not None or others._order is not None or (places < first).any():
            found._order = np.insert(mine, places, theirs + first)
        return found

    def extended(self, external_ids: Int64Array | Sequence[str]) -> Vocabulary:
        """Return `grown` by those of some distinct ids that this one does not know."""
        unknown = self.lookup(external_ids) == 0
        if not unknown.any():
            return self
        if isinstance(external_ids, np.ndarray):
            return self.grown(external_ids[unknown])
        return self.grown([each for each, is_new in zip(external_ids, unknown, strict=True) if is_new])

    def arrays(self, stem: str) -> dict[str, NDArray[Any]]:
        """Return the arrays that `open` reads, by file name without `.npy`.

        Integers are the array `<stem>`; strings are `<stem>.bytes` and `<stem>.offsets`. Ids that are not in ascending
        order have a third array `<stem>.order`.
        """
        order = {} if self._order is None else {f"{stem}.order": self._order}
        if self._offsets is None:
            return {stem: self._values, **order}
        return {f"{stem}.bytes": self._values, f"{stem}.offsets": self._offsets, **order}

    def digest(self) -> str:
        """Return a digest of the log's ids in their order: 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, values in sorted(self.arrays("ids").items()):
            digest.update(f"{name} {values.dtype} {len(values)} ".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()[:16]

    @classmethod
    def open(cls, directory: Path, stem: str) -> Vocabulary:
        """Return the vocabulary with `arrays` in `.npy` files, memory-mapped.

        Raises:
            FileNotFoundError: if the files do not exist.
        """
        vocabulary, order = cls.__new__(cls), None
        if (directory / f"{stem}.order.npy").exists():
            order = np.load(directory / f"{stem}.order.npy", mmap_mode="r")
        if (directory / f"{stem}.npy").exists():
            vocabulary._set(np.load(directory / f"{stem}.npy", mmap_mode="r"), None, order)
        else:
            values = np.load(directory / f"{stem}.bytes.npy", mmap_mode="r")
            vocabulary._set(values, np.load(directory / f"{stem}.offsets.npy", mmap_mode="r"), order)
        return vocabulary


def _as_int64(external_id: object) -> int | None:
    # The integer of an id; None for text that is not the decimal form of an int64, such as "007".
    try:
        number = int(external_id)  # type: ignore[call-overload]
    except ValueError:
        return None
    if isinstance(external_id, str) and str(number) != external_id:
        return None
    return number if -(2**63) <= number < 2**63 else None
