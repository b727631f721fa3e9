"""Whatever bytes a source is given: it raises one of our errors, or the store is what a slow reading of them gives."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_sources import SPACE, Reading, read_lines, read_rows, read_table

from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import ML1M, KuaiRand, LFM1b, Sequences, Source, Table
from seqrec.errors import InputError

# The examples are the same in each run. SEQREC_FUZZ_EXAMPLES=600 tries some ten thousand logs, in a few minutes.
EXAMPLES = int(os.environ.get("SEQREC_FUZZ_EXAMPLES", "30"))
fuzz = settings(deadline=None, max_examples=EXAMPLES, derandomize=True, database=None)
# The slow reading is that of Python's csv module.
reads_any_text = pytest.mark.skipif(sys.version_info < (3, 11), reason="csv of Python 3.10 reads and writes no NUL")
SHARES = st.sampled_from([0.0, 0.3, 1.0])
LFM_HEADER = ["user_id", "artist_id", "album_id", "track_id", "timestamp"]
KUAIRAND_HEADER = ["user_id", "video_id", "date", "time_ms", "is_click"]


def outcome(make: Callable[[str], Source], name: str, data: bytes) -> tuple[dict[Any, list[Any]], int] | None:
    """Histories of the prepared store and rows left out; None where the log is refused with one of our errors."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        try:
            source = make(str(Path(folder) / name))
            store = prepare(source, Filters(), Path(folder) / "store")
        except InputError:
            assert not (Path(folder) / "store").exists()
            return None
        items = list(store.item_vocabulary.external_ids(store.item_ids))
        users = store.user_vocabulary.external_ids(range(1, store.num_users + 1))
        histories = {
            user: items[start:stop]
            for user, start, stop in zip(users, store.offsets[:-1], store.offsets[1:], strict=True)
        }
        return histories, sum(left.count for left in source.malformed)


def check(found: tuple[dict[Any, list[Any]], int] | None, expected: Reading | None, share: float) -> None:
    """The outcome is what the slow reading says."""
    if expected is None or expected.is_refused(share):
        assert found is None
    else:
        assert found == (expected.histories(), expected.num_malformed)


def check_if_taken(found: tuple[dict[Any, list[Any]], int] | None, expected: Reading | None, share: float) -> None:
    """The same, but the log may be refused for more: text that is not UTF-8, quotes that enclose nothing."""
    if found is not None:
        check(found, expected, share)


# Values of a log, good and bad.
ids = st.one_of(
    st.integers(0, 5).map(str),
    st.sampled_from(["", "007", "-3", "+1", "99999999999999999999", "é", "a b", "\x00", "NaN", "\u2028x", "-0"]),
    st.sampled_from(["NULL", "\\N", "nan", "None", "NA", "3.0", "3.", "3.00", "3.5", "4.0", "1.2E+12", "1e3", "+3.0"]),
    st.integers(0, 5).map(lambda number: f"{number}.0"),
    st.sampled_from(["a,b", "a\tb", 'say "x"', "two\nlines", "two\r\nlines", '"', "'", " 1"]),
)
times = st.one_of(
    st.integers(0, 50).map(str),
    st.sampled_from(["", "nan", "inf", "-1", "1e3", "2.5", "9223372036854775807", "9223372036854775808", "1e30"]),
    st.sampled_from(["x", " 5", "5.", "9300000000000", "9300000000000.5", "-9223372036854775809", "1_0", "2020-01-02"]),
)
dates = st.sampled_from(["2020-01-02", "2020-01-03", "2019-12-31", "2020-02-30", "5", "", "today"])


