from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from seqrec.data.sources import LFM1b
from seqrec.errors import InputError, MissingInputError

EVENTS = "31435741\t2\t4\t4\t1385212958\n31435741\t2\t4\t5\t1385212642\n31435742\t3\t6\t7\t1385212642\n"


def write(folder: Path, text: str = EVENTS) -> Path:
    (folder / "LFM-1b_LEs.txt").write_text(text)
    return folder / "LFM-1b_LEs.txt"


@pytest.mark.parametrize(
    ("item", "ids", "features"),
    [
        ("track", [4, 5, 7], ["artist_id", "album_id"]),
        ("album", [4, 4, 6], ["artist_id", "track_id"]),
        ("artist", [2, 2, 3], ["album_id", "track_id"]),
    ],
)
def test_item_is_what_is_asked_for_and_the_others_are_features(tmp_path: Path, item: str, ids, features):
    write(tmp_path)
    source = LFM1b(str(tmp_path), item)
    frame = source.scan().collect()
    assert frame.columns == ["user_id", "item_id", "timestamp", *features]
    assert frame["item_id"].to_list() == ids
    assert {str(dtype) for dtype in frame.dtypes} == {"Int64"}
    assert source.num_rows == 3


def test_folder_and_file_are_the_same_log(tmp_path: Path):
    path = write(tmp_path)
    assert LFM1b(str(path)).files() == LFM1b(str(tmp_path)).files() == [path]
    assert LFM1b(str(path)).scan().collect().equals(LFM1b(str(tmp_path)).scan().collect())


def test_a_quote_is_a_character_like_others(tmp_path: Path):
    frame = LFM1b(str(write(tmp_path, EVENTS + '1\t2\t3\t"4\t5\n'))).scan().collect()
    assert frame["item_id"].to_list() == ["4", "5", "7", '"4']


def test_malformed_rows_are_named_or_left_out(tmp_path: Path):
    path = write(tmp_path, EVENTS + "31435742\t3\t6\t\t5\n31435742\t3\t6\t7\tx\n1\t2\t3\t4\t5\t6\n")
    with pytest.raises(
        InputError,
        match=r"LEs\.txt: 3 of 6 rows \(50 %\) are malformed: line 4: item='track_id' expected an id, got nothing; "
        r"line 5: timestamp='timestamp' expected a number, got 'x'; line 6: expected 5 fields, got 6; max_bad_share",
    ):
        LFM1b(str(path), max_bad_share=0.4).scan()
    source = LFM1b(str(path), max_bad_share=0.5)
    assert source.scan().collect()["item_id"].to_list() == [4, 5, 7]
    assert source.malformed[0].count == 3


def test_a_missing_column_and_a_truncated_file_are_named(tmp_path: Path):
    path = write(tmp_path, EVENTS.replace("\t4\t", "\t").replace("\t6\t", "\t"))
    with pytest.raises(InputError, match=r"LEs\.txt has 4 columns, but header names 5"):
        LFM1b(str(path)).scan()
    packed = tmp_path / "LFM-1b_LEs.txt.gz"
    packed.write_bytes(gzip.compress(EVENTS.encode())[:-9])
    with pytest.raises(InputError, match=r"LEs\.txt\.gz cannot be read as text: unexpected end of file"):
        LFM1b(str(packed)).scan()


def test_an_unknown_item_is_refused():
    with pytest.raises(InputError, match="item='song' must be one of track, album, artist"):
        LFM1b("x", "song")


def test_what_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(MissingInputError, match=r"no LFM-1b_LEs\.txt in this folder"):
        LFM1b(str(tmp_path)).scan()
    with pytest.raises(MissingInputError, match=r"path='.*none': no such file"):
        LFM1b(str(tmp_path / "none")).scan()
