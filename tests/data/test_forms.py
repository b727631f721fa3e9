"""Tables in the containers and with the forms of times that people have."""

from __future__ import annotations

import bz2
import json
import lzma
import zipfile
from datetime import datetime, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import Table
from seqrec.data.sources.time_column import DATE_TIME_FORMATS, WORDS
from seqrec.data.splits import GlobalTime
from seqrec.errors import InputError

ROWS = "user_id,item_id,timestamp\n1,2,3\n1,4,5\n"
EXPECTED = [(1, 2, 3), (1, 4, 5)]


def read(path: Path, **arguments: object) -> list[tuple[object, ...]]:
    source = Table(str(path), **arguments)  # it keeps what it unpacked
    return source.scan().collect().rows()


@pytest.mark.parametrize("name", ["log.csv.zip", "log.csv.bz2", "log.csv.xz", "log.zip", "log.jsonl", "log.ndjson"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_packed_tables_and_json_lines_are_read(tmp_path: Path, name: str, in_folder: bool):
    file = tmp_path / name
    lines = "".join(json.dumps({"user_id": u, "item_id": i, "timestamp": t}) + "\n" for u, i, t in EXPECTED)
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("folder/log.csv", ROWS)
            archive.writestr("__MACOSX/._log.csv", "x")
    elif "json" in name or "ndjson" in name:
        file.write_text(lines)
    else:
        file.write_bytes({".bz2": bz2.compress, ".xz": lzma.compress}[file.suffix](ROWS.encode()))
    assert read(tmp_path if in_folder else file) == EXPECTED


def test_what_cannot_be_unpacked_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        for name in ("a.csv", "b.csv"):
            archive.writestr(name, ROWS)
    with pytest.raises(InputError, match=r"two\.csv\.zip has a\.csv, b\.csv; give a zip with one table, or unpack it"):
        read(tmp_path / "two.csv.zip")
    for name in ("bad.csv.zip", "bad.csv.bz2", "bad.csv.xz"):
        (tmp_path / name).write_bytes(b"PK no archive at all")
        with pytest.raises(InputError, match=rf"{name} cannot be unpacked"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"\x89PNG\r\n", "a picture"), (b"SQLite format 3\0", "an SQLite database"), (b"\x80\x04", "a pickle")],
)
def test_what_is_no_table_is_named(tmp_path: Path, start: bytes, kind: str):
    (tmp_path / "log.db").write_bytes(start + bytes(40))
    with pytest.raises(InputError, match=f"this is {kind}, which is not read; save the table as CSV or Parquet"):
        read(tmp_path / "log.db")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2019-10-01 00:00:00 UTC", (2019, 10, 1)),
        ("2018/01/31 09:30:00", (2018, 1, 31, 9, 30)),
        ("20210328T093000Z", (2021, 3, 28, 9, 30)),
        ("Tue Apr 03 18:00:09 +0000 2012", (2012, 4, 3, 18, 0, 9)),
        ("12/13/2010 8:26", (2010, 12, 13, 8, 26)),
        ("13-12-2010 08:26", (2010, 12, 13, 8, 26)),
        ("31.12.2010", (2010, 12, 31)),
        ("2010-12-31", (2010, 12, 31)),
    ],
)
def test_usual_forms_of_times_are_read(tmp_path: Path, text: str, moment: tuple[int, ...]):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,2,{text}\n")
    expected = int(datetime(*moment, tzinfo=timezone.utc).timestamp())
    assert read(tmp_path / "log.csv") == [(1, 2, expected)]


