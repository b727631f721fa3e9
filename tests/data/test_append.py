"""Stores that grow: append and compact equal a preparation of the whole log."""

from __future__ import annotations

import errno
import importlib
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from growing_logs import NEW, OLD, SCHEMA, Row, events, files_of, write
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from seqrec import EventStore, Filters, InputError, LeaveOneOut, Schema, SequenceDataModule, Table, prepare
from seqrec.data.item_counts import item_counts
from seqrec.data.prepare import append, compact, ensure_store
from seqrec.errors import StoreError

resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")
GROWING = importlib.import_module("seqrec.data.prepare.growing")
FILES = importlib.import_module("seqrec.files")
EVENT = st.tuples(
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 9), st.sampled_from("abc"), st.sampled_from([0.5, 1.0, None])
)
# Columns that the schema does not know: none, one, or several, of other types elsewhere.
OTHERS = st.sampled_from([{}, {"note": "x"}, {"note": 1, "price": 2.5}])
Piece = tuple[list[Row], dict[str, Any]]


def grow(folder: Path, pieces: list[Piece], filters: Filters | None = None, **switches: Any) -> EventStore:
    files = [write(folder, f"piece_{place}.parquet", *piece) for place, piece in enumerate(pieces)]
    log = Table(files[0]), filters or Filters()
    store = prepare(*log, folder / "store", schema=SCHEMA)
    for file in files[1:]:
        store = append(*log, folder / "store", file, schema=SCHEMA, **switches)
    return store


def cases(pieces: list[Piece]) -> set[str]:
    """What is special about the pieces of a log."""
    found, before = set(), list[Row]()
    for rows, others in pieces:
        times = [row[2] for row in rows]
        found |= {"unordered in itself"} if times != sorted(times) else set()
        if before:
            found |= {"another column"} if others else set()
            found |= {"an event again"} if {row[:3] for row in rows} & {row[:3] for row in before} else set()
            for place, name in enumerate(("a new user", "a new item", "", "a new value")):
                found |= {name} if name and {row[place] for row in rows} - {row[place] for row in before} else set()
            newest = {row[0]: max(each[2] for each in before if each[0] == row[0]) for row in before}
            found |= {"late"} if any(row[2] < newest.get(row[0], -1) for row in rows) else set()
        before += rows
    return found


def test_append_and_compact_equal_preparation_at_once(tmp_path_factory):
    drawn: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
    @given(
        st.lists(st.tuples(st.lists(EVENT, min_size=1, max_size=12), OTHERS), min_size=2, max_size=4),
        st.sampled_from(["keep", "drop"]),
        st.booleans(),
    )
    def check(pieces: list[Piece], duplicates: Any, text: bool) -> None:
        if text:
            pieces = [([(f"u{row[0]}", f"i{row[1]}", *row[2:]) for row in rows], others) for rows, others in pieces]
        check_equal(tmp_path_factory.mktemp("log"), pieces, Filters(duplicates=duplicates))
        drawn.update(cases(pieces))

    check()
    for case in (
        "unordered in itself",
        "another column",
        "an event again",
        "a new user",
        "a new item",
        "a new value",
        "late",
    ):
        assert drawn[case] > 2, drawn


def check_equal(folder: Path, pieces: list[Piece], filters: Filters) -> None:
    seen: set[Any] = set()
    for rows, _ in pieces:
        fresh = {row[:3] for row in rows} - seen
        seen |= fresh
        if not fresh and filters.duplicates == "drop":
            with pytest.raises(InputError, match="no new event is left"):
                grow(folder, pieces, filters)
            return
    store = grow(folder, pieces, filters)
    table = Table([str(folder / f"piece_{place}.parquet") for place in range(len(pieces))])
    whole = prepare(table, filters, folder / "whole", schema=SCHEMA)
    assert events(store) == events(whole)
    counts = {name: store.manifest["counts"][name] for name in ("users", "items", "events", "duplicates", "rows_read")}
    assert counts == {name: whole.manifest["counts"][name] for name in counts}
    assert [column.missing for column in store.event_columns.values()] == [
        column.missing for column in whole.event_columns.values()
    ]
    check_reading(store)
    digest, before = store.items_digest, events(store)
    if filters.duplicates == "keep":
        same = arrays_of(prepare(table, filters, folder / "same", schema=SCHEMA, prefix=store))
    compacted = compact(folder / "store")
    assert filters.duplicates == "drop" or arrays_of(compacted) == same
    assert isinstance(compacted.item_ids, np.ndarray)
    assert events(compacted) == before
    assert compacted.items_digest == digest
    assert compacted.manifest["counts"] == store.manifest["counts"]
    assert not list((folder / "store").glob("segment_*"))
    compacted.verify()


