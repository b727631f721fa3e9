"""Grow the columns of items and users of an event store by the rows of new ones. N items or users, R rows of new ones.

U users and V = num_items + 1 of the new events.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrec.data.array_files import ArrayFile, write_arrays
from seqrec.data.columns import Column
from seqrec.data.pieces import pieces_of
from seqrec.data.prepare.columns import count_missing
from seqrec.data.prepare.filters import Changed
from seqrec.data.schema import CATEGORIES, ITEMS, file_names
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.data.windows import ranges
from seqrec.errors import InputError

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Grown:
    """A store, new events as a store of their own, and ids of the first for those of the second.

    Attributes:
        store: The store.
        delta: The new events, with the rows of their users and items.
        user_ids: (U + 1,) id in the store of each user of `delta`; 0 if the user is left out.
        item_ids: (V,) likewise.
        codes: Code in the store of each code of `delta`, by the stems of columns.
        vocabularies: The vocabularies that get more ids or values, by their stems.
    """

    store: EventStore
    delta: EventStore
    user_ids: Int64
    item_ids: Int64
    codes: dict[str, Int64]
    vocabularies: dict[str, Vocabulary]


def write_rows(grown: Grown, group: str, folder: Path, changed: Changed) -> tuple[dict[str, Any], list[ArrayFile]]:
    """Write the columns of "items" or "users" anew with further rows, if there are new ones.

    The mean and the standard deviation of numbers stay, so models read them as before.

    Args:
        grown: The store, and the rows of the items and users of the new events.
        group: The group.
        folder: Folder of the files.
        changed: Treatment of a row of a known item or user with another value than the store's; a missing one is none.

    Returns:
        The description of each column by name, for the manifest, and the files.

    Raises:
        InputError: if a row differs and is refused.
    """
    store, known = grown.store, grown.store.item_vocabulary if group == ITEMS else grown.store.user_vocabulary
    ids = grown.item_ids if group == ITEMS else grown.user_ids
    fresh, there = np.flatnonzero(ids > len(known)), np.flatnonzero((ids > 0) & (ids <= len(known)))
    described, files = {}, []
    for name, column in store.columns[group].items():
        given, stems = grown.delta.columns[group][name], file_names(group, name, column.kind)
        codes = grown.codes.get(stems["values"])
        if changed == "refuse":
            _refuse_changed(f"{group}.{name}", known, column, ids[there], _rows(given, there, codes))
        values, lengths = _rows(given, fresh, codes)
        entry = dict(store.manifest["columns"][group][name])
        entry["missing"] += int((lengths == 0).sum()) if column.kind == CATEGORIES else count_missing(values)
        described[name] = entry
        if not len(fresh):
            continue
        dtype = column.values.dtype
        if codes is not None:
            assert column.vocabulary is not None
            dtype = np.min_scalar_type(len(grown.vocabularies.get(stems["vocabulary"], column.vocabulary)))
        width = column.values.shape[1] if column.values.ndim > 1 else None
        files.append(ArrayFile(folder, stems["values"], dtype, len(column.values) + len(values), width))
        for piece in (*pieces_of(column.values), values):
            files[-1].append(piece)
        if column.offsets is not None:
            ends = column.offsets[-1] + np.cumsum(lengths)
            files += write_arrays(folder, {stems["offsets"]: np.concatenate([column.offsets, ends])})
    return described, files


def _rows(column: Column, rows: Int64, codes: Int64 | None) -> tuple[NDArray[Any], Int64]:
    """Return the values of some rows, with the store's codes, and how many each has (R,)."""
    lengths, places = np.ones(len(rows), np.int64), rows
    if column.offsets is not None:
        lengths = np.diff(column.offsets)[rows]
        places = ranges(np.asarray(column.offsets)[rows], lengths)
    values = np.asarray(column.values)[places]
    return values if codes is None else codes[values], lengths


def _refuse_changed(
    where: str, known: Vocabulary, column: Column, ids: Int64, given: tuple[NDArray[Any], Int64]
) -> None:
    """Refuse values and their numbers, `given`, of known items or users (R,) that are others than in the store."""
    (values, lengths), (own, own_lengths) = given, _rows(column, ids, None)
    if column.offsets is None:
        differs = values.astype(own.dtype, copy=False) != own
        if values.ndim > 1:
            differs = differs.any(axis=1) & values.any(axis=1)
        else:
            differs &= ~np.isnan(values) if values.dtype.kind == "f" else values > 0
    else:
        differs = (lengths > 0) & (lengths != own_lengths)
        same = lengths == own_lengths
        row = np.repeat(np.arange(len(ids))[same], lengths[same])
        other = values[np.repeat(same, lengths)] != own[np.repeat(same, own_lengths)]
        differs[row[other]] = True
    if differs.any():
        (first,) = known.external_series(ids[differs][:1])
        group = where.partition(".")[0]
        raise InputError(
            f"input: {where} of {int(differs.sum()):,} known {group} is not what the store has, first of "
            f"{group[:-1]}_id={first!r}: rows of known {group} cannot change; correct the table, keep the store's by "
            "changed='keep', or prepare the whole log again"
        )
