"""Ids as logs write them: blanks, markers of missing values, numbers in several spellings."""

from __future__ import annotations

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
    with pytest.raises(InputError, match=r"expected an id, got '9007199254740992\.0'"):
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


def test_ids_above_int64_are_to_be_cast_to_text(tmp_path: Path):
    ids = pl.Series("user_id", [2**63, 5], dtype=pl.UInt64)
    pl.DataFrame({"user_id": ids, "item_id": [1, 2], "timestamp": [1, 2]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"user='user_id' .*'9223372036854775808', which is above .*cast .* to text"):
        prepare(Table(str(tmp_path / "log.parquet")), Filters(), tmp_path / "store")


@pytest.mark.parametrize("text", ["user_id\n1\n2\n", "5\n6\n"])
def test_one_column_has_no_separator(tmp_path: Path, text: str):
    (tmp_path / "users.csv").write_text(text)
    with pytest.raises(InputError, match=r"has no column '\w+'") as refused:
        Table(str(tmp_path / "users.csv")).scan()
    assert "separator" not in str(refused.value)
