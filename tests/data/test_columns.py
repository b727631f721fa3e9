"""Columns of events, items and users, from a log and its tables to a store."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from slow_preparation import Frame, contents, small
from test_store import edit_manifest, flip

from seqrec import ML1M, EventStore, Filters, InputError, KuaiRand, LastN, LeaveOneOut, Schema, Table, prepare
from seqrec.data.columns import Column, Moments, training_scales
from seqrec.data.prepare import ensure_store
from seqrec.data.prepare.spool import Workspace
from seqrec.data.prepare.tables import write_table_columns
from seqrec.data.sources.source import SideTable
from seqrec.errors import StoreError


def values_of(column: Column) -> list[Any]:
    """The external value of each row; a list of them for `categories`."""
    assert column.vocabulary is not None
    names = [None, *column.vocabulary.external_ids(range(1, column.num_codes))]
    found = [names[code] for code in column.values]
    if column.offsets is None:
        return found
    return [found[start:stop] for start, stop in zip(column.offsets[:-1], column.offsets[1:], strict=True)]


def with_items(frame: pl.DataFrame, key: str = "id", vectors: dict[str, np.ndarray] | None = None) -> Frame:
    """A log on the items a, b, c with a table of them."""
    source = small()
    source.side["items"] = [SideTable("items.csv", key, frame.lazy(), vectors or {})]
    return source


def prepared(source: Frame, folder: Path, lines: list[str] | None = None, **columns: dict[str, str]) -> EventStore:
    progress = None if lines is None else lines.append
    return prepare(source, Filters(), folder / "store", schema=Schema(**columns), progress=progress)


class TestEvents:
    # In the store's order: users 1, 1, 2, 2, 3.
    ORDER = (3, 1, 0, 2, 4)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (["x", "y", None, "x", "é"], ["x", "y", None, "x", "é"]),
            (["x ", "NULL", "", "e\u0301", "é"], ["x", None, None, "é", "é"]),
            ([30, 4, None, 4, -1], [30, 4, None, 4, -1]),
            ([5.0, 4.0, None, 4.0, float("nan")], [5, 4, None, 4, None]),
            ([True, False, True, None, True], [1, 0, 1, None, 1]),
            (pl.Series(list("xyxxz"), dtype=pl.Categorical), list("xyxxz")),
            ([None] * 5, [None] * 5),
        ],
    )
    def test_categories_have_codes_in_ascending_order(self, tmp_path: Path, given, expected):
        column = prepared(small(kind=given), tmp_path, events={"kind": "categorical"}).event_columns["kind"]
        assert values_of(column) == [expected[place] for place in self.ORDER]
        assert column.num_codes == 1 + len({value for value in expected if value is not None})
        assert column.missing == expected.count(None)
        assert column.values.dtype == np.uint8

    def test_numbers_are_float32_and_not_standardised(self, tmp_path: Path):
        given = pl.Series([0.5, None, 0.25, 1.0, 2.0], dtype=pl.Float64)
        column = prepared(small(share=given), tmp_path, events={"share": "numeric"}).event_columns["share"]
        assert str(column.values.tolist()) == "[1.0, nan, 0.5, 0.25, 2.0]"
        assert (column.values.dtype, column.missing, column.mean, column.std) == (np.float32, 1, 0, 1)

    def test_vectors_have_rows(self, tmp_path: Path):
        given = pl.Series([[1, 2], [3, 4], None, [5, 6], [7, 8]])
        column = prepared(small(text=given), tmp_path, events={"text": "vector"}).event_columns["text"]
        assert column.values.tolist() == [[5, 6], [3, 4], [1, 2], [0, 0], [7, 8]]
        assert (column.values.dtype, column.width, column.missing) == (np.float32, 2, 1)

    def test_all_columns_keep_the_order_of_events_in_small_pieces(self, tmp_path: Path, monkeypatch):
        rng = np.random.default_rng(0)
        number = rng.permutation(60)
        source = Frame(
            user_id=rng.integers(0, 9, 60),
            item_id=rng.integers(0, 5, 60),
            timestamp=number,
            share=number / 4,
            kind=[f"k{k}" for k in number % 7],
            text=[[k, -k] for k in number],
        )
        schema = Schema(events={"share": "numeric", "kind": "categorical", "text": "vector"})
        prepare(source, Filters(5, 2), tmp_path / "whole", schema=schema)
        for name, size in (("reading.CHUNK_EVENTS", 6), ("partitions.PARTITION_EVENTS", 7)):
            monkeypatch.setattr(f"seqrec.data.prepare.{name}", size)
        store = prepare(source, Filters(5, 2), tmp_path / "tiny", schema=schema)
        assert contents(tmp_path / "tiny") == contents(tmp_path / "whole")
        assert 10 < store.num_events < 60
        assert store.timestamps is not None
        columns = store.event_columns
        assert (columns["share"].values * 4).tolist() == store.timestamps.tolist()
        assert values_of(columns["kind"]) == [f"k{k}" for k in store.timestamps % 7]
        assert columns["text"].values.tolist() == [[k, -k] for k in store.timestamps]

    @pytest.mark.parametrize(
        ("name", "kind", "message"),
        [
            ("rank", "numeric", r"schema\.events: no column 'rank' in Frame; columns: user_id, item_id, timestamp, "),
            (
                "kind",
                "numeric",
                r"schema\.events: 'kind' of Frame is String, but numeric needs numbers .*; declare it categorical",
            ),
            ("day", "numeric", r"schema\.events: 'day' of Frame is Date, but numeric needs numbers or booleans"),
            ("day", "categorical", r"'day' of Frame is Date, but categorical needs text, integers or booleans"),
            ("share", "categorical", r"'share' has the value 0\.5, but .* whole numbers; declare it numeric"),
            ("far", "numeric", r"schema\.events: 'far' has the number 1e\+300, which float32 cannot hold"),
            ("kind", "vector", r"'kind' of Frame is String, but vector needs lists of numbers"),
            ("text", "vector", r"schema\.events: 'text', row 3, has 1 numbers, expected 2 as in the first"),
            ("holes", "vector", r"schema\.events: 'holes', row 2, has the number nan; every number must be finite"),
            ("empty", "vector", r"schema\.events: 'empty' has no vector"),
        ],
    )
    def test_a_column_that_does_not_suit_its_kind_is_refused(self, tmp_path: Path, name: str, kind: str, message: str):
        source = small(
            kind=list("xyxxy"),
            day=pl.Series([0] * 5, dtype=pl.Date),
            share=[1.0, 2.0, 0.5, 1.0, 1.0],
            far=[1.0, 2.0, 3.0, 1e300, 4.0],
            text=[[1, 2], [3, 4], [5], [6, 7], [8, 9]],
            holes=[[1.0, 2.0], [None, 4.0], [5.0, 6.0], None, None],
            empty=pl.Series([None] * 5, dtype=pl.List(pl.Float32)),
        )
        with pytest.raises(InputError, match=message):
            prepared(source, tmp_path, events={name: kind})
        assert not (tmp_path / "store").exists()

    def test_a_column_that_a_file_lacks_is_refused(self, tmp_path: Path):
        (tmp_path / "a.csv").write_text("user_id,item_id,timestamp,rating\n1,2,3,4\n")
        (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
        with pytest.raises(InputError, match=r"schema\.events needs the column 'rating', which .*b\.csv does not have"):
            prepare(Table(str(tmp_path / "*.csv")), Filters(), tmp_path / "s", schema=Schema({"rating": "numeric"}))

    def test_distinct_values_must_fit_the_memory(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("seqrec.data.prepare.memory.resident_bytes", lambda: (1 << 30) - 10)
        monkeypatch.setattr("seqrec.data.prepare.reading._POLARS_BYTES", -(1 << 40))
        with pytest.raises(InputError, match=r"the distinct values of schema\.events: 'kind' take"):
            prepare(
                small(kind=list("xyzxy")),
                Filters(),
                tmp_path / "store",
                schema=Schema(events={"kind": "categorical"}),
                memory_limit="1GiB",
            )


class TestItems:
    TABLE = pl.DataFrame(
        {
            "id": ["c", "z", "a"],
            "year": [1990, 1, 1980],
            "maker": ["x", "w", None],
            "genres": [["jazz", "pop", "jazz"], ["folk"], []],
            "tags": ["t|s", "u", " s "],
            "text": [[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]],
        }
    )
    KINDS = {"year": "numeric", "maker": "categorical", "genres": "categories", "tags": "categories", "text": "vector"}  # noqa: RUF012

    def test_rows_are_those_of_internal_ids_and_row_0_is_unknown(self, tmp_path: Path):
        columns = prepared(with_items(self.TABLE), tmp_path, items=self.KINDS).item_columns
        # Item b has no row.
        assert str(columns["year"].values.tolist()) == "[nan, 1980.0, nan, 1990.0]"
        assert (columns["year"].mean, columns["year"].std, columns["year"].missing) == (1985, 5, 1)
        assert values_of(columns["maker"]) == [None, None, None, "x"]
        assert values_of(columns["genres"]) == [[], [], [], ["jazz", "pop"]]
        assert values_of(columns["tags"]) == [[], ["s"], [], ["t", "s"]]
        assert columns["text"].values.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]
        assert [column.missing for column in columns.values()] == [1, 2, 2, 1, 1]
        assert list(columns) == list(self.KINDS)

    def test_ids_without_a_row_and_rows_without_an_event_are_counted(self, tmp_path: Path):
        lines: list[str] = []
        store = prepared(with_items(self.TABLE), tmp_path, lines, items={"year": "numeric"})
        told = ["1 of 3 items have no row in items.csv: unknown", "items.csv: left out 1 items that have no event"]
        assert set(told) <= set(lines)
        assert set(told) <= set(store.summary().splitlines())
        assert "items.year: numeric, float32, 1 missing" in store.summary()

    def test_small_batches_give_the_same_bytes(self, tmp_path: Path, monkeypatch):
        for name in ("whole", "tiny"):
            (tmp_path / name).mkdir()
            prepared(with_items(self.TABLE), tmp_path / name, items=self.KINDS)
            monkeypatch.setattr("seqrec.data.prepare.tables._BATCH_NUMBERS", 1)
        assert contents(tmp_path / "tiny/store") == contents(tmp_path / "whole/store")

    def test_ids_must_fit_the_memory(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("seqrec.data.prepare.tables._texts", lambda vocabulary: pytest.fail("read"))
        monkeypatch.setattr(
            "seqrec.data.prepare.stages.write_table_columns",
            lambda *arguments: limited(arguments[-1]) or write_table_columns(*arguments),
        )

        def limited(work: Workspace) -> None:
            monkeypatch.setattr("seqrec.data.prepare.memory.resident_bytes", lambda: work.limit.bytes - 10)

        with pytest.raises(InputError, match=r"ids of items and their rows in items\.csv take"):
            prepared(with_items(self.TABLE), tmp_path, items={"year": "numeric"})

    def test_vectors_of_numpy_are_copied_by_row(self, tmp_path: Path):
        for dtype, kept in ((np.float16, np.float16), (np.float32, np.float32), (np.float64, np.float32)):
            array = np.array([[1, 2], [np.nan, 9], [3, 4]], dtype)
            # The row of an item without events may have any number.
            source = with_items(self.TABLE.drop("text"), vectors={"text": array})
            folder = tmp_path / np.dtype(dtype).name
            folder.mkdir()
            column = prepared(source, folder, items={"text": "vector", "year": "numeric"}).item_columns["text"]
            assert column.values.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]
            assert (column.values.dtype, column.missing) == (kept, 1)

    @pytest.mark.parametrize("text_ids", [False, True])
    def test_ids_are_compared_by_the_rules_of_the_logs_ids(self, tmp_path: Path, text_ids: bool):
        ids = ["7", "12"] if text_ids else [7, 12]
        # One id that is no number makes all ids of the log text.
        source = Frame(user_id=[1, 1, 2], item_id=[*map(str, ids), "x"] if text_ids else [*ids, 3])
        for place, keys in enumerate(([7, 12], ["7 ", "12"], [" 7", "x9"], pl.Series([7, 12], dtype=pl.Float64))):
            source.side["items"] = [SideTable("t", "k", pl.LazyFrame({"k": keys, "year": [1, 2]}))]
            (tmp_path / str(place)).mkdir()
            store = prepared(source, tmp_path / str(place), items={"year": "numeric"})
            found = store.item_columns["year"].values[store.item_vocabulary.lookup(ids)].tolist()
            second = 2 if place < 2 or (place == 3 and not text_ids) else None
            first = None if place == 3 and text_ids else 1
            assert [None if np.isnan(value) else value for value in found] == [first, second]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ({"id": ["c", "a", "c"]}, r"items\.csv: rows 1 and 3 have the same id='c'; keep one of them"),
            ({"id": ["z", "a", "z"]}, r"items\.csv: rows 1 and 3 have the same id='z'"),
            ({"id": ["c", None, "b"]}, r"items\.csv: row 2 has no id, which must name one of the items"),
            ({"year": ["new", "old", "x"]}, r"schema\.items: 'year' of items\.csv is String, but numeric needs"),
            ({"year": [1.0, float("inf"), 2.0]}, r"'year' of items\.csv has the number inf, which float32 cannot hold"),
            ({"text": [[1.0], [2.0], [3.0, 4.0]]}, r"'text' of items\.csv, row 3, has 2 numbers, expected 1"),
            ({"text": [[1.0], [2.0], [float("nan")]]}, r"'text' of items\.csv, row 3, has the number nan"),
            ({"genres": [1, 2, 3]}, r"'genres' of items\.csv is Int64, but categories needs lists of text"),
        ],
    )
    @pytest.mark.parametrize("batch", [1, 1 << 20])
    def test_a_bad_row_is_named(
        self, tmp_path: Path, monkeypatch, rows: dict[str, list[Any]], message: str, batch: int
    ):
        monkeypatch.setattr("seqrec.data.prepare.tables._BATCH_NUMBERS", batch)
        columns = {"id": ["c", "a", "b"], "year": [1, 2, 3], "text": [[1.0], [2.0], [3.0]], "genres": [["x"]] * 3}
        kinds = {"year": "numeric", "text": "vector", "genres": "categories"}
        with pytest.raises(InputError, match=message):
            prepared(with_items(pl.DataFrame({**columns, **rows})), tmp_path, items=kinds)
        assert not (tmp_path / "store").exists()

    def test_vectors_of_numpy_that_do_not_fit_are_refused(self, tmp_path: Path):
        frame, kinds = pl.DataFrame({"id": ["c", "a", "b"]}), {"text": "vector"}
        with pytest.raises(InputError, match=r"'text' of items\.csv has 2 vectors, but the table 3 rows"):
            prepared(with_items(frame, vectors={"text": np.ones((2, 4))}), tmp_path, items=kinds)
        for bad in (np.nan, 1e300):
            array = np.array([[1.0], [2.0], [bad]])
            with pytest.raises(InputError, match=r"'text' of items\.csv, row 3, has the number (nan|inf); every"):
                prepared(with_items(frame, vectors={"text": array}), tmp_path, items=kinds)
        with pytest.raises(InputError, match=r"is an array of numpy, so its kind is vector, not numeric"):
            prepared(with_items(frame, vectors={"text": np.ones((3, 4))}), tmp_path, items={"text": "numeric"})

    def test_a_column_is_in_one_table(self, tmp_path: Path):
        source = with_items(self.TABLE)
        more = pl.LazyFrame({"id": ["a", "b"], "price": [1, 2]})
        source.side["items"].append(SideTable("prices.csv", "id", more))
        columns = prepared(source, tmp_path, items={"price": "numeric", "year": "numeric"}).item_columns
        assert str([column.values.tolist() for column in columns.values()]) == (
            "[[nan, 1.0, 2.0, nan], [nan, 1980.0, nan, 1990.0]]"
        )
        bad = tmp_path / "bad"
        bad.mkdir()
        with pytest.raises(InputError, match=r"no column 'yars' in items\.csv and prices\.csv; .*did you mean year\?"):
            prepared(source, bad, items={"yars": "numeric"})
        source.side["items"].append(SideTable("again.csv", "id", more))
        with pytest.raises(InputError, match=r"the column 'price' is in prices\.csv and again\.csv; rename one"):
            prepared(source, bad, items={"price": "numeric"})

    def test_a_source_without_a_table_is_named(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"the source Frame has no table of users; .* users: \{path: users\.csv, "):
            prepared(small(), tmp_path, users={"age": "numeric"})


def write_table(folder: Path) -> Table:
    """A log of CSV with tables of items, with vectors, and of users."""
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n1,7,1\n1,8,2\n2,7,3\n")
    (folder / "items.csv").write_text('id;genres;year\n8;"a|b";1990\n\n7;NULL;1980\n')
    np.save(folder / "text.npy", np.array([[8, 8], [7, 7]], np.float16))
    pl.DataFrame({"who": [2, 1], "age": ["old", "new"]}).write_parquet(folder / "users.parquet")
    items = {
        "path": str(folder / "items.csv"),
        "key": "id",
        "separator": ";",
        "vectors": {"text": f"{folder}/text.npy"},
    }
    return Table(f"{folder}/log.csv", items=items, users={"path": f"{folder}/users.parquet", "key": "who"})


class TestTableFiles:
    SCHEMA = Schema(items={"genres": "categories", "year": "numeric", "text": "vector"}, users={"age": "categorical"})

    def test_are_read_by_path_and_key(self, tmp_path: Path):
        source = write_table(tmp_path)
        store = prepare(source, Filters(), tmp_path / "store", schema=self.SCHEMA)
        assert values_of(store.item_columns["genres"]) == [[], [], ["a", "b"]]
        assert store.item_columns["year"].values.tolist()[1:] == [1980, 1990]
        assert store.item_columns["text"].values.tolist() == [[0, 0], [7, 7], [8, 8]]
        assert values_of(store.user_columns["age"]) == [None, "new", "old"]
        names = [Path(entry["name"]).name for entry in store.manifest["source_files"]]
        assert names == ["log.csv", "items.csv", "text.npy", "users.parquet"]
        assert ensure_store(source, Filters(), tmp_path / "store", schema=self.SCHEMA).num_events == 3

    def test_that_changed_are_noticed_and_those_that_are_gone_are_not_needed(self, tmp_path: Path):
        source = write_table(tmp_path)
        prepare(source, Filters(), tmp_path / "store", schema=self.SCHEMA)
        with (tmp_path / "items.csv").open("a") as stream:
            stream.write("9;c;2000\n")
        with pytest.raises(StoreError, match=r"items\.csv has 50 bytes; it had 41 bytes when"):
            ensure_store(source, Filters(), tmp_path / "store", schema=self.SCHEMA)
        (tmp_path / "items.csv").unlink()
        assert ensure_store(source, Filters(), tmp_path / "store", schema=self.SCHEMA).num_events == 3

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            (
                {"path": "items.csv"},
                r"items=\{'path': 'items\.csv'\} must have a path and a key, as in \{path: items\.csv",
            ),
            (
                {"path": "a", "key": "b", "keys": 1},
                r"items has 'keys'; its entries are path, key, .*did you mean key\?",
            ),
            (
                {"path": "a", "key": "b", "vectors": "c"},
                r"items\.vectors='c' must be files by name, as in \{text: text",
            ),
        ],
    )
    def test_with_bad_arguments_are_refused(self, items, message: str):
        with pytest.raises(InputError, match=message):
            Table("log.csv", items=items)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"path": "no.csv"}, r"items\.path='no\.csv': no such file in .*, and no file matches it"),
            ({"key": "item"}, r"items\.csv has no column 'item'; it has id, genres, year"),
            ({"vectors": {"text": "items.csv"}}, r"vectors: .*items\.csv, of 'text', cannot be read as an array"),
            (
                {"vectors": {"text": "flat.npy"}},
                r"flat\.npy, of 'text', has int64 \(3,\); give a row of floats for each",
            ),
            ({"separator": ","}, r"items\.csv has no column 'id'; it has id;genres;year"),
        ],
    )
    def test_that_cannot_be_read_are_refused(self, tmp_path: Path, monkeypatch, change, message: str):
        monkeypatch.chdir(tmp_path)
        np.save("flat.npy", np.arange(3))
        source = write_table(tmp_path)
        changed = Table(source.path, items={**(source.items or {}), **change})
        with pytest.raises(InputError, match=message):
            prepare(changed, Filters(), "store", schema=Schema(items={"year": "numeric"}))

    def test_a_row_with_too_many_fields_is_named_by_its_line(self, tmp_path: Path):
        source = write_table(tmp_path)
        with (tmp_path / "items.csv").open("a") as stream:
            stream.write("9;c;2000;more\n")
        with pytest.raises(InputError, match=r"items\.csv line 5 has more fields than the 3 columns"):
            prepare(source, Filters(), tmp_path / "store", schema=self.SCHEMA)


class TestStore:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        source = with_items(TestItems.TABLE)
        source.columns["kind"] = list("xyxxy")
        return prepared(source, tmp_path, events={"kind": "categorical"}, items=TestItems.KINDS).directory

    def test_columns_are_mapped_and_pickled_by_place(self, directory: Path):
        store = EventStore.open(directory)
        assert isinstance(store.event_columns["kind"].values, np.memmap)
        pickled = pickle.dumps(store)
        assert len(pickled) < 500
        assert pickle.loads(pickled).event_columns["kind"].values.tolist() == [1, 2, 1, 1, 2]

    @pytest.mark.parametrize("large", [False, True])
    def test_a_damaged_column_is_found(self, directory: Path, monkeypatch, large: bool):
        if large:
            monkeypatch.setattr("seqrec.data.store.SMALL_STORE_BYTES", 0)
        files = [file for file in directory.iterdir() if file.name.startswith(("events.", "items."))]
        assert len(files) == 16
        for file in files:
            flip(file, -1)
            with pytest.raises(StoreError, match=rf"{file.name} is damaged: its SHA-256 differs"):
                EventStore.open(directory).finish_check()
            flip(file, -1)
        EventStore.open(directory).finish_check()

    def test_a_column_that_is_cut_while_it_is_in_use_is_named(self, directory: Path):
        store = EventStore.open(directory)
        with (directory / "items.text.npy").open("r+b") as stream:
            stream.truncate(3)
        with pytest.raises(StoreError, match=r"items\.text\.npy was cut to 3 of"):
            store.check_in_use()

    def test_a_store_of_version_2_has_no_columns(self, tmp_path: Path):
        prepare(small(), Filters(), tmp_path / "store")
        edit_manifest(tmp_path / "store", version=2, segments=None, columns=None, features=[])
        store = ensure_store(small(), Filters(), tmp_path / "store")
        assert (store.num_events, store.event_columns, store.item_columns, store.user_columns) == (5, {}, {}, {})
        with pytest.raises(
            StoreError, match=r"with schema\.events=\{\}, now it is \{'kind': 'numeric'\}; choose another"
        ):
            ensure_store(small(), Filters(), tmp_path / "store", schema=Schema(events={"kind": "numeric"}))

    def test_several_segments_in_a_store_that_has_not_grown_are_damage(self, directory: Path):
        edit_manifest(directory, segments=[{"users": 1, "events": 2}, {"users": 2, "events": 3}])
        with pytest.raises(StoreError, match=r"manifest\.json has 2 segments, but version 3; prepare it again"):
            EventStore.open(directory)


class TestScales:
    def test_moments_are_those_of_all_pieces_together(self):
        values = np.random.default_rng(0).normal(1e4, 3, 1000).astype(np.float32)
        values[::7] = np.nan
        moments = Moments()
        for piece in np.split(values, [1, 1, 400, 990]):
            moments.add(piece)
        known = values[~np.isnan(values)].astype(np.float64)
        np.testing.assert_allclose([moments.mean, moments.std], [known.mean(), known.std()], rtol=1e-12)

    @pytest.mark.parametrize("values", [[], [np.nan], [3.1, 3.1, 3.1]])
    def test_equal_numbers_have_the_deviation_1(self, values: list[float]):
        moments = Moments()
        moments.add(np.array(values, np.float32))
        assert moments.std == 1

    @pytest.mark.parametrize("split", [LeaveOneOut(), LastN(2)])
    def test_only_training_events_count(self, tmp_path: Path, monkeypatch, split):
        monkeypatch.setattr("seqrec.data.columns.SCALED_EVENTS", 5)
        rng = np.random.default_rng(0)
        users = np.repeat(np.arange(6), [5, 5, 11, 9, 5, 5])
        share = rng.normal(size=40)
        share[3] = np.nan
        store = prepared(
            Frame(user_id=users, item_id=np.arange(40), share=share), tmp_path, events={"share": "numeric"}
        )
        stops = split.history_stops(store, "train")
        starts = np.asarray(store.offsets)[:-1]
        training = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
        known = share.astype(np.float32).astype(np.float64)[training]
        known = known[~np.isnan(known)]
        assert 10 < len(known) < 35
        found = training_scales(store.event_columns, store.offsets, lambda: stops)
        np.testing.assert_allclose(found["share"], (known.mean(), known.std()), rtol=1e-12)


class TestPublicLogs:
    def test_ml_1m_has_films_and_users(self, tmp_path: Path, real_data):
        schema = Schema(
            events={"rating": "numeric"},
            items={"genres": "categories", "year": "numeric", "title": "categorical"},
            users={"gender": "categorical", "age": "categorical", "occupation": "categorical", "zip": "categorical"},
        )
        archive = str(real_data("ml-1m/ml-1m.zip"))
        store = prepare(ML1M(archive), Filters(), tmp_path / "store", schema=schema)
        # The README of the archive: 18 genres, 7 age groups, 21 occupations.
        genres, year, title = store.item_columns.values()
        # Titles of films without an event have codes, too.
        assert (genres.num_codes, year.missing, title.num_codes) == (19, 0, 3884)
        toy_story = int(store.item_vocabulary.lookup([1])[0])
        assert values_of(genres)[toy_story] == ["Animation", "Children's", "Comedy"]
        assert (year.values[toy_story], values_of(title)[toy_story]) == (1995, "Toy Story (1995)")
        assert [column.num_codes - 1 for column in store.user_columns.values()][:3] == [2, 7, 21]
        assert [values_of(column)[1] for column in store.user_columns.values()] == ["F", 1, 10, "48067"]
        assert store.event_columns["rating"].values.mean(dtype=np.float64) == pytest.approx(3.581564, abs=1e-6)
        assert store.manifest["notes"] == [f"{archive}/ml-1m/movies.dat: left out 177 items that have no event"]

    def test_ml_1m_of_a_folder_has_its_tables_next_to_the_ratings(self, tmp_path: Path):
        (tmp_path / "ratings.dat").write_text("1::7::5::10\n1::8::3::20\n")
        (tmp_path / "movies.dat").write_bytes("7::Amélie (2001)::Comedy|Romance\n8::Tron::Sci-Fi\n".encode("latin-1"))
        source, schema = ML1M(str(tmp_path)), Schema(items={"year": "numeric", "title": "categorical"})
        store = prepare(source, Filters(), tmp_path / "store", schema=schema)
        assert str(store.item_columns["year"].values.tolist()) == "[nan, 2001.0, nan]"
        assert values_of(store.item_columns["title"]) == [None, "Amélie (2001)", "Tron"]
        with pytest.raises(InputError, match=r"users\.dat does not exist; it has the columns of schema\.users"):
            prepare(source, Filters(), tmp_path / "other", schema=Schema(users={"age": "categorical"}))
        (tmp_path / "users.dat").write_text("1::F::25::3\n")
        with pytest.raises(
            InputError, match=r"users\.dat line 1: expected user_id::gender::age::occupation::zip, got '1:"
        ):
            prepare(source, Filters(), tmp_path / "other", schema=Schema(users={"age": "categorical"}))

    def test_columns_of_the_events_of_kuairand(self, tmp_path: Path, real_data):
        source = KuaiRand(str(real_data("kuairand-excerpt/log_like_hate_kcore15.tsv.gz")))
        kinds = {
            "play_time_ms": "numeric",
            "duration_ms": "numeric",
            "is_click": "categorical",
            "hourmin": "categorical",
        }
        store = prepare(source, Filters(), tmp_path / "store", schema=Schema(events=kinds))
        frame = source.scan().collect().sort("user_id", "timestamp", maintain_order=True)
        for name, column in store.event_columns.items():
            found = values_of(column) if column.vocabulary else column.values.tolist()
            assert found == frame[name].cast(pl.Float32 if name.endswith("_ms") else pl.Int64).to_list()
        assert store.event_columns["is_click"].num_codes == 3

    def test_kuairand_has_videos_and_users_in_the_folder_of_the_log(self, tmp_path: Path):
        header = "user_id,video_id,time_ms,is_click,tab"
        for part in ("4_08_to_4_21_1k", "4_22_to_5_08_1k"):
            (tmp_path / f"log_standard_{part}.csv").write_text(f"{header}\n7,3,100,1,0\n7,4,200,0,1\n")
        (tmp_path / "video_features_basic_1k.csv").write_text('video_id,tag,music_id\n3,"12,65",9\n4,,8\n5,1,7\n')
        source = KuaiRand(str(tmp_path), "1K")
        schema = Schema(items={"tag": "categories", "music_id": "categorical"})
        store = prepare(source, Filters(), tmp_path / "store", schema=schema)
        assert values_of(store.item_columns["tag"]) == [[], ["12", "65"], []]
        assert values_of(store.item_columns["music_id"]) == [None, 9, 8]
        with pytest.raises(
            InputError, match=r"schema\.items: no column 'show_cnt' in .*basic_1k\.csv; columns: tag, mus"
        ):
            prepare(source, Filters(), tmp_path / "other", schema=Schema(items={"show_cnt": "numeric"}))
        (tmp_path / "video_features_statistic_1k.csv").write_text("video_id,show_cnt\n4,30\n")
        counts = Schema(items={"show_cnt": "numeric", "music_id": "categorical"})
        assert prepare(source, Filters(), tmp_path / "b", schema=counts).item_columns["show_cnt"].values[2] == 30
        with pytest.raises(InputError, match=r"the source kuairand has no table of users"):
            prepare(source, Filters(), tmp_path / "other", schema=Schema(users={"user_active_degree": "categorical"}))
