from __future__ import annotations

import gzip
import os
from pathlib import Path

import polars
import pytest

from seqrec.catalogue.histories import read_block_list
from seqrec.errors import InputError, MissingInputError


def test_a_list_is_a_line_for_each_item_or_a_column(tmp_path: Path):
    (tmp_path / "block.txt").write_text("a b\n\n  17 \n")
    assert read_block_list(tmp_path / "block.txt") == ["a b", "17"]
    polars.DataFrame({"item_id": [3, None, 5], "why": ["x", "y", "z"]}).write_parquet(tmp_path / "b.parquet")
    assert read_block_list(tmp_path / "b.parquet") == [3, 5]


def test_what_is_no_list_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"block='nowhere.txt' does not exist; give a file"):
        read_block_list("nowhere.txt")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    polars.DataFrame({"song": [1]}).write_parquet(tmp_path / "c.parquet")
    for name in ("b.parquet", "c.parquet"):
        with pytest.raises(InputError, match=r"cannot be read as a list of item ids: .* with a column item_id"):
            read_block_list(tmp_path / name)
    polars.DataFrame({"item_id": [1.5]}).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(InputError, match="column item_id is Float64; make it integers or strings"):
        read_block_list(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf101\r\n105\r\n",
        b'"101"\n"105"\n',
        b"item_id,reason\n101,recalled\n105,recalled\n",
        b"reason;item_id\nrecalled, by hand; 101 \nrecalled;105\n",
        b"\xef\xbb\xbfitem_id\treason\n101\tx\n\t\n105\ty\n",
        b"101.0\n105\nNULL\n",
        b" 101\n105\xc2\xa0\n",
    ],
)
def test_marks_quotes_names_and_further_columns_are_no_part_of_an_id(tmp_path: Path, content: bytes):
    (tmp_path / "block.csv").write_bytes(content)
    assert read_block_list(tmp_path / "block.csv") == [101, 105]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("101,recalled\n105,recalled\n", r"row 1 has 2 fields, expected one id; give one id per line, or a first line"),
        ("101\n\n105,x\n", r"row 2 has 2 fields"),
        ("\n \n", r"has no item id; leave it out"),
        ("1.2E+12\n5\n", r"the id '1.2E\+12' has an exponent, so digits may be lost"),
        ("a\n7\n7.0\n", r"has the ids '7' and '7.0', which are probably the same"),
    ],
)
def test_an_unclear_list_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "block.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_block_list(tmp_path / "block.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n2\n".encode("utf-16"), "is UTF-16; give a text file in UTF-8"),
        (gzip.compress(b"1\n2\n"), "is compressed with gzip; give it unpacked"),
        (b"1\n\xff\n", "line 2 is not UTF-8"),
        (b"1\n\x00\n", "is no text, but binary; give a text file in UTF-8"),
    ],
    # The bytes of a gzip file have the time in them, and names must not.
    ids=["utf-16", "gzip", "latin-1", "binary"],
)
def test_a_file_that_is_no_text_is_named_by_what_it_is(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "b.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"block='.*b.txt' {message}"):
        read_block_list(tmp_path / "b.txt")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe, which can be read only once; write its content to a file"):
        read_block_list(tmp_path / "pipe")