def fields(*columns: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Rows, most of them of the right width."""
    whole = st.tuples(*columns).map(list)
    extra = st.lists(st.sampled_from(["", "9", "a,b"]), max_size=3)
    return st.one_of(whole, whole, whole, st.tuples(whole, extra).map(lambda row: row[0] + row[1]), st.just([])) | (
        st.tuples(whole, st.integers(0, len(columns))).map(lambda cut: cut[0][: cut[1]])
    )


def tables(*columns: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(fields(*columns), max_size=12)


def written(rows: list[list[str]], separator: str, line_end: str, bom: bool, quoting: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end, quoting=quoting)
    for row in rows:
        # The writer encloses a single empty field, so that it is no blank line.
        text.write(line_end) if not any(row) and len(row) < 2 else writer.writerow(row)
    return (("\ufeff" if bom else "") + text.getvalue()).encode()


LAYOUTS = st.tuples(st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))


def any_text(separator: str) -> st.SearchStrategy[bytes]:
    """Rows and pieces of what means something in tables, in any order; and bytes of any kind."""
    rows = ["1,2,3\n", "4,5,6\r\n", '2,"x,y",3\n', '5,"a\nb",1\n', "1,2\n"]
    pieces = ["1", ",", '"', "\n", "\r\n", "\t", " ", "é", "\x00", "\ufeff", 'a"b', "\x1f", "::"]
    pieces = [piece.replace(",", separator) for piece in [*rows, *rows, *pieces]]
    text = st.lists(st.sampled_from(pieces), max_size=10).map(lambda chosen: "".join(chosen).encode())
    return st.one_of(text, text, text, st.binary(max_size=60))


@reads_any_text
class TestTable:
    @fuzz
    @given(
        rows=tables(ids, ids, times, st.sampled_from(["", "1", "2.5", "true", "x"])) | tables(ids, ids, dates),
        suffix=st.sampled_from([".csv", ".tsv", ".csv.gz"]),
        layout=LAYOUTS,
        share=SHARES,
    )
    def test_tables_of_good_and_bad_rows(self, rows, suffix: str, layout, share: float):
        separator = "\t" if "tsv" in suffix else ","
        header = ["user_id", "item_id", "timestamp", "rating"][: max([3, *map(len, rows)])]
        data = written([header, *rows], separator, *layout)
        found = outcome(
            lambda path: Table(path, max_bad_share=share),
            "log" + suffix,
            gzip.compress(data) if "gz" in suffix else data,
        )
        check(found, read_table(data, ("user_id", "item_id", "timestamp"), separator=separator), share)

    @fuzz
    @given(start=st.sampled_from([b"a,b\n", b"a,b,c\n", b"\n\na,b\r\n", b""]), rest=any_text(","), share=SHARES)
    def test_any_text(self, start: bytes, rest: bytes, share: float):
        data = start + rest
        found = outcome(
            lambda path: Table(path, user="a", item="b", timestamp=None, max_bad_share=share), "log.csv", data
        )
        check_if_taken(found, read_table(data, ("a", "b", None)), share)

    @fuzz
    @given(start=st.sampled_from([b"a,b\n", b"a,b,c\n", b""]), rest=any_text(","), share=SHARES)
    def test_any_text_whose_quotes_mean_nothing(self, start: bytes, rest: bytes, share: float):
        data = start + rest
        found = outcome(
            lambda path: Table(path, user="a", item="b", timestamp=None, quote=None, max_bad_share=share),
            "log.csv",
            data,
        )
        check_if_taken(found, read_table(data, ("a", "b", None), quote=None), share)

    @fuzz
    @given(
        data=st.binary(max_size=200),
        cut=st.integers(1, 60),
        position=st.integers(0, 400),
        byte=st.integers(0, 255),
    )
    def test_damaged_compression(self, data: bytes, cut: int, position: int, byte: int):
        whole = gzip.compress(b"user_id,item_id,timestamp\n" + b"".join(b"%d,2,3\n" % k for k in range(50)))
        damaged = bytearray(whole)
        damaged[position % len(whole)] = byte
        for content in (whole[:-cut], bytes(damaged), data):
            found = outcome(lambda path: Table(path), "log.csv.gz", content)
            assert found is None or found == ({k: [2] for k in range(50)}, 0) or content == bytes(damaged)

    @fuzz
    @given(
        rows=st.lists(st.tuples(ids | st.none(), ids | st.none(), times | st.none()), max_size=12),
        share=SHARES,
    )
    def test_parquet_tables_of_text(self, rows, share: float):
        columns = ["user_id", "item_id", "timestamp"]
        out = io.BytesIO()
        pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row").write_parquet(out)
        found = outcome(lambda path: Table(path, max_bad_share=share), "log.parquet", out.getvalue())
        expected = read_rows([[value or "" for value in row] for row in rows], columns, tuple(columns))
        check(found, expected, share)

    @fuzz
    @given(
        rows=st.lists(
            st.tuples(
                st.integers(0, 2**64 - 1) | st.none(),
                st.sampled_from([1.0, 2.0, 2.5, float("nan"), 1e30, None]),
                st.sampled_from([1.0, 2.0, 2.5, float("nan"), float("inf"), 1e30, 1e13, None]),
            ),
            max_size=8,
        ),
        share=SHARES,
    )
    def test_parquet_tables_of_numbers(self, rows, share: float):
        columns = {"user_id": pl.UInt64, "item_id": pl.Float64, "timestamp": pl.Float64}
        out = io.BytesIO()
        pl.DataFrame(rows, schema=columns, orient="row").write_parquet(out)
        found = outcome(lambda path: Table(path, max_bad_share=share), "log.parquet", out.getvalue())

        def text(value: float | None, *, is_id: bool) -> str:
            if value is None or (is_id and not (value == value // 1 and value < 2**63)):
                return ""
            return str(int(value)) if is_id else repr(value)

        texts = [[text(user, is_id=True), text(item, is_id=True), text(time, is_id=False)] for user, item, time in rows]
        check(found, read_rows(texts, list(columns), tuple(columns)), share)

    @fuzz
    @given(data=st.binary(max_size=200), position=st.integers(0, 2000), byte=st.integers(0, 255))
    def test_damaged_parquet(self, data: bytes, position: int, byte: int):
        out = io.BytesIO()
        pl.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"], "timestamp": [5, 6]}).write_parquet(out)
        whole = out.getvalue()
        # The footer alone: a damaged size of a page may be more memory than there is, which ends polars' process.
        footer = int.from_bytes(whole[-8:-4], "little") + 8
        damaged = bytearray(whole)
        damaged[-1 - position % footer] = byte
        # Which of its values the damage changed no reader can tell, so the store may be any.
        outcome(lambda path: Table(path), "log.parquet", bytes(damaged))
        for content in (whole[: len(whole) - 1 - position], data, b"PAR1" + data + b"PAR1"):
            assert outcome(lambda path: Table(path), "log.parquet", content) is None


@reads_any_text
class TestKuaiRand:
    @fuzz
    @given(rows=tables(ids, ids, st.just("20220410"), times, st.sampled_from("01")), layout=LAYOUTS, share=SHARES)
    def test_tables_of_good_and_bad_rows(self, rows, layout, share: float):
        data = written([KUAIRAND_HEADER, *rows], ",", *layout)
        found = outcome(lambda path: KuaiRand(path, max_bad_share=share), "log_standard.csv", data)
        check(found, read_table(data, ("user_id", "video_id", "time_ms")), share)

    @fuzz
    @given(start=st.sampled_from([b"user_id,video_id,time_ms\n", b""]), rest=any_text(","), share=SHARES)
    def test_any_text(self, start: bytes, rest: bytes, share: float):
        found = outcome(lambda path: KuaiRand(path, max_bad_share=share), "log.csv", start + rest)
        check_if_taken(found, read_table(start + rest, ("user_id", "video_id", "time_ms")), share)

    @fuzz
    @given(data=st.binary(max_size=200), start=st.sampled_from([b"", gzip.compress(b"x")]))
    def test_any_archive(self, data: bytes, start: bytes):
        assert outcome(lambda path: KuaiRand(path), "KuaiRand-27K.tar.gz", start + data) is None


@reads_any_text
class TestLFM1b:
    @fuzz
    @given(
        rows=tables(*[ids.filter(lambda text: not set(text) & set("\t\r\n"))] * 4, times),
        place=st.integers(0, 12),
        item=st.sampled_from(["track", "album", "artist"]),
        share=SHARES,
    )
    def test_tables_of_good_and_bad_rows(self, rows, place: int, item: str, share: float):
        # One row at least is as wide as those of LFM-1b.
        rows.insert(place, ["1", "2", "3", "4", "5"])
        data = "".join("\t".join(row) + "\n" for row in rows).encode()
        found = outcome(lambda path: LFM1b(path, item, max_bad_share=share), "LFM-1b_LEs.txt", data)
        columns = ("user_id", f"{item}_id", "timestamp")
        check(found, read_table(data, columns, separator="\t", quote=None, header=LFM_HEADER), share)

    @fuzz
    @given(start=st.sampled_from([b"1\t2\t3\t4\t5\n", b""]), rest=any_text("\t"), share=SHARES)
    def test_any_text(self, start: bytes, rest: bytes, share: float):
        found = outcome(lambda path: LFM1b(path, max_bad_share=share), "LFM-1b_LEs.txt", start + rest)
        columns = ("user_id", "track_id", "timestamp")
        expected = read_table(start + rest, columns, separator="\t", quote=None, header=LFM_HEADER)
        check_if_taken(found, expected, share)


lines = st.one_of(
    st.tuples(ids, st.sampled_from([" ", "\t", "\u3000", "  "]), ids).map("".join),
    st.sampled_from(["", " ", "7", "1 2 3", "\x1f", "1 2\r", "\x1c1 2"]),
)
LINE = re.compile(rf"([^{SPACE}]+)[{SPACE}]+([^{SPACE}]+)")


class TestSequences:
    @fuzz
    @given(lines=st.lists(lines, max_size=12), share=SHARES, compressed=st.booleans())
    def test_good_and_bad_lines(self, lines: list[str], share: float, compressed: bool):
        data = "\n".join(lines).encode()
        found = outcome(
            lambda path: Sequences(path, share),
            "log.txt" + ".gz" * compressed,
            gzip.compress(data) if compressed else data,
        )
        check(found, read_lines(data, LINE, (1, 2)), share)

    @fuzz
    @given(data=any_text(" "), share=SHARES)
    def test_any_text(self, data: bytes, share: float):
        found = outcome(lambda path: Sequences(path, share), "log.txt", data)
        check_if_taken(found, read_lines(data, LINE, (1, 2)), share)


RATING = re.compile(r"([0-9]+)::([0-9]+)::([0-9]+(?:\.[0-9]+)?)::([0-9]{1,18})")
ratings = st.one_of(
    st.tuples(*[st.integers(0, 30).map(str)] * 4).map("::".join),
    st.sampled_from(
        ["", "1::2::3", "1::2::x::4", "1::2::3.5::4", "007::2::3::4", "1::2::3::4::5", "1::2::3::" + "9" * 19]
    ),
)


class TestML1M:
    @fuzz
    @given(
        lines=st.lists(ratings, max_size=12),
        end=st.sampled_from(["\n", "\r\n"]),
        share=SHARES,
        zipped=st.booleans(),
    )
    def test_good_and_bad_lines(self, lines: list[str], end: str, share: float, zipped: bool):
        data = end.join(lines).encode()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ml-1m/ratings.dat", data)
        found = outcome(
            lambda path: ML1M(path, max_bad_share=share),
            "ml-1m.zip" if zipped else "ratings.dat",
            content.getvalue() if zipped else data,
        )
        check(found, read_lines(data, RATING, (1, 2, 4)), share)

    @fuzz
    @given(data=any_text("::"), position=st.integers(0, 200), byte=st.integers(0, 255))
    def test_any_bytes(self, data: bytes, position: int, byte: int):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ml-1m/ratings.dat", "1::2::3::4\n")
        damaged = bytearray(content.getvalue())
        damaged[position % len(damaged)] = byte
        outcome(lambda path: ML1M(path), "ml-1m.zip", bytes(damaged))
        for name in ("ml-1m.zip", "ratings.dat"):
            check_if_taken(outcome(lambda path: ML1M(path), name, data), read_lines(data, RATING, (1, 2, 4)), 0.0)


@reads_any_text
class TestSeveralFiles:
    @fuzz
    @given(
        parts=st.lists(
            st.tuples(
                st.lists(st.tuples(ids, ids, st.integers(0, 50)), min_size=1, max_size=6),
                st.sampled_from(["csv", "tsv", "csv.gz", "parquet text", "parquet floats", "parquet integers"]),
                st.permutations([0, 1, 2]),
            ),
            min_size=2,
            max_size=4,
        ),
        share=SHARES,
    )
    def test_one_rule_for_all_of_them(self, parts, share: float):
        columns, rows = ["user_id", "item_id", "timestamp"], []
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "log").mkdir()
            for number, (part, kind, order) in enumerate(parts):
                texts = [[user, item, str(time)] for user, item, time in part]
                names = [columns[place] for place in order]
                if kind.startswith("parquet"):
                    texts = [[*row_of(row[:2], kind), row[2]] for row in texts]
                    write_parquet(Path(folder) / f"log/{number}.parquet", texts, kind, names)
                else:
                    separator = "\t" if kind == "tsv" else ","
                    ordered = [names, *([row[place] for place in order] for row in texts)]
                    data = written(ordered, separator, "\n", False, csv.QUOTE_MINIMAL)
                    file = Path(folder) / f"log/{number}.{kind}"
                    file.write_bytes(gzip.compress(data) if "gz" in kind else data)
                rows += texts
            expected = read_rows(rows, columns, tuple(columns))
            check(outcome(lambda _: Table(f"{folder}/log", max_bad_share=share), "unused", b""), expected, share)


def row_of(texts: list[str], kind: str) -> list[str]:
    """The ids as a column of that kind holds them: numbers for columns of numbers, else nothing."""
    if kind == "parquet text":
        return texts
    numbers = [re.fullmatch("[0-9]{1,3}(\\.0*)?", text) for text in texts]
    return [str(int(float(text))) if number else "" for text, number in zip(texts, numbers, strict=True)]


def write_parquet(file: Path, rows: list[list[str]], kind: str, order: list[str]) -> None:
    dtype = {"parquet text": pl.String, "parquet floats": pl.Float64, "parquet integers": pl.Int32}[kind]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    ids = pl.col("user_id", "item_id")
    if dtype != pl.String:
        ids = pl.when(ids != "").then(ids).cast(dtype)
    frame.select(ids, pl.col("timestamp").cast(pl.Int64)).select(order).write_parquet(file)


def test_the_slow_reading_is_right_by_hand():
    data = b'user_id,item_id,timestamp\r\n2,"a ""b""",2.5\r\n\r\n2,c,1\n'
    data += b"1,,3\n1,c,x\n1,c,9300000000000\n3,d,4,\n3,d,4,5\n"
    reading = read_table(data, ("user_id", "item_id", "timestamp"))
    assert reading == Reading([("2", 'a "b"', 2_500_000), ("2", "c", 1_000_000), ("3", "d", 4_000_000)], 4)
    assert reading.histories() == {2: ["c", 'a "b"'], 3: ["d"]}
    assert reading.is_refused(0.5)
    assert not reading.is_refused(0.6)


@pytest.mark.parametrize("text", ["5", "-5", "9223372036854775807"])
def test_the_slow_reading_takes_canonical_integers_alone(text: str):
    assert read_table(f"u,i\n{text},0{text}\n".encode(), ("u", "i", None)).histories() == {int(text): [f"0{text}"]}
