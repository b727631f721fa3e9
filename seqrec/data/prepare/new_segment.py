"""Append new events to an event store, as a further segment. U users, E events, N new events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from seqrec.data.array_files import ArrayFile, write_arrays
from seqrec.data.columns import Column
from seqrec.data.pieces import first_at_least, pieces_of, user_blocks
from seqrec.data.prepare.append_rows import Grown, write_rows
from seqrec.data.prepare.columns import count_missing
from seqrec.data.prepare.filters import Changed, Duplicates, Filters, Late
from seqrec.data.prepare.ordering import repeated_places
from seqrec.data.prepare.partitions import Events, take
from seqrec.data.prepare.spool import RawColumn
from seqrec.data.schema import CATEGORICAL, EVENTS, ITEM_ID, ITEMS, USER_ID, USERS, file_names
from seqrec.data.segments import grown_runs, plain, runs_of
from seqrec.data.store import EventStore
from seqrec.data.vocabulary import Vocabulary
from seqrec.data.windows import ranges
from seqrec.errors import InputError

Int64 = NDArray[np.int64]
# New events to merge at a time, unless one user has more.
MERGED_EVENTS = 1 << 20
# Times of one unit do not differ by so much.
_OTHER_UNIT = 300


@dataclass
class Appended:
    """Counts of an append: new events by what became of them.

    Attributes:
        events: Events that the store has more than before.
        late: Events that are older than the newest one that the store had of their user.
        duplicates: Events with the user, item and timestamp of an earlier one.
    """

    events: int = 0
    late: int = 0
    duplicates: int = 0


@dataclass
class _Tails:
    # The new ends of histories, on disk: events, and for each user its row, what is left of the history, and length.
    columns: dict[str, RawColumn]
    widths: dict[str, int | None]
    rows: list[Int64] = field(default_factory=list)
    kept: list[Int64] = field(default_factory=list)
    lengths: list[Int64] = field(default_factory=list)
    counts: Appended = field(default_factory=Appended)
    missing: Counter[str] = field(default_factory=Counter)


def write_segment(
    store: EventStore,
    delta: EventStore,
    work: Path,
    filters: Filters,
    duplicates: Duplicates,
    late: Late,
    changed: Changed,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any], Appended]:
    """Write the files of a store's next segment into the folder `work/segment`.

    Args:
        store: The store.
        delta: The new events as a store of their own.
        work: Folder for temporary files.
        filters: Those of the store.
        duplicates: Treatment of duplicates.
        late: Treatment of events that are older than the newest of their user.
        changed: Treatment of other values of known items and users.

    Returns:
        Size and digest of each file, the columns of each group for the manifest, and counts.

    Raises:
        InputError: if the new events do not suit the store, or are refused.
    """
    _check(store, delta)
    grown = _numbered(store, delta, filters)
    folder, spool = work / "segment", work / "tails"
    folder.mkdir()
    spool.mkdir()
    # First, because it may refuse rows.
    rows = {group: write_rows(grown, group, folder, changed) for group in (ITEMS, USERS)}
    tails = _merged(grown, spool, duplicates, late)
    if duplicates == "drop":
        # Those among the new events are gone already.
        tails.counts.duplicates += delta.manifest["counts"]["duplicates"] or 0
    if not tails.counts.events:
        raise InputError("no new event is left after the filters and duplicates: the store is as it was")
    files = _write(grown, tails, folder)
    columns: dict[str, dict[str, Any]] = {
        EVENTS: {
            name: {"kind": column.kind, "missing": column.missing + tails.missing[f"{EVENTS}.{name}"]}
            for name, column in store.event_columns.items()
        }
    }
    for group, (described, written) in rows.items():
        columns[group] = described
        files += written
    return {each.path.name: each.finish() for each in files}, columns, tails.counts


def _check(store: EventStore, delta: EventStore) -> None:
    """Refuse new events with ids of another type, or with times in another unit."""
    pairs = {USER_ID: (store.user_vocabulary, delta.user_vocabulary)}
    pairs[ITEM_ID] = (store.item_vocabulary, delta.item_vocabulary)
    for name, (old, new) in pairs.items():
        if old.is_integer and not new.is_integer:
            (example,) = new.external_ids([len(new)])
            raise InputError(
                f"input: {name} has text such as {example!r}, but the store's ids are whole numbers; correct the file, "
                "or prepare the whole log again"
            )
    for group, name, column, there in _columns(store, delta):
        where = f"input: {group}" if group != EVENTS else "input"
        known, given = column.vocabulary, there.vocabulary
        if known is not None and given is not None and known.is_integer and not given.is_integer and len(given):
            raise InputError(f"{where}: the column {name!r} has text, but the store's values are whole numbers")
        if there.width != column.width:
            raise InputError(f"{where}: vectors of {name!r} have {there.width} numbers, but the store's {column.width}")
    if store.timestamps is not None and delta.timestamps is not None:
        was, now = int(store.timestamps[-1]), int(delta.timestamps[-1])
        if min(was, now) > 0 and max(was, now) > _OTHER_UNIT * min(was, now):
            raise InputError(
                f"input: times such as {now} are of another unit than the store's, such as {was}; write them in the "
                "unit of the store"
            )


def _columns(store: EventStore, delta: EventStore) -> Iterator[tuple[str, str, Column, Column]]:
    """Yield group and name of each column of a store, the column, and that of the new events."""
    for group, own in store.columns.items():
        for name, column in own.items():
            yield group, name, column, delta.columns[group][name]


def _numbered(store: EventStore, delta: EventStore, filters: Filters) -> Grown:
    """Find the ids of the new events in the store, and number new users and items after all others."""
    of_users = store.user_vocabulary.translation(delta.user_vocabulary)
    of_items = store.item_vocabulary.translation(delta.item_vocabulary)
    users, items = _admitted(delta, of_users > 0, of_items > 0, filters)
    numbered = [
        ("user_vocabulary", of_users, users, store.user_vocabulary, delta.user_vocabulary),
        ("item_vocabulary", of_items, items, store.item_vocabulary, delta.item_vocabulary),
    ]
    codes = {}
    for group, name, column, there in _columns(store, delta):
        known, given = column.vocabulary, there.vocabulary
        if known is not None and given is not None:
            stems = file_names(group, name, column.kind)
            codes[stems["values"]] = ids = known.translation(given)
            numbered.append((stems["vocabulary"], ids, np.arange(len(given) + 1) > 0, known, given))
    vocabularies = {}
    for stem, ids, kept, old, new in numbered:
        fresh = np.flatnonzero(kept & (ids == 0))
        ids[~kept] = 0
        if len(fresh):
            ids[fresh] = len(old) + 1 + np.arange(len(fresh))
            vocabularies[stem] = old.grown(new.external_ids(fresh))
    return Grown(store, delta, of_users, of_items, codes, vocabularies)


def _admitted(
    delta: EventStore, known_users: NDArray[np.bool_], known_items: NDArray[np.bool_], filters: Filters
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (U + 1,) and (V,) True for users and items that stay: known ones, and new ones with enough new events."""
    users, items = np.ones(len(known_users), bool), np.ones(len(known_items), bool)
    users[0] = items[0] = False
    short = False
    while True:
        of_users, of_items = np.zeros(len(users), np.int64), np.zeros(len(items), np.int64)
        for first, last in user_blocks(np.asarray(delta.offsets), MERGED_EVENTS):
            begin, end = int(delta.offsets[first]), int(delta.offsets[last])
            ids = np.repeat(np.arange(first, last) + 1, np.diff(delta.offsets[first : last + 1]))
            there = np.asarray(delta.item_ids[begin:end]).astype(np.int64)
            kept = users[ids] & items[there]
            of_users += np.bincount(ids[kept], minlength=len(users))
            of_items += np.bincount(there[kept], minlength=len(items))
        least = max(1, filters.min_history) if short else filters.min_user_events
        few_users = users & ~known_users & (of_users < max(least, 1))
        few_items = items & ~known_items & (of_items < (1 if short else filters.min_item_events))
        users, items = users & ~few_users, items & ~few_items
        if not few_users.any() and not few_items.any():
            if short or filters.min_history <= 1:
                return users, items
            short = True


