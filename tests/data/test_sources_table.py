from __future__ import annotations

import gzip
import subprocess
import sys
from datetime import date, datetime, timezone
from pathlib import Path

import polars as pl
import pytest

from seqrec.data.progress import Progress
from seqrec.data.sources import Table
from seqrec.errors import InputError, MissingInputError

EVENTS = {"user_id": [2, 1, 2], "item_id": ["b", "a", "a"], "timestamp": [30, 10, 20]}


def csv(path: Path, text: str) -> str:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def parquet(path: Path, **columns: object) -> str:
    pl.DataFrame({**EVENTS, **columns}).write_parquet(path)
    return str(path)


def times(path: str, **arguments: object) -> list[int]:
    frame = Table(path, **arguments).scan().collect()
    assert frame.schema["timestamp"] == pl.Int64
    return frame["timestamp"].to_list()


@pytest.mark.parametrize(
    ("name", "separator", "arguments"),
    [
        ("log.csv", ",", {}),
        ("log.CSV.gz", ",", {}),
        ("log.tsv", "\t", {}),
        ("log.dat", "|", {"separator": "|"}),
        ("log.csv", ";", {"separator": ";"}),
    ],
)
def test_text_tables_read_as_they_are(tmp_path: Path, name: str, separator: str, arguments):
    lines = ["user_id,item_id,timestamp", "2,b,30", "1,a,10", "2,a,20"]
    path = csv(tmp_path / name, "\n".join(lines).replace(",", separator))
    frame = Table(path, **arguments).scan().collect()
    assert frame.to_dict(as_series=False) == EVENTS
    assert frame.dtypes == [pl.Int64, pl.String, pl.Int64]


def test_parquet_reads_as_it_is(tmp_path: Path):
    assert Table(parquet(tmp_path / "log.parquet")).scan().collect().to_dict(as_series=False) == EVENTS


def test_parquet_ids_of_any_integer_like_type_are_integers(tmp_path: Path):
    path = parquet(
        tmp_path / "log.parquet",
        user_id=pl.Series([2.0, 1.0, 2.0]),
        item_id=pl.Series(["5", "6", "5"], dtype=pl.Categorical),
    )
    frame = Table(path).scan().collect()
    assert frame.dtypes == [pl.Int64, pl.Int64, pl.Int64]
    assert frame["user_id"].to_list() == [2, 1, 2]


def test_columns_have_the_names_given(tmp_path: Path):
    path = csv(tmp_path / "log.csv", "when,video,uid,user_id\n5,7,8,9\n")
    frame = Table(path, user="uid", item="video", timestamp="when").scan().collect()
    assert frame.rows(named=True) == [{"user_id": 8, "item_id": 7, "timestamp": 5}]


def test_without_times_there_is_no_timestamp(tmp_path: Path):
    path = csv(tmp_path / "log.csv", "user_id,item_id\n1,2\n")
    assert Table(path, timestamp=None).scan().collect().columns == ["user_id", "item_id"]


def test_features_are_typed_and_chosen(tmp_path: Path):
    text = "user_id,item_id,timestamp,rating,like,genre\n1,2,3,4.5,True,x\n1,2,4,,false,\n"
    path = csv(tmp_path / "log.csv", text)
    frame = Table(path).scan().collect()
    assert frame.columns[3:] == ["rating", "like", "genre"]
    assert frame.dtypes[3:] == [pl.Float64, pl.Boolean, pl.String]
    assert frame.rows()[0][3:] == (4.5, True, "x")
    assert frame.rows()[1][3:] == (None, False, None)
    assert Table(path, features=["like"]).scan().collect().columns[3:] == ["like"]