def test_an_order_of_day_and_month_that_no_value_shows_is_refused(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,2,12/1/2010 8:26\n1,3,11/2/2010 9:00\n")
    message = r"can be read in both orders; give time_format='%d/%m/%Y %H:%M' or time_format='%m/%d/%Y %H:%M'"
    with pytest.raises(InputError, match=message):
        read(tmp_path / "log.csv")
    found = read(tmp_path / "log.csv", time_format="%d/%m/%Y %H:%M")
    assert found[0][2] == int(datetime(2010, 1, 12, 8, 26, tzinfo=timezone.utc).timestamp())


DAY, MONTH = "13/04/2020", "04/13/2020"


@pytest.mark.parametrize(
    "files",
    [["03/04/2020", DAY], [DAY, "03/04/2020"], ["03/04/2020\n1,2," * 2000 + DAY]],
    ids=["in a later file", "in an earlier file", "late in a file"],
)
@pytest.mark.parametrize("day_first", [True, False])
def test_the_order_of_day_and_month_is_decided_by_the_whole_log(tmp_path: Path, files: list[str], day_first: bool):
    for number, times in enumerate(files):
        text = times if day_first else times.replace(DAY, MONTH)
        (tmp_path / f"{number}.csv").write_text(f"user_id,item_id,timestamp\n1,2,{text}\n")
    source = Table(str(tmp_path))
    found = set(source.scan().collect()["timestamp"])
    expected = {datetime(2020, 4, 13, tzinfo=timezone.utc)}
    expected.add(datetime(2020, *((4, 3) if day_first else (3, 4)), tzinfo=timezone.utc))
    assert found == {int(moment.timestamp()) for moment in expected}
    assert any(f"read with the {'day' if day_first else 'month'} first, as in" in note for note in source.notes)


@pytest.mark.parametrize("files", [[DAY, MONTH], [f"{DAY}\n1,2,{DAY}\n1,2,{MONTH}"]], ids=["two files", "one file"])
def test_a_log_with_both_orders_of_day_and_month_is_refused(tmp_path: Path, files: list[str]):
    for number, text in enumerate(files):
        (tmp_path / f"{number}.csv").write_text(f"user_id,item_id,timestamp\n1,2,{text}\n")
    with pytest.raises(InputError, match=r"day first in .*0\.csv, line 2, but the month first in .*\.csv, line [24];"):
        read(tmp_path, max_bad_share=0.9)


@pytest.mark.parametrize("text", ["13/01/20", "20-01-13", "1/13/20 8:26", "13-Jan-20"])
def test_years_of_two_digits_are_refused_without_a_form(tmp_path: Path, text: str):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,2,{text}\n")
    with pytest.raises(InputError, match="years of two digits need time_format"):
        read(tmp_path / "log.csv")
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,2,2020-01-13\n1,2,{text}\n")
    with pytest.raises(InputError, match=f"line 3: .* expected a time like 2020-01-13, got '{text}'"):
        read(tmp_path / "log.csv")


def test_a_given_form_takes_years_of_two_digits(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,2,13/01/20\n")
    expected = int(datetime(2020, 1, 13, tzinfo=timezone.utc).timestamp())
    assert read(tmp_path / "log.csv", time_format="%d/%m/%y") == [(1, 2, expected)]


def test_seconds_beside_milliseconds_are_reported(tmp_path: Path):
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n1,2,1600000000\n1,2,1600000060\n")
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\n1,2,1600000000000\n")
    source = Table(str(tmp_path))
    source.scan()
    (note,) = source.notes
    assert f"2 times, first in {tmp_path / 'a.csv'}, look like seconds since 1970, but 1 times" in note
    quiet = Table(str(tmp_path / "a.csv"))
    quiet.scan()
    assert quiet.notes == ()


def test_packed_parts_in_folders_of_partitions_keep_their_columns_and_names(tmp_path: Path):
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        (tmp_path / f"day={day}" / "part.csv.bz2").write_bytes(bz2.compress(f"user_id,item_id\n1,{day}\n".encode()))
    assert read(tmp_path, timestamp="day") == [(1, 1, 1), (1, 2, 2)]
    (tmp_path / "day=2" / "part.csv.bz2").write_bytes(bz2.compress(b"user_id,item_id\n1,\n"))
    with pytest.raises(InputError, match=r"day=2/part\.csv\.bz2: 1 of 1 row .* line 2: item='item_id' expected an id"):
        read(tmp_path, timestamp="day")


@pytest.mark.parametrize("name", ["_temporary/b.csv", ".staging/b.csv", "day=2/_temporary/0/b.csv", "day=2/.b.csv"])
@pytest.mark.parametrize("pattern", ["", "**/*.csv"])
def test_hidden_folders_are_skipped_and_reported(tmp_path: Path, name: str, pattern: str):
    for each in ("day=1/a.csv", name):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).write_text(ROWS)
    source = Table(str(tmp_path / pattern))
    assert len(source.scan().collect()) == 2
    is_unseen = (pattern and "/." in f"/{name}") or (not pattern and not name.startswith("day"))
    assert is_unseen or "skipped 1 hidden file(s): " in source.notes[0]
    assert len(read(tmp_path / name)) == 2, "the user names it"


def test_folders_with_tables_that_are_not_read_are_reported(tmp_path: Path):
    (tmp_path / "2023").mkdir()
    for name in ("a.csv", "2023/b.csv"):
        (tmp_path / name).write_text(ROWS)
    source = Table(str(tmp_path))
    assert source.scan().collect().rows() == EXPECTED
    assert f"skipped the tables in 1 folder(s), first {tmp_path / '2023'}; a glob reads them" in source.notes[0]


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,user_id\n1,2,3,9\n")
    with pytest.raises(InputError, match=r"log\.csv has two columns 'user_id' \(user='user_id'\)"):
        read(tmp_path / "log.csv")


def test_lines_that_end_with_carriage_returns_alone_are_named(tmp_path: Path):
    (tmp_path / "log.csv").write_bytes(ROWS.replace("\n", "\r").encode())
    with pytest.raises(InputError, match=r"log\.csv ends its lines with carriage returns alone"):
        read(tmp_path / "log.csv")


def test_a_given_form_is_read_and_a_wrong_one_refused(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,2,03 April 2012\n")
    expected = int(datetime(2012, 4, 3, tzinfo=timezone.utc).timestamp())
    assert read(tmp_path / "log.csv", time_format="%d %B %Y") == [(1, 2, expected)]
    with pytest.raises(InputError, match="expected a time of the form %Y, got '03 April 2012'"):
        read(tmp_path / "log.csv", time_format="%Y")


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(
    moments=st.lists(st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1)), min_size=1, max_size=5),
    form=st.sampled_from([form.replace("%.f", "") for form in (*DATE_TIME_FORMATS, *WORDS)]),
)
def test_times_of_any_known_form_come_back(moments: list[datetime], form: str, tmp_path_factory):
    file = tmp_path_factory.mktemp("forms") / "log.csv"
    texts = [moment.replace(tzinfo=timezone.utc).strftime(form) for moment in moments]
    file.write_text("user_id,item_id,timestamp\n" + "".join(f'1,2,"{text}"\n' for text in texts))
    expected = [datetime.strptime(text, form).replace(tzinfo=timezone.utc) for text in texts]
    assert [row[2] for row in read(file)] == [int(moment.timestamp()) for moment in expected]