def _merged(grown: Grown, spool: Path, duplicates: Duplicates, late: Late) -> _Tails:
    """Merge new events with those of the store that follow them, users in the order of their ids."""
    store, delta = grown.store, grown.delta
    types: dict[str, np.dtype[Any]] = {"item_ids": np.dtype(np.int64)}
    if store.timestamps is not None:
        types["timestamps"] = np.dtype(np.int64)
    widths: dict[str, int | None] = dict.fromkeys(types)
    for name, column in store.event_columns.items():
        stem = f"{EVENTS}.{name}"
        types[stem] = np.dtype(np.int64) if column.kind == CATEGORICAL else np.dtype(np.float32)
        widths[stem] = column.values.shape[1] if len(column.values.shape) > 1 else None
    tails = _Tails({name: RawColumn(spool / name, dtype) for name, dtype in types.items()}, widths)
    order = np.argsort(grown.user_ids[1:], kind="stable")
    order = order[grown.user_ids[1:][order] > 0]
    ends = np.append(0, np.cumsum(np.diff(delta.offsets)[order]))
    for first, last in user_blocks(ends, MERGED_EVENTS):
        _merge(grown, order[first:last], tails, duplicates, late)
    return tails


def _merge(grown: Grown, rows: Int64, tails: _Tails, duplicates: Duplicates, late: Late) -> None:
    # `rows` are those of the new events' store; `local` numbers the users of this block.
    store, delta, user_ids = grown.store, grown.delta, grown.user_ids[1:][rows]
    counts = np.diff(delta.offsets)[rows]
    local, events = np.repeat(np.arange(len(rows)), counts), _events_at(delta, ranges(delta.offsets[rows], counts))
    events["item_ids"] = grown.item_ids[events["item_ids"]]
    for name in events.keys() & grown.codes.keys():
        events[name] = grown.codes[name][events[name]]
    there = events["item_ids"] > 0
    local, events = local[there], take(events, there)
    present = np.flatnonzero(np.bincount(local, minlength=len(rows)))
    user_ids, local = user_ids[present], np.searchsorted(present, local)
    begins, ends = _histories(store, user_ids)
    from_places = ends.copy()
    if "timestamps" in events:
        times = plain(store.timestamps)  # type: ignore[arg-type]  # both have times
        earliest = events["timestamps"][np.searchsorted(local, np.arange(len(user_ids)))]
        newest = np.full(len(user_ids), np.iinfo(np.int64).min)
        newest[ends > begins] = times[ends[ends > begins] - 1]
        is_late = events["timestamps"] < newest[local]
        tails.counts.late += int(is_late.sum())
        if is_late.any() and late == "refuse":
            place = int(is_late.argmax())
            raise InputError(
                f"late='refuse': {int(is_late.sum()):,} events are older than the newest of their user in the store, "
                f"first one of user {_shown(store.user_vocabulary, user_ids[local[place]])} at "
                f"{events['timestamps'][place]}, whose newest is {newest[local[place]]}: correct the clock, or merge "
                "them by late='merge'"
            )
        from_places = first_at_least(times.__getitem__, earliest, begins, ends)
    old = ranges(from_places, ends - from_places)
    all_rows = np.concatenate([np.repeat(np.arange(len(user_ids)), ends - from_places), local])
    merged = {name: np.concatenate([values, events[name]]) for name, values in _events_at(store, old).items()}
    is_new = np.arange(len(all_rows)) >= len(old)
    keys = (merged["timestamps"], all_rows) if "timestamps" in merged else (all_rows,)
    order = np.lexsort(keys)
    all_rows, is_new, merged = all_rows[order], is_new[order], take(merged, order)
    repeated = repeated_places(all_rows, merged)
    repeated = repeated[is_new[repeated]]
    tails.counts.duplicates += len(repeated)
    if len(repeated) and duplicates == "refuse":
        _refuse_repeated(store, len(repeated), user_ids[all_rows[repeated[0]]], take(merged, repeated[:1]))
    kept = np.ones(len(all_rows), bool)
    if duplicates == "drop":
        kept[repeated] = False
    all_rows, is_new, merged = all_rows[kept], is_new[kept], take(merged, kept)
    _append_tails(tails, user_ids, from_places, all_rows, is_new, merged)