@pytest.mark.parametrize(
    ("early", "late", "named"),
    [("5", "high", "high"), ("5", "4.5", "4.5"), ("5.5", "high", "high"), ("true", "maybe", "maybe")],
)
def test_a_feature_that_changes_its_type_late_is_refused_where_it_is_read(tmp_path: Path, early, late, named):
    rows = f"1,2,3,{early}\n" * 10_000 + f"1,2,3,{late}\n"
    frame = Table(csv(tmp_path / "log.csv", "user_id,item_id,timestamp,rating\n" + rows)).scan()
    assert len(frame.select("item_id").collect()) == 10_001
    with pytest.raises(pl.exceptions.InvalidOperationError, match=rf'"{named}"'):
        frame.collect()


class TestFiles:
    def test_folder_and_glob_are_read_in_the_order_of_names(self, tmp_path: Path):
        for name, item in (("b.csv", 2), ("a.csv.gz", 1), ("c.tsv", 3)):
            separator = "\t" if "tsv" in name else ","
            csv(tmp_path / name, f"user_id,item_id,timestamp\n1,{item},5\n".replace(",", separator))
        (tmp_path / "README.md").write_text("no log")
        assert [file.name for file in Table(str(tmp_path)).files()] == ["a.csv.gz", "b.csv", "c.tsv"]
        assert Table(str(tmp_path)).scan().collect()["item_id"].to_list() == [1, 2, 3]
        assert Table(str(tmp_path / "*.csv*")).scan().collect()["item_id"].to_list() == [1, 2]

    def test_ids_are_text_everywhere_if_they_are_in_one_file(self, tmp_path: Path):
        csv(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,7,5\n")
        csv(tmp_path / "b.csv", "user_id,item_id,timestamp\n2,x,6\n")
        frame = Table(str(tmp_path)).scan().collect()
        assert frame["item_id"].to_list() == ["7", "x"]
        assert frame["user_id"].to_list() == [1, 2]

    def test_a_fraction_in_one_file_makes_all_times_millionths(self, tmp_path: Path):
        csv(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,7,5\n")
        csv(tmp_path / "b.csv", "user_id,item_id,timestamp\n1,7,6.5\n")
        assert times(str(tmp_path)) == [5_000_000, 6_500_000]

    def test_dates_and_numbers_do_not_mix(self, tmp_path: Path):
        csv(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,7,5\n")
        csv(tmp_path / "b.csv", "user_id,item_id,timestamp\n1,7,2020-01-01\n")
        with pytest.raises(InputError, match=r"timestamp='timestamp': .* dates in some files, numbers in others"):
            Table(str(tmp_path)).scan()

    def test_what_is_not_there_is_refused(self, tmp_path: Path):
        with pytest.raises(MissingInputError, match=r"no such file or folder, and no file matches it"):
            Table(str(tmp_path / "part-*.csv")).scan()
        with pytest.raises(MissingInputError, match=r"no \.csv, \.tsv, \.parquet, \.jsonl, \.ndjson file in"):
            Table(str(tmp_path)).scan()


class TestTimes:
    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            (["1649581149287", "5"], [1649581149287, 5]),
            (["1649581149287000123", "-5"], [1649581149287000123, -5]),
            (["1.0", "2"], [1, 2]),
            (["1", "2.5"], [1_000_000, 2_500_000]),
            (["1e3", "7"], [1000, 7]),
            (["2022-04-10 08:59:09", "1970-01-01 00:00:00"], [1649581149, 0]),
            (["2022-04-10T08:59:09", "2022-04-10T08:59:09.25"], [1649581149000000, 1649581149250000]),
            (["2009-05-04T23:08:57Z", "2009-05-04T23:08:57+02:00"], [1241478537, 1241471337]),
            (["2022-04-10", "1970-01-02"], [1649548800, 86400]),
            (["2026-08-25T07:28", "1970-01-01T00:01"], [1787642880, 60]),
            (["2026-08-25 07:28", "1970-01-01 00:01"], [1787642880, 60]),
            (["2026-08-25T07:28Z", "2026-08-25T07:28+02:00"], [1787642880, 1787635680]),
            # Forms that are mixed, whichever most have.
            (
                ["1970-01-02", "1970-01-02T00:00", "1970-01-02 00:00:01", "1970-01-02"],
                [86400, 86400, 86401, 86400],
            ),
            (["1970-01-01T00:01", "1970-01-01T00:00:30", "1970-01-02"], [60, 30, 86400]),
            (["1970-01-01 00:01", "1970-01-01 00:00:00.5"], [60_000_000, 500_000]),
            (["1970-01-01 00:01+00:00", "1970-01-01T00:00:30Z"], [60, 30]),
            # As floats these would be off by some, or wrap around as millionths.
            (["1649581149287.0", "1649581149287000123"], [1649581149287, 1649581149287000123]),
            (["9223372036854775807", "1.0"], [9223372036854775807, 1]),
            (["1649581149287.5", "1"], [1649581149287500000, 1_000_000]),
        ],
    )
    def test_text_in_every_form(self, tmp_path: Path, texts: list[str], expected: list[int]):
        rows = "".join(f"1,2,{text}\n" for text in texts)
        assert times(csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + rows)) == expected

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([3.0, 2.0, 1.0], [3, 2, 1]),
            ([3.0, 2.5, 1.0], [3_000_000, 2_500_000, 1_000_000]),
            ([1649581149287.0, 1e16, -1.0], [1649581149287, 10_000_000_000_000_000, -1]),
            ([date(1970, 1, 2)] * 3, [86400] * 3),
            ([datetime(2022, 4, 10, 8, 59, 9)] * 3, [1649581149] * 3),
            ([datetime(1970, 1, 1, 0, 0, 1, 500, tzinfo=timezone.utc)] * 3, [1_000_500] * 3),
            (["1970-01-01 00:00:07"] * 3, [7] * 3),
        ],
    )
    def test_parquet_columns_of_every_type(self, tmp_path: Path, values: list[object], expected: list[int]):
        assert times(parquet(tmp_path / "log.parquet", timestamp=values)) == expected

    def test_what_is_no_time_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match="timestamp='timestamp' starts with 'noon'; expected integers"):
            Table(csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,2,noon\n")).scan()
        with pytest.raises(InputError, match="timestamp='timestamp' is Boolean; expected integers"):
            Table(parquet(tmp_path / "log.parquet", timestamp=[True] * 3)).scan()


class TestBadInput:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("1,2,3\n\n1,,4\n", r"line 4: item='item_id' expected an id, got nothing"),
            ('1,2,3\n"",5,4\n', r"line 3: user='user_id' expected an id, got nothing"),
            ("1,2,3\n1,2,x\n", r"line 3: timestamp='timestamp' expected a number, got 'x'"),
            ("1,2,3\n1,2\n", r"line 3: timestamp='timestamp' expected a number, got nothing"),
            ('"1\n1",2,3\n1,2,x\n', r"line 4: timestamp='timestamp' expected a number, got 'x'"),
            ("1,2,2020-01-01\n1,2,today\n", r"line 3: .* expected a time like 2020-01-01, got 'today'"),
            (
                "1,2,2026-08-25T07:28\n1,2,2026-08-25T7pm\n",
                r"line 3: .* expected a time like 2026-08-25T07:28, got '2026-08-25T7pm'",
            ),
            (
                "1,2,2026-08-25T07:28\n1,2,2026-08-25\n1,2,2026-02-30\n",
                r"line 4: .* expected a time like 2026-08-25T07:28, got '2026-02-30'",
            ),
            # Whose clock times without a zone are by is not known.
            (
                "1,2,2026-08-25T07:28\n1,2,2026-08-25T07:28Z\n",
                r"line 3: .* expected a time like 2026-08-25T07:28, got '2026-08-25T07:28Z'",
            ),
            ("1,2,\n", r"line 2: timestamp='timestamp' expected a number, got nothing"),
            ("1,2,3\n1,2,3,4\n", r"line 3: expected 3 fields, got 4"),
            ("1,2,3\n1,2,3.5\n1,2,x\n", r"line 4: timestamp='timestamp' expected a number, got 'x'"),
            ("1,2,nan\n", r"line 2: timestamp='timestamp' expected a number, got 'nan'"),
            ("1,2,3\n1,2,inf\n", r"line 3: timestamp='timestamp' expected a number, got 'inf'"),
            (
                "1,2,3\n1,2,9223372036854775808\n",
                r"line 3: .* expected a number nearer to 0 than 2\^63, got '9.*8'",
            ),
            (
                "1,2,-9223372036854775809\n",
                r"line 2: .* expected a number nearer to 0 than 2\^63, got '-9.*9'",
            ),
            (
                "1,2,3.5\n1,2,9300000000000\n",
                r"line 3: .* nearer to 0 than 9,223,372,036,853, as some times have fractions, got '9300000000000'",
            ),
            ("1,2,3\n1,2,3,,4\n", r"line 3: expected 3 fields, got 5"),
            ('1,2,3\n1,2,3,"4,\n5"\n', r"line 3: expected 3 fields, got 4"),
        ],
    )
    @pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
    def test_a_bad_row_is_named(self, tmp_path: Path, rows: str, message: str, name: str):
        path = csv(tmp_path / name, "user_id,item_id,timestamp\n" + rows)
        with pytest.raises(InputError, match=rf"{name}: 1 of \d rows? \(.* %\) is malformed: {message}; max_bad"):
            Table(path).scan()

    def test_a_separator_at_the_end_of_rows_does_no_harm(self, tmp_path: Path):
        assert times(csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,2,3,\n1,2,4\n")) == [3, 4]

    def test_lines_before_the_names_may_be_blank(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", "\n\r\nuser_id,item_id,timestamp\n1,2,3\n1,2,x\n")
        with pytest.raises(InputError, match=r"line 5: timestamp='timestamp' expected a number, got 'x'"):
            Table(path).scan()
        assert times(path, max_bad_share=0.5) == [3]

    def test_names_may_span_lines(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", 'user_id,item_id,"time\nstamp"\n1,2,3\n1,2,x\n')
        with pytest.raises(InputError, match=r"line 4: timestamp='time\\nstamp' expected a number, got 'x'"):
            Table(path, timestamp="time\nstamp").scan()

    @pytest.mark.parametrize(
        ("rows", "line"),
        [
            ('1,2,3\n"a\nb",2,3\n1,x"y,3\n4,5,6\n', 5),
            ('1,2,3\n1,"2,3\n4,5,6\n', 3),
            ('1,"x"y,3\n', 2),
            # In what is cut off a row too long, polars alone would take the next line for a part of it.
            ('1,2,3\n1,2,3,4,5,6,7,8,9,10,11,12,x"y\n4,5,6"\n7,8,9\n', 3),
        ],
    )
    def test_a_stray_quote_is_named_by_its_line(self, tmp_path: Path, rows: str, line: int):
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + rows)
        with pytest.raises(
            InputError, match=rf"log\.csv line {line}: a quote \(\"\) that encloses no whole field; double"
        ):
            Table(path, max_bad_share=1.0).scan()

    def test_a_row_too_long_that_spans_lines_is_refused(self, tmp_path: Path):
        rows = '1,2,3\n1,2,3,4,5,6,7,8,9,10,11,12,"x\ny"\n7,8,9\n'
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + rows)
        with pytest.raises(InputError, match=r"log\.csv: rows that are too long span lines"):
            Table(path, max_bad_share=1.0).scan()

    def test_a_stray_quote_among_the_names_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match=r'log\.csv has a stray quote \("\) in its line of column names'):
            Table(csv(tmp_path / "log.csv", 'user"_id,item_id,timestamp\n1,2,3\n')).scan()

    def test_a_first_line_without_names_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"log\.csv names no column in its first line"):
            Table(csv(tmp_path / "log.csv", ",,\n,,\n")).scan()

    def test_quotes_that_mean_nothing_are_characters(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", 'user_id,item_id,timestamp\n1,12" vinyl,3\n1,"x",4\n')
        frame = Table(path, quote=None).scan().collect()
        assert frame["item_id"].to_list() == ['12" vinyl', '"x"']

    def test_a_bad_row_of_parquet_is_named(self, tmp_path: Path):
        path = parquet(tmp_path / "log.parquet", user_id=[1, None, 2])
        with pytest.raises(InputError, match=r"log\.parquet: .* row 2: user='user_id' expected an id, got nothing"):
            Table(path).scan()
        path = parquet(tmp_path / "log.parquet", user_id=[1.0, 2.0, 2.5])
        with pytest.raises(InputError, match=r"log\.parquet: .* row 3: user='user_id' expected an id, got '2\.5'"):
            Table(path).scan()

    def test_blank_lines_are_no_events(self, tmp_path: Path):
        assert times(csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,2,3\n\n1,2,4\n\n\n")) == [3, 4]

    def test_ids_of_a_useless_type_are_refused(self, tmp_path: Path):
        path = parquet(tmp_path / "log.parquet", user_id=[True, False, True])
        with pytest.raises(InputError, match="user='user_id' is Boolean; ids must be integers or text"):
            Table(path).scan()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"item": "itemid"}, r"no column 'itemid' \(item='itemid'\); it has user_id, item_id, time; did you"
                                 r" mean 'item_id'\?"),
            ({}, r"no column 'timestamp' \(timestamp='timestamp'\); .* did you mean 'time'\?"),
            ({"timestamp": None, "features": ["zzz"]}, r"no column 'zzz' \(features .*; .*; choose one of these$"),
            ({"separator": ";"}, r"no column 'user_id' .* is separator=';' right\?"),
        ],
    )  # fmt: skip
    def test_a_missing_column_is_named_with_those_that_are_there(self, tmp_path: Path, arguments, message):
        path = csv(tmp_path / "log.csv", "user_id,item_id,time\n1,2,3\n")
        with pytest.raises(InputError, match=rf"log\.csv has {message}"):
            Table(path, **arguments).scan()

    @pytest.mark.parametrize("text", ["", "user_id,item_id,timestamp\n", "user_id,item_id,timestamp\n\n"])
    def test_an_empty_file_is_refused(self, tmp_path: Path, text: str):
        with pytest.raises(InputError, match=r"log\.csv is empty; expected at least one event"):
            Table(csv(tmp_path / "log.csv", text)).scan()

    def test_an_empty_parquet_file_is_refused(self, tmp_path: Path):
        pl.DataFrame(EVENTS).head(0).write_parquet(tmp_path / "log.parquet")
        with pytest.raises(InputError, match=r"log\.parquet is empty"):
            Table(str(tmp_path / "log.parquet")).scan()

    def test_unreadable_files_are_named(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"log\.parquet cannot be read as Parquet"):
            Table(csv(tmp_path / "log.parquet", "user_id,item_id\n" * 3)).scan()
        path = Path(csv(tmp_path / "log.csv.gz", "user_id,item_id,timestamp\n" + "1,2,3\n" * 9999))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match=r"log\.csv\.gz cannot be read as text: unexpected end of file"):
            Table(str(path)).scan()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"user": "a", "item": "a"}, "user='a', item='a' and timestamp='timestamp' must be different"),
            ({"features": ["timestamp"]}, r"features=\['timestamp'\]: 'timestamp' is included already"),
            ({"separator": "::"}, "separator='::' must be one ASCII character, and no line break"),
            ({"quote": "\n"}, r"quote='\\n' must be one ASCII character, and no line break"),
            ({"separator": "'", "quote": "'"}, 'separator="\'" and quote="\'" must be different'),
            ({"max_bad_share": 1.5}, r"max_bad_share=1\.5 must be a share of the rows, from 0 to 1"),
            ({"max_bad_share": float("nan")}, "max_bad_share=nan must be a share"),
        ],
    )
    def test_arguments_that_contradict_each_other_are_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            Table("log.csv", **arguments)

    def test_a_suffix_that_tells_no_separator_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"log\.dat: the name does not show what separates .*; give separator"):
            Table(csv(tmp_path / "log.dat", "user_id,item_id,timestamp\n1,2,3\n")).scan()