def arrays_of(store: EventStore) -> dict[str, bytes]:
    return {name: content for name, content in files_of(store).items() if name.endswith(".npy")}


def check_reading(store: EventStore) -> None:
    """Compare slices, places and masks of the arrays of a store with those of a copy in memory."""
    for array in (store.item_ids, store.timestamps, store.event_columns["score"].values):
        whole = np.asarray(array)
        assert len(whole) == len(array) == store.num_events
        places = np.random.default_rng(0).permutation(len(whole))
        np.testing.assert_array_equal(array[places], whole[places])
        np.testing.assert_array_equal(array[whole > 1], whole[whole > 1])
        for begin in range(len(whole)):
            np.testing.assert_array_equal(array[begin : begin + 3], whole[begin : begin + 3])
    np.testing.assert_array_equal(
        item_counts(store)[1:], np.bincount(store.item_ids, minlength=store.num_items + 1)[1:]
    )


@pytest.fixture
def log(tmp_path: Path) -> tuple[Table, Filters]:
    table = Table(write(tmp_path, "old.parquet", OLD)), Filters()
    prepare(*table, tmp_path / "store", schema=SCHEMA)
    write(tmp_path, "new.parquet", NEW)
    return table


def test_ids_stay_and_late_events_are_merged(tmp_path: Path, log):
    notes: list[str] = []
    store = append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA, progress=notes.append)
    assert store.item_vocabulary.external_ids([1, 2, 3, 4]).tolist() == [1, 2, 3, 9]
    assert np.asarray(store.item_ids).tolist() == [1, 2, 4, 3, 3, 2, 1, 1]
    assert store.event_columns["kind"].vocabulary.external_ids([1, 2, 3]) == ["a", "b", "c"]
    assert any("appended 4 events; 1 were older" in note and "1 repeat" in note for note in notes)
    assert store.manifest["version"] == 4


def test_fit_accepts_the_grown_store_also_by_a_path_that_matches_all_files(tmp_path: Path, log, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("day_1.parquet", OLD), ("new/day_2.parquet", NEW)):
        Path(name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, rows)
    source = Table("day_*.parquet")
    prepare(source, Filters(), "days", schema=SCHEMA)
    Path("new/day_2.parquet").rename("day_2.parquet")
    with pytest.raises(StoreError, match=r"did not exist .* seqrec append --input day_2.parquet"):
        ensure_store(source, Filters(), "days", schema=SCHEMA)
    append(source, Filters(), "days", str(tmp_path / "day_2.parquet"), schema=SCHEMA)
    assert ensure_store(source, Filters(), "days", schema=SCHEMA).num_events == 8


def test_batches_of_a_grown_store_are_those_of_a_compact_one(tmp_path: Path, log):
    append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA)

    def batches() -> list[Any]:
        data = SequenceDataModule(
            log[0], store=str(tmp_path / "store"), schema=SCHEMA, max_length=3, split=LeaveOneOut(), filters=log[1]
        )
        data.split.history_stops = lambda store, stage: np.asarray(store.offsets)[1:]
        batch = next(iter(data.predict_dataloader()))
        return [
            batch.history.item_ids.tolist(),
            batch.history.timestamps.tolist(),
            batch.history.features["score"].tolist(),
        ]

    grown = batches()
    compact(tmp_path / "store")
    assert batches() == grown