def _refuse_repeated(store: EventStore, count: int, user_id: int, event: Events) -> NoReturn:
    user = _shown(store.user_vocabulary, user_id)
    item = _shown(store.item_vocabulary, int(event["item_ids"][0]))
    raise InputError(
        f"duplicates='refuse': {count:,} events repeat user, item and timestamp of an earlier one, first "
        f"user_id={user}, item_id={item}, timestamp={event['timestamps'][0]}; clean the file, or choose drop or keep"
    )


def _append_tails(
    tails: _Tails, user_ids: Int64, from_places: Int64, rows: Int64, is_new: NDArray[np.bool_], events: Events
) -> None:
    # Events in front of a user's first new one stay where they are.
    starts = np.searchsorted(rows, np.arange(len(user_ids)))
    firsts = np.full(len(user_ids), len(rows))
    places = np.flatnonzero(is_new)
    np.minimum.at(firsts, rows[places], places)
    touched = firsts < len(rows)
    in_tail = np.arange(len(rows)) >= firsts[rows]
    tails.rows.append(user_ids[touched] - 1)
    tails.kept.append((from_places + firsts - starts)[touched])
    tails.lengths.append(np.bincount(rows[in_tail], minlength=len(user_ids))[touched])
    tails.counts.events += int(is_new.sum())
    for name, column in tails.columns.items():
        column.append(events[name][in_tail])
        if name.startswith(f"{EVENTS}."):
            tails.missing[name] += count_missing(events[name][is_new])