LFM_HEADER = ["user", "artist", "album", "track", "timestamp"]
LFM_COLUMNS = {"user": "user", "item": "track", "separator": "\t", "header": LFM_HEADER}


def test_header_names_the_columns_of_a_file_without_a_line_of_names(tmp_path: Path):
    path = csv(tmp_path / "LFM-1b_LEs.txt", "31435872\t2\t4\t4\t1385212958\n31435872\t2\t4\t5\t1385212642\n")
    frame = Table(path, **LFM_COLUMNS).scan().collect()
    assert frame["item_id"].to_list() == [4, 5]
    assert frame["artist"].to_list() == [2, 2]
    assert frame.schema["artist"] == pl.Int64


def test_header_of_another_width_is_refused(tmp_path: Path):
    path = csv(tmp_path / "les.txt", "1\t2\t3\n")
    with pytest.raises(InputError, match=r"les\.txt has 3 columns, but header names 5"):
        Table(path, **LFM_COLUMNS).scan()


@pytest.mark.parametrize("first", ["", "\n", "1\t2\n", "1\t2\t3\t4\t5\t6\n"])
def test_the_first_line_of_a_file_without_a_line_of_names_may_be_malformed(tmp_path: Path, first: str):
    path = csv(tmp_path / "les.txt", first + "1\t2\t3\t4\t5\t\n" * 3)
    assert len(Table(path, **LFM_COLUMNS, max_bad_share=0.25).scan().collect()) == 3