def test_readers_with_an_old_handle_see_the_old_history(tmp_path: Path, log):
    old = EventStore.open(tmp_path / "store")
    pickled, before = pickle.dumps(old), events(old)
    new = append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA)
    assert events(old) == before
    assert events(pickle.loads(pickled)) == before
    grown = pickle.dumps(new)
    assert events(pickle.loads(grown)) == events(new)
    compact(tmp_path / "store")
    assert events(old) == before
    with pytest.raises(StoreError, match="compacted or prepared again"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("module", "step"),
    [(GROWING, "prepare_unlocked"), (GROWING, "write_bytes"), (GROWING, "rename"), (FILES, "write_bytes")],
)
@pytest.mark.parametrize("full", [False, True])
def test_a_failure_between_the_steps_leaves_the_store_as_it_was(tmp_path: Path, log, monkeypatch, module, step, full):
    before = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    whole = getattr(module, step)

    def fail(*arguments: Any, **switches: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(StoreError if full else KeyboardInterrupt):
        append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA)
    monkeypatch.setattr(module, step, whole)
    assert {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()} == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new.parquet", "old.parquet", "store"]
    assert append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA).num_events == 8


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 130, 180, 1000])
@pytest.mark.parametrize("command", ["append", "compact"])
def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, log, size: int, command: str):
    store, new = tmp_path / "store", str(tmp_path / "new.parquet")
    if command == "compact":
        append(*log, store, new, schema=SCHEMA)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with (
        largest_file(size),
        pytest.raises(StoreError, match=rf"writing .*{tmp_path}.* failed \(File too large\).* free"),
    ):
        append(*log, store, new, schema=SCHEMA) if command == "append" else compact(store)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    EventStore.open(store).verify()
    assert (append(*log, store, new, schema=SCHEMA) if command == "append" else compact(store)).num_events == 8


@pytest.mark.parametrize("file", ["item_vocabulary.npy", "offsets.npy", "events.kind.vocabulary.offsets.npy"])
def test_a_damaged_file_is_refused_before_its_content_gets_into_the_new_segment(tmp_path: Path, log, file: str):
    content = bytearray((tmp_path / "store" / file).read_bytes())
    content[-1] ^= 1
    (tmp_path / "store" / file).write_bytes(content)
    with pytest.raises(StoreError, match=rf"{file} is damaged: its SHA-256 differs"):
        append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA)


def test_what_a_killed_append_left_is_removed_by_the_next(tmp_path: Path, log):
    (tmp_path / "store" / "segment_0002").mkdir()
    (tmp_path / "store" / "segment_0002" / "item_ids.npy").write_bytes(b"half")
    assert EventStore.open(tmp_path / "store").num_events == 4
    assert append(*log, tmp_path / "store", str(tmp_path / "new.parquet"), schema=SCHEMA).num_events == 8


def test_counts_let_new_users_and_items_in_and_old_ones_stay(tmp_path: Path):
    old = [(1, 1, 1, "a", 1.0), (1, 2, 2, "a", 1.0), (2, 1, 3, "a", 1.0), (2, 2, 4, "a", 1.0)]
    # Item 8 has one new event, item 9 two; user 3 has one event, user 4 two.
    new = [(1, 8, 5, "a", 1.0), (1, 9, 6, "a", 1.0), (3, 1, 7, "a", 1.0), (4, 9, 8, "a", 1.0), (4, 2, 9, "a", 1.0)]
    store = grow(tmp_path, [(old, {}), (new, {})], Filters(min_user_events=2, min_item_events=2))
    assert {user: [row[1] for row in rows] for user, rows in events(store).items()} == {
        1: [1, 2, 9],
        2: [1, 2],
        4: [9, 2],
    }


@pytest.mark.parametrize(
    ("rows", "switches", "message"),
    [
        ([], {}, r"bad\.parquet is empty; expected at least one event"),
        (NEW, {"late": "refuse"}, "late='refuse': 1 events are older than the newest of their user in the store"),
        (NEW, {"duplicates": "refuse"}, r"duplicates='refuse': 1 events repeat .*user_id=1, item_id=3, timestamp=9"),
        (
            [(1, 1, -3, "a", 1.0)],
            {"late": "refuse"},
            r"first one of user 1 at -3, whose newest is 9: correct the clock",
        ),
        (NEW, {"late": "never"}, "late='never' must be one of merge, refuse"),
        ([("x", 1, 12, "a", 1.0)], {}, "user_id has text such as 'x'"),
        ([(1, 1, 12_000_000, "a", 1.0)], {}, "another unit"),
        (OLD[:1], {"duplicates": "drop"}, "no new event is left"),
    ],
)
def test_bad_input_is_refused_and_the_store_stays(tmp_path: Path, log, rows, switches, message):
    file = write(tmp_path, "bad.parquet", rows)
    with pytest.raises(InputError, match=message):
        append(*log, tmp_path / "store", file, schema=SCHEMA, **switches)
    assert EventStore.open(tmp_path / "store").num_events == 4