def _shown(vocabulary: Vocabulary, internal_id: int) -> str:
    return "(new)" if internal_id > len(vocabulary) else repr(vocabulary.external_series(np.array([internal_id]))[0])


def _histories(store: EventStore, user_ids: Int64) -> tuple[Int64, Int64]:
    # Begin and end of each user's events; new users have none, at the end of the log.
    known = np.minimum(user_ids, store.num_users) - 1
    is_new = user_ids > store.num_users
    begins, ends = (np.asarray(store.offsets)[known + step].astype(np.int64) for step in (0, 1))
    return np.where(is_new, store.num_events, begins), np.where(is_new, store.num_events, ends)


def _events_at(store: EventStore, places: Int64) -> Events:
    events: Events = {"item_ids": plain(store.item_ids)[places]}
    if store.timestamps is not None:
        events["timestamps"] = plain(store.timestamps)[places]
    for name, column in store.event_columns.items():
        events[f"{EVENTS}.{name}"] = plain(column.values)[places]
    return events


def _cat(parts: list[Int64]) -> Int64:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _write(grown: Grown, tails: _Tails, folder: Path) -> list[ArrayFile]:
    """Write events, offsets, runs and vocabularies of a segment."""
    store, vocabularies = grown.store, grown.vocabularies
    rows, kept, lengths = map(_cat, (tails.rows, tails.kept, tails.lengths))
    size, files = int(lengths.sum()), []
    sizes = {"item_ids": len(vocabularies.get("item_vocabulary", store.item_vocabulary))}
    for name, column in store.event_columns.items():
        if column.vocabulary is not None:
            stem = file_names(EVENTS, name, column.kind)["vocabulary"]
            sizes[f"{EVENTS}.{name}"] = len(vocabularies.get(stem, column.vocabulary))
    for name, raw in tails.columns.items():
        dtype = np.min_scalar_type(sizes[name]) if name in sizes else raw.dtype
        width = tails.widths[name]
        files.append(ArrayFile(folder, name, dtype, size, width))
        for piece in pieces_of(raw.mapped() if width is None else raw.mapped().reshape(-1, width), MERGED_EVENTS):
            files[-1].append(piece)
    _, ends = _histories(store, rows + 1)
    num_users = len(vocabularies.get("user_vocabulary", store.user_vocabulary))
    begins = np.append(np.asarray(store.offsets), np.full(num_users - store.num_users, store.num_events))
    counts = np.diff(begins)
    counts[rows] = kept - begins[rows] + lengths
    starts, places, bounds = runs_of(store.item_ids)
    starts, places = grown_runs(starts, places, (kept, ends), lengths, bounds)
    arrays = {"offsets": np.append(0, np.cumsum(counts)), "run_starts": starts, "run_places": places}
    for stem, vocabulary in vocabularies.items():
        arrays |= vocabulary.arrays(stem)
    return files + write_arrays(folder, arrays)