def test_bad_row_of_a_file_without_a_line_of_names_is_named_by_its_line(tmp_path: Path):
    path = csv(tmp_path / "les.txt", "1\t2\t3\t4\t5\n1\t2\t3\t\t6\n")
    with pytest.raises(InputError, match=r"les\.txt: .* line 2: item='track' expected an id, got nothing"):
        Table(path, **LFM_COLUMNS).scan()


def test_header_with_a_repeated_name_is_refused():
    with pytest.raises(InputError, match="names a column twice"):
        Table("x.csv", header=["user_id", "user_id"])


class TestMalformedRows:
    ROWS = "1,2,3\n1,,4\n2,7,x\n\n2,7,8,9\n3,7,5\n"

    def test_too_many_are_counted_and_the_first_are_shown(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + self.ROWS)
        with pytest.raises(
            InputError,
            match=r"log\.csv: 3 of 5 rows \(60 %\) are malformed: line 3: item='item_id' expected an id, got nothing; "
            r"line 4: timestamp='timestamp' expected a number, got 'x'; line 6: expected 3 fields, got 4; "
            r"max_bad_share=0\.5 allows 50 %: mend them, or raise it$",
        ):
            Table(path, max_bad_share=0.5).scan()

    def test_those_allowed_are_left_out_and_told(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + self.ROWS)
        source = Table(path, max_bad_share=0.6)
        assert source.scan().collect().rows() == [(1, 2, 3), (3, 7, 5)]
        assert source.num_rows == 2
        (left,) = source.malformed
        assert (left.file, left.count, left.rows, len(left.places)) == (path, 3, 5, 3)

    def test_a_clean_log_has_none(self, tmp_path: Path):
        source = Table(csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,2,3\n\n"), max_bad_share=0.5)
        assert len(source.scan().collect()) == source.num_rows == 1
        assert source.malformed == ()

    def test_places_are_five_and_more_are_hinted_at(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "1,2,\n" * 6)
        with pytest.raises(InputError, match=r"6 of 6 rows \(100 %\) .* line 6: [^;]*; \.\.\.; max_bad_share"):
            Table(path).scan()

    def test_a_log_of_malformed_rows_alone_is_refused(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,2,\n")
        with pytest.raises(InputError, match=r"log\.csv: 1 of 1 row \(100 %\) is malformed: .*; no event is left"):
            Table(path, max_bad_share=1.0).scan()

    def test_names_that_are_repeated_between_rows_do_not_make_ids_text(self, tmp_path: Path):
        names = "user_id,item_id,timestamp\n"
        frame = Table(csv(tmp_path / "log.csv", names + "1,2,3\n" + names + "1,4,5\n"), max_bad_share=0.4).scan()
        assert frame.collect().rows() == [(1, 2, 3), (1, 4, 5)]

    def test_the_share_is_that_of_all_files(self, tmp_path: Path):
        csv(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,2,\n1,2,3\n")
        csv(tmp_path / "b.csv", "user_id,item_id,timestamp\n1,2,3\n1,2,3,4\n1,2,3\n1,2,3\n")
        message = r"2 of 6 rows \(33\.3 %\) of 2 files are malformed: .*a\.csv: 1 of 2 .*; .*b\.csv: 1 of 4 .* line 3: "
        with pytest.raises(InputError, match=message):
            Table(str(tmp_path), max_bad_share=0.3).scan()
        assert len(Table(str(tmp_path), max_bad_share=0.34).scan().collect()) == 4

    def test_rows_of_parquet_are_left_out(self, tmp_path: Path):
        path = parquet(tmp_path / "log.parquet", user_id=[1, None, 2])
        source = Table(path, max_bad_share=0.4)
        assert source.scan().collect()["user_id"].to_list() == [1, 2]
        assert source.malformed[0].places == ("row 2: user='user_id' expected an id, got nothing",)

    def test_a_first_time_that_is_none_does_not_hide_the_form_of_the_others(self, tmp_path: Path):
        path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n1,2,5\n1,2,2020-01-01\n1,2,2020-01-02\n")
        assert times(path, max_bad_share=0.4) == [1577836800, 1577923200]


def test_a_compressed_file_reads_as_it_is(tmp_path: Path):
    pl.LazyFrame(EVENTS).sink_csv(tmp_path / "log.csv.zst", compression="zstd")
    assert Table(str(tmp_path / "log.csv.zst")).scan().collect().to_dict(as_series=False) == EVENTS


def test_a_file_of_many_batches_is_counted_and_its_last_row_is_named(tmp_path: Path):
    told: list[str] = []
    path = csv(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "1,2,3\n" * 300_000 + "1,2,x\n")
    source = Table(path, max_bad_share=0.1)
    source.scan(Progress(told.append, interval=0.0))
    assert source.num_rows == 300_000
    assert source.malformed[0].places[0].startswith("line 300002: ")
    assert told[0] == f"checking {path} ..."
    assert any("262,144 rows, " in line and "87%, about " in line for line in told)


MEMORY = """
import resource, sys
from seqrec.data.sources import Table

source = Table(sys.argv[1], max_bad_share=0.5)
source.scan()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(source.num_rows, peak)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    # Compressed, as pages of a plain file that are mapped count, too, though any other process may have their memory.
    rows = 12_000
    text = "".join(f"{k % 97},{k % 1009},{1_600_000_000 + k},{'x' * 60}\n" for k in range(rows)).encode()
    names, block, bad = map(gzip.compress, (b"user_id,item_id,timestamp,text\n", text, b"1,2,x,\n"))
    peaks = []
    for blocks in (60, 400):
        (tmp_path / "log.csv.gz").write_bytes(names + block * blocks + bad)
        run = [sys.executable, "-c", MEMORY, str(tmp_path / "log.csv.gz")]
        found, peak = map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
        assert found == rows * blocks
        peaks.append(peak * 1024)
    assert peaks[1] - peaks[0] < (400 - 60) * len(text) / 3
