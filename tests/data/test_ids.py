"""Ids as logs write them: blanks, markers of missing values, numbers in several spellings."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Table
from seqrec.data.store import EventStore
from seqrec.errors import InputError, MissingInputError


def stored(folder: Path, files: dict[str, str], **arguments: object) -> EventStore:
    (folder / "log").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "log" / name).write_text(content)
    filters = Filters(**{name: arguments.pop(name) for name in list(arguments) if hasattr(Filters, name)})
    return prepare(Table(str(folder / "log"), **arguments), filters, folder / "store")


def users(store: EventStore) -> list[int | str]:
    return list(store.user_vocabulary.external_series(range(1, store.num_users + 1)).to_list())


HEAD = "user_id,item_id,timestamp\n"


def test_markers_of_missing_values_are_no_ids(tmp_path: Path):
    rows = "NULL,10,1\n5,10,3\n\\N,12,5\n7,NULL,6\n7,10,7\nnan,11,8\n5,11,NA\n"
    message = r"line 2: user='user_id' expected an id, got 'NULL'; line 4: .*got '\\\\N'; line 5: item=.*got 'NULL'"
    with pytest.raises(InputError, match=message):
        stored(tmp_path, {"a.csv": HEAD + rows})
    store = stored(tmp_path, {"a.csv": HEAD + rows}, max_bad_share=0.9)
    assert users(store) == [5, 7]
    assert "left out 5 malformed rows of" in store.summary()


def test_a_marker_that_is_an_id_is_kept_if_it_is_said(tmp_path: Path):
    store = stored(tmp_path, {"a.csv": HEAD + "NA,1,1\nDE,2,2\n"}, missing_values=[])
    assert users(store) == ["DE", "NA"]


def test_further_columns_keep_their_type_beside_markers(tmp_path: Path):
    rows = "user_id,item_id,timestamp,rating\n1,2,3,5\n1,3,4,NULL\n2,2,5,4\n"
    assert stored(tmp_path, {"a.csv": rows}, event_filter="rating >= 5").num_events == 1


@pytest.mark.parametrize("order", [("a.csv", "b.csv"), ("b.csv", "a.csv")])
def test_whole_numbers_are_one_id_in_all_files(tmp_path: Path, order: tuple[str, str]):
    plain, floats = HEAD + "12,10,1\n12,11,2\n13,10,3\n", HEAD + "12.0,12,4\n13.0,12,5\n"
    store = stored(tmp_path, dict(zip(order, (plain, floats), strict=True)))
    assert users(store) == [12, 13]
    assert "user_id: read 2 ids such as 12.0 as whole numbers, first in" in store.summary()
    frame = pl.DataFrame({"user_id": [12.0], "item_id": ["14.0"], "timestamp": [6]})
    frame.write_parquet(tmp_path / "log" / "c.parquet")
    again = prepare(Table(str(tmp_path / "log")), Filters(), tmp_path / "again")
    assert users(again) == [12, 13]
    assert again.num_items == 4


def test_a_later_file_with_text_makes_all_ids_text(tmp_path: Path):
    store = stored(tmp_path, {"a.csv": HEAD + "12,1,1\n", "b.csv": HEAD + "u1,1,1\n"})
    assert users(store) == ["12", "u1"]


def test_one_number_in_two_spellings_beside_text_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"column of users has the ids '12' and '12.0', which are probably the same"):
        stored(tmp_path, {"a.csv": HEAD + "12,1,1\n12.0,1,2\nu1,1,1\n"})


def test_numbers_with_an_exponent_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.csv: line 3: item_id: the id '1.2E\+12' has an exponent, .*digits"):
        stored(tmp_path, {"a.csv": HEAD + "1,7,1\n1,1.2E+12,2\n"})
    assert stored(tmp_path, {"a.csv": HEAD + "1,x,1\n1,1.2E+12,2\n"}).num_items == 2


def test_floats_that_may_have_lost_digits_are_no_ids(tmp_path: Path):
    frame = pl.DataFrame({"user_id": [1.0, 2.0**53], "item_id": [1, 2], "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"whose digits Float64 can hold .*, got '9007199254740992\.0'"):
        prepare(Table(str(tmp_path / "a.parquet")), Filters(), tmp_path / "store")


def test_blanks_around_ids_and_names_are_cut_and_counted(tmp_path: Path):
    rows = "user_id, item_id, timestamp\nu1,a,1\nu1 , b,2\n\u00a0u1,c,3\n"
    store = stored(tmp_path, {"a.csv": rows.replace(", timestamp", ",timestamp")})
    assert users(store) == ["u1"]
    assert store.item_vocabulary.external_ids([1, 2, 3]) == ["a", "b", "c"]
    assert "user_id: cut the blanks around 2 ids, first in" in store.summary()
    assert "item_id: cut the blanks around 1 ids, first in" in store.summary()


def test_numbers_with_blanks_are_numbers(tmp_path: Path):
    store = stored(tmp_path, {"a.csv": "user_id, item_id,timestamp\n1, 2,3\n1, 4,5\n"})
    assert store.item_vocabulary.external_series([1, 2]).to_list() == [2, 4]


def test_a_filter_needs_its_column_in_every_file(tmp_path: Path):
    files = {
        "2024-01.csv": "user_id,item_id,timestamp,event_type\n1,10,1,buy\n1,11,2,view\n",
        "2024-02.csv": "user_id,item_id,timestamp,type\n1,12,4,buy\n",
    }
    message = r"event_filter=.* needs the column 'event_type', which .*2024-02\.csv does not have though other files"
    with pytest.raises(InputError, match=message):
        stored(tmp_path, files, event_filter="event_type = 'buy'")
    store = stored(
        tmp_path,
        {"2024-02.csv": files["2024-02.csv"].replace(",type", ",event_type")},
        event_filter="event_type = 'buy'",
    )
    assert "the event filter dropped 1 of 3 events" in store.summary()


def test_what_filters_drop_is_reported(tmp_path: Path):
    store = stored(tmp_path, {"a.csv": HEAD + "1,1,1\n1,2,2\n2,1,1\n"}, min_user_events=2)
    assert "the filters of users, items and duplicates dropped 1 of 3 events" in store.summary()


def test_hidden_files_are_skipped_and_named(tmp_path: Path):
    files = {"events.csv": HEAD + "1,10,1\n1,11,2\n", ".events-copy.csv": HEAD + "1,10,1\n", "._events.csv": "\x00Mac"}
    store = stored(tmp_path, files)
    assert store.num_events == 2
    assert "skipped 2 hidden file(s): ._events.csv, .events-copy.csv" in store.summary()
    assert len(Table(str(tmp_path / "log" / ".events-copy.csv")).files()) == 1
    (tmp_path / "log" / "events.csv").unlink()
    with pytest.raises(MissingInputError, match=r"has only hidden files, such as \._events\.csv; give the file itself"):
        Table(str(tmp_path / "log")).files()


def test_stores_from_before_the_argument_are_still_those_of_their_logs(tmp_path: Path):
    assert "missing_values" not in Table("log.csv").describe()["arguments"]
    assert Table("log.csv", missing_values=["-"]).describe()["arguments"]["missing_values"] == ["-"]


@pytest.mark.parametrize(("dtype", "first"), [(pl.Float32, 2.0**24), (pl.Float64, 2.0**53)])
def test_a_float_is_an_id_only_where_its_type_has_every_integer(tmp_path: Path, dtype: pl.DataType, first: float):
    ids = pl.Series([first - 1, first], dtype=dtype)
    pl.DataFrame({"user_id": ids, "item_id": [1, 2], "timestamp": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"1 of 2 rows .* row 2: .*whose digits {dtype} can hold .*, got '{first}'"):
        Table(str(tmp_path / "a.parquet")).scan()
    source = Table(str(tmp_path / "a.parquet"), max_bad_share=0.5)
    assert source.scan().collect()["user_id"].to_list() == [int(first - 1)]


def test_an_unsigned_id_that_does_not_fit_says_what_to_do(tmp_path: Path):
    ids = pl.Series([2**63, 1], dtype=pl.UInt64)
    pl.DataFrame({"user_id": ids, "item_id": [1, 2], "timestamp": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"an id below 2\^63 \(write the column as text\), got '9223372036854775808'"):
        Table(str(tmp_path / "a.parquet")).scan()


@pytest.mark.parametrize("word", ["null", "NULL", "NONE", "nan", "NaN", "Nan", "nil", "undefined", "(null)", "<NULL>"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_markers_are_known_in_any_case_and_any_file(tmp_path: Path, word: str, suffix: str):
    frame = pl.DataFrame({"user_id": ["a", word], "item_id": [1, 2], "timestamp": [1, 2]})
    file = tmp_path / f"log.{suffix}"
    frame.write_parquet(file) if suffix == "parquet" else frame.write_csv(file)
    with pytest.raises(InputError, match=f"expected an id, got {word!r}".replace("(", r"\(").replace(")", r"\)")):
        Table(str(file)).scan()
    assert Table(str(file), missing_values=[]).scan().collect()["user_id"].to_list() == ["a", word]


def test_an_id_with_an_accent_is_one_id_in_both_of_its_spellings(tmp_path: Path):
    one, two = "\u00e9t\u00e9", "e\u0301te\u0301"
    store = stored(tmp_path, {"a.csv": HEAD + f"{one},10,1\n{two},11,2\nz,11,3\n"})
    assert users(store) == ["z", one]
    assert "user_id: wrote 1 ids in one form of Unicode (NFC), first in" in store.summary()


@pytest.mark.parametrize(
    ("files", "because"),
    [
        ({"a.csv": "7,1,1\n007,2,2\n"}, r"of '007' \(.*a\.csv\)"),
        ({"a.csv": "7,1,1\n" * 2000 + "x,2,2\n"}, r"of 'x' \(.*a\.csv, line 2002\)"),
        ({"a.csv": "7,1,1\n", "b.csv": "x,1,1\n"}, r"of .*b\.csv$"),
    ],
)
def test_why_whole_numbers_are_text_is_reported(tmp_path: Path, files: dict[str, str], because: str):
    for name, rows in files.items():
        (tmp_path / name).write_text(HEAD + rows)
    source = Table(str(tmp_path))
    source.scan()
    (note,) = source.notes
    assert re.search(f"^user_id: all ids are text, though .* whole numbers, because {because}", note)