def test_other_columns_versions_and_settings_are_refused(tmp_path: Path, log):
    pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [12]}).write_parquet(tmp_path / "few.parquet")
    store, new = tmp_path / "store", str(tmp_path / "new.parquet")
    with pytest.raises(InputError, match=r"schema\.events: no column 'kind' in .*few\.parquet"):
        append(*log, store, str(tmp_path / "few.parquet"), schema=SCHEMA)
    with pytest.raises(InputError, match=r"needs the column 'kind', which .*few\.parquet does not have"):
        append(*log, store, [new, str(tmp_path / "few.parquet")], schema=SCHEMA)
    pl.read_parquet(new).with_columns(score=pl.lit("high")).write_parquet(tmp_path / "text.parquet")
    with pytest.raises(InputError, match=r"'score' of .*text\.parquet is String, but numeric needs numbers"):
        append(*log, store, str(tmp_path / "text.parquet"), schema=SCHEMA)
    with pytest.raises(StoreError, match=r"was prepared with schema\.events"):
        append(*log, store, new)
    with pytest.raises(InputError, match=r"old\.parquet is in .* already"):
        append(*log, store, str(tmp_path / "old.parquet"), schema=SCHEMA)
    with pytest.raises(InputError, match="input is empty"):
        append(*log, store, [], schema=SCHEMA)
    with pytest.raises(StoreError, match="no event store"):
        append(*log, tmp_path / "none", new, schema=SCHEMA)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest.pop("manifest_sha256")
    (store / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        append(*log, store, new, schema=SCHEMA)


TABLES = Schema(
    events=SCHEMA.events,
    items={"year": "numeric", "genre": "categorical", "tags": "categories", "text": "vector"},
    users={"age": "numeric", "town": "categorical"},
)


def tables(folder: Path, part: str, ids: range, users: range, *, year: int = 1900) -> None:
    """Write the rows of some items and users; those of ids divisible by 4 and 5 lack values."""
    rows = [
        (
            each,
            None if each % 5 == 0 else year + each,
            f"g{each % 7}",
            [f"t{9 - each % 3}", f"t{each % 9}"],
            [1.0, each],
        )
        for each in ids
        if each % 4
    ]
    columns = ["id", "year", "genre", "tags", "text"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / f"items_{part}.parquet")
    people = [(f"u{each}", 20 + each, None if each % 5 == 0 else f"town {each % 3}") for each in users]
    pl.DataFrame(people, schema=["id", "age", "town"], orient="row").write_parquet(folder / f"users_{part}.parquet")


@pytest.fixture
def featured(tmp_path: Path) -> Table:
    """A log with tables of items and users, the first half of which is a store, `store`; the other is new.parquet."""
    rng = np.random.default_rng(0)
    rows = [(f"u{rng.integers(1, 9)}", int(rng.integers(1, 13)), time, "a", 1.0) for time in range(20)]
    later = [(f"u{rng.integers(1, 12)}", int(rng.integers(1, 25)), time, "b", 1.0) for time in range(20, 50)]
    for name, part in (("old", rows), ("new", later), ("all", rows + later)):
        write(tmp_path, f"{name}.parquet", part)
    tables(tmp_path, "old", range(1, 13), range(1, 9))
    tables(tmp_path, "new", range(13, 25), range(1, 12))
    tables(tmp_path, "all", range(1, 25), range(1, 12))
    log = with_tables(tmp_path, "old")
    prepare(log, Filters(), tmp_path / "store", schema=TABLES)
    return log


def with_tables(folder: Path, part: str) -> Table:
    of = {group: {"path": str(folder / f"{group}_{part}.parquet"), "key": "id"} for group in ("items", "users")}
    return Table(str(folder / f"{part}.parquet"), **of)


def values(store: EventStore, group: str) -> dict[str, dict[Any, Any]]:
    """Each column's values by the log's ids."""
    columns = store.item_columns if group == "items" else store.user_columns
    ids = store.item_vocabulary if group == "items" else store.user_vocabulary
    found: dict[str, dict[Any, Any]] = {}
    for name, column in columns.items():
        rows = np.asarray(column.values).tolist()
        if column.vocabulary is not None:
            texts = [None, *column.vocabulary.external_ids(np.arange(1, column.num_codes))]
            rows = [texts[code] for code in rows]
        if column.offsets is not None:
            rows = [rows[begin:end] for begin, end in zip(column.offsets, column.offsets[1:], strict=False)]
        keys = [None, *ids.external_ids(np.arange(1, len(ids) + 1))]
        found[name] = {key: str(row) for key, row in zip(keys, rows, strict=True)}
    return found


def test_new_items_and_users_get_their_rows(tmp_path: Path, featured: Table):
    old = EventStore.open(tmp_path / "store")
    whole_log = with_tables(tmp_path, "all")
    whole = prepare(whole_log, Filters(), tmp_path / "whole", schema=TABLES)
    before = {group: values(old, group) for group in ("items", "users")}
    paths = {group: str(tmp_path / f"{group}_new.parquet") for group in ("items", "users")}
    store = append(featured, Filters(), tmp_path / "store", str(tmp_path / "new.parquet"), schema=TABLES, **paths)
    assert store.num_items > old.num_items
    for group in ("items", "users"):
        assert values(store, group) == values(whole, group)
        assert values(old, group) == before[group]
    kept = store.item_columns["year"]
    assert (kept.mean, kept.std) == (old.item_columns["year"].mean, old.item_columns["year"].std)
    assert {name: column.missing for name, column in store.item_columns.items()} == {
        name: column.missing for name, column in whole.item_columns.items()
    }
    assert store.item_column_sizes["year"]["sha256"] != old.item_column_sizes["year"]["sha256"]
    same = prepare(whole_log, Filters(), tmp_path / "same", schema=TABLES, prefix=store)
    assert arrays_of(compact(tmp_path / "store")) == arrays_of(same)
    with pytest.raises(InputError, match=r"prefix has \d+ users that the log has not"):
        prepare(featured, Filters(), tmp_path / "none", schema=TABLES, prefix=same)
    with pytest.raises(InputError, match="prefix needs filters that keep every user and item"):
        prepare(featured, Filters(min_user_events=2), tmp_path / "none", schema=TABLES, prefix=same)


def test_the_table_of_the_source_may_have_grown(tmp_path: Path, featured: Table):
    for group in ("items", "users"):
        (tmp_path / f"{group}_all.parquet").rename(tmp_path / f"{group}_old.parquet")
    store = append(featured, Filters(), tmp_path / "store", str(tmp_path / "new.parquet"), schema=TABLES)
    assert ensure_store(featured, Filters(), tmp_path / "store", schema=TABLES).num_items == store.num_items
    assert int((np.asarray(store.item_columns["genre"].values) > 0).sum()) > 9


def test_other_rows_of_known_items_are_refused_or_left_out(tmp_path: Path, featured: Table):
    old, new = EventStore.open(tmp_path / "store"), str(tmp_path / "new.parquet")
    tables(tmp_path, "other", range(1, 25), range(1, 12), year=1950)
    other = {"items": str(tmp_path / "items_other.parquet")}
    with pytest.raises(InputError, match=r"items\.year of \d+ known items is not what .* first of item_id="):
        append(featured, Filters(), tmp_path / "store", new, schema=TABLES, **other)
    with pytest.raises(InputError, match="changed='never' must be one of refuse, keep"):
        append(featured, Filters(), tmp_path / "store", new, schema=TABLES, changed="never")
    store = append(featured, Filters(), tmp_path / "store", new, schema=TABLES, changed="keep", **other)
    count = old.num_items + 1
    np.testing.assert_array_equal(store.item_columns["year"].values[:count], old.item_columns["year"].values)
    plain = Table(str(tmp_path / "old.parquet"))
    prepare(plain, Filters(), tmp_path / "plain", schema=SCHEMA)
    with pytest.raises(InputError, match="the store has no table of items"):
        append(plain, Filters(), tmp_path / "plain", new, schema=SCHEMA, **other)