def test_a_part_without_rows_is_no_error(tmp_path: Path):
    frame = pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]})
    frame.write_parquet(tmp_path / "part-0.parquet")
    frame.clear().write_parquet(tmp_path / "part-1.parquet")
    assert read(tmp_path) == [(1, 2, 3)]
    (tmp_path / "part-0.parquet").unlink()
    with pytest.raises(InputError, match=r"part-1\.parquet is empty; expected at least one event"):
        read(tmp_path)


def test_decimals_without_fraction_are_integers(tmp_path: Path):
    ids = pl.Series(["5", "6"]).cast(pl.Decimal(20, 0))
    pl.DataFrame({"user_id": ids, "item_id": [1, 2], "timestamp": [1, 2]}).write_parquet(tmp_path / "log.parquet")
    assert [row[0] for row in read(tmp_path / "log.parquet")] == [5, 6]


def test_a_point_in_time_outside_of_the_log_is_refused(tmp_path: Path):
    rows = "".join(f"{user},{event},{1600000000 + event}.5\n" for user in range(3) for event in range(9))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    store = prepare(Table(str(tmp_path / "log.csv")), Filters(), tmp_path / "store")
    with pytest.raises(InputError, match=r"1,600,000,005 is not between the log's first time, .* is in millionths"):
        GlobalTime(1600000005, 1600000003).history_stops(store, "test")


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_a_split_by_dates_is_that_by_their_times(tmp_path: Path, unit: int):
    start = int(datetime(2020, 9, 1, tzinfo=timezone.utc).timestamp())
    rows = "".join(f"{user},{day},{(start + 86400 * day) * unit}\n" for user in range(3) for day in range(20))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + rows)
    store = prepare(Table(str(tmp_path / "log.csv")), Filters(), tmp_path / "store")
    dates = GlobalTime("2020-09-14", "2020-09-10 12:00")
    numbers = GlobalTime((start + 13 * 86400) * unit, (start + 9 * 86400 + 43200) * unit)
    for stage in ("train", "validate", "test"):
        assert dates.history_stops(store, stage).tolist() == numbers.history_stops(store, stage).tolist()
    assert dates.id == "time2020-09-14-val2020-09-10T12:00-warm1"
    with pytest.raises(InputError, match=r"1999-01-01, which is [\d,]+, is not between the log's first time"):
        GlobalTime("1999-01-01", "1998-01-01").history_stops(store, "test")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (("yesterday", "2020-01-01"), "test_from='yesterday' is no date such as 2020-09-14"),
        (("2020-01-01", 0.8), "give two dates or two numbers"),
        (("2020-01-01", "2020-01-02"), "must lie before"),
    ],
)
def test_points_that_are_no_dates_are_refused(points: tuple[str | float, str | float], message: str):
    with pytest.raises(InputError, match=message):
        GlobalTime(*points)


def test_names_of_columns_may_be_given_with_their_blanks(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id, item_id, timestamp\n1, 2, 3\n")
    assert read(tmp_path / "log.csv", item=" item_id", timestamp=" timestamp") == [(1, 2, 3)]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_folders_of_partitions_are_columns(tmp_path: Path, suffix: str):
    for day, items in (("2024-01-01", [1, 2]), ("2024-01-02", [3])):
        folder = tmp_path / f"dt={day}" / "hour=7"
        folder.mkdir(parents=True)
        frame = pl.DataFrame({"user_id": [1] * len(items), "item_id": items})
        frame.write_parquet(folder / f"p{suffix}") if suffix == ".parquet" else frame.write_csv(folder / f"p{suffix}")
    for path in (tmp_path, tmp_path / "**" / f"*{suffix}"):
        assert len(read(path, timestamp=None)) == 3
        store = prepare(
            Table(str(path), timestamp="dt"), Filters(event_filter="hour = 7"), tmp_path / f"store{len(path.parts)}"
        )
        assert store.item_vocabulary.external_series([1, 2, 3]).to_list() == [1, 2, 3]
        assert store.timestamps is not None
        assert len(set(store.timestamps.tolist())) == 2
    some = Table(str(tmp_path), timestamp=None)
    assert prepare(some, Filters(event_filter="dt >= '2024-01-02'"), tmp_path / "some").num_events == 1


@pytest.mark.parametrize("text", ["1.6E+09", "1.6e9"])
def test_times_with_an_exponent_may_have_lost_digits(tmp_path: Path, text: str):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,2,1600000000\n1,3,{text}\n")
    with pytest.raises(InputError, match=r"line 3: timestamp='timestamp' expected a number without exponent"):
        read(tmp_path / "log.csv")
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,2,{text}\n1,3,{text}\n")
    with pytest.raises(InputError, match="expected a number without exponent"):
        read(tmp_path / "log.csv")


def test_utf_16_is_named(tmp_path: Path):
    (tmp_path / "log.csv").write_bytes(ROWS.encode("utf-16"))
    with pytest.raises(InputError, match=r"log\.csv is UTF-16; save it as UTF-8"):
        read(tmp_path / "log.csv")
