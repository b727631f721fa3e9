from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest

from seqrec.data.schema import check_interactions
from seqrec.data.sources import ML1M, SOURCES, Sequences, Source, Synthetic
from seqrec.errors import InputError, MissingInputError

RATINGS = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n"
# Name in manifests, and arguments.
ARGUMENTS = {
    "KuaiRand": ("kuairand", {"version": "1K"}),
    "LFM1b": ("lfm-1b", {"path": "x"}),
    "ML1M": ("ml-1m", {}),
    "PublicLog": ("yelp", {"log": "yelp", "path": "x"}),
    "Sequences": ("sequences", {"path": "x"}),
    "Synthetic": ("synthetic", {}),
    "Table": ("table", {"path": "x"}),
}


def write(path: Path, text: str) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as out:
        out.write(text)
    return str(path)


def zipped(path: Path, **members: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("_dat", ".dat"), text)
    return str(path)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_registered_source_is_described_by_name_and_arguments(name: str):
    assert name in ARGUMENTS, f"give arguments for {name} above"
    short_name, arguments = ARGUMENTS[name]
    source = SOURCES[name](**arguments)
    assert source.name == short_name
    assert source.describe()["name"] == short_name
    assert source.describe()["arguments"].items() >= arguments.items()


def test_source_without_a_name_is_described_by_its_import_path():
    class Mine(Synthetic):
        name = ""

    assert (
        Mine()
        .describe()["name"]
        .endswith("test_sources.test_source_without_a_name_is_described_by_its_import_path.<locals>.Mine")
    )


def test_download_dir_is_no_part_of_the_description():
    assert ML1M(download_dir="a").describe() == ML1M(download_dir="b").describe()


class TestSequences:
    @pytest.mark.parametrize("name", ["log.txt", "log.txt.gz"])
    def test_lines_become_events_in_order(self, tmp_path: Path, name: str):
        frame = Sequences(write(tmp_path / name, "2 30\n1 10\n1\t20 \n\n  2   10\r\n")).scan().collect()
        assert frame.schema == {"user_id": pl.Int64, "item_id": pl.Int64}
        assert frame.rows() == [(2, 30), (1, 10), (1, 20), (2, 10)]

    def test_ids_are_text_unless_all_are_integers(self, tmp_path: Path):
        frame = Sequences(write(tmp_path / "log", '1 007\n2 "x\n3 é\n')).scan().collect()
        assert frame.rows() == [(1, "007"), (2, '"x'), (3, "é")]

    def test_leading_zeros_are_kept(self, tmp_path: Path):
        frame = Sequences(write(tmp_path / "log", "1 007\n2 7\n")).scan().collect()
        assert frame["item_id"].to_list() == ["007", "7"]

    @pytest.mark.parametrize(("line", "got"), [("7", "'7'"), ("1 2 3", "'1 2 3'"), ("x" * 99, "'x+\\.\\.\\.'")])
    def test_a_line_of_another_form_is_named(self, tmp_path: Path, line: str, got: str):
        path = write(tmp_path / "log.txt", f"1 2\n\n{line}\n3 4\n5\n")
        with pytest.raises(InputError, match=rf"log\.txt: 2 of 4 .* line 3: expected user item, got {got}; line 5"):
            Sequences(path).scan()

    def test_lines_of_another_form_are_left_out_where_that_is_allowed(self, tmp_path: Path):
        source = Sequences(write(tmp_path / "log.txt", "1 2\nx y z\n\n1 3\n"), max_bad_share=0.34)
        assert source.scan().collect().rows() == [(1, 2), (1, 3)]
        assert source.num_rows == 2
        assert [(left.count, left.rows, left.places) for left in source.malformed] == [
            (1, 3, ("line 2: expected user item, got 'x y z'",))
        ]

    def test_a_byte_order_mark_is_no_part_of_the_first_user(self, tmp_path: Path):
        assert Sequences(write(tmp_path / "log.txt", "\ufeff1 2\n")).scan().collect().rows() == [(1, 2)]

    @pytest.mark.parametrize("text", ["", "\n", " \n\n"])
    def test_an_empty_file_is_refused(self, tmp_path: Path, text: str):
        with pytest.raises(InputError, match=r"log\.txt is empty; expected"):
            Sequences(write(tmp_path / "log.txt", text)).scan()

    def test_a_missing_file_is_refused(self, tmp_path: Path):
        with pytest.raises(MissingInputError, match=r"path='.*none\.txt': no such file"):
            Sequences(str(tmp_path / "none.txt")).scan()

    def test_a_truncated_gzip_file_is_refused(self, tmp_path: Path):
        path = tmp_path / "log.gz"
        write(path, "".join(f"{k} {k * 7919 % 1009}\n" for k in range(5000)))
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(InputError, match=r"log\.gz cannot be read as text: unexpected end of file"):
            Sequences(str(path)).scan()

    def test_text_that_is_not_utf8_is_refused(self, tmp_path: Path):
        (tmp_path / "log.txt").write_bytes(b"1 2\n1 \xe9\n")
        with pytest.raises(InputError, match=r"log\.txt cannot be read as text: .*\(save it as UTF-8\)"):
            Sequences(str(tmp_path / "log.txt")).scan()


class TestML1M:
    def expect(self, path: Path | str) -> None:
        frame = ML1M(str(path)).scan().collect()
        assert frame.columns == ["user_id", "item_id", "rating", "timestamp"]
        assert frame.rows()[1] == (1, 661, 3.0, 978302109)
        assert len(frame) == 3
        check_interactions(frame.lazy(), "ml-1m")

    def test_zip_folder_and_file_read_alike(self, tmp_path: Path):
        self.expect(zipped(tmp_path / "ml-1m.zip", **{"ml-1m__ratings_dat": RATINGS}))
        self.expect(tmp_path)
        (tmp_path / "ml-1m").mkdir()
        write(tmp_path / "ml-1m" / "ratings.dat", RATINGS)
        self.expect(tmp_path)
        self.expect(tmp_path / "ml-1m")
        self.expect(tmp_path / "ml-1m" / "ratings.dat")

    def test_zip_in_the_download_folder_is_taken(self, tmp_path: Path):
        path = zipped(tmp_path / "ml-1m.zip", **{"ml-1m__ratings_dat": RATINGS})
        source = ML1M(download_dir=str(tmp_path))
        assert source.files() == [Path(path)]
        assert len(source.scan().collect()) == 3

    @pytest.mark.parametrize("line", ["1::x", "1::2::3", "1::2::x::4", "1::2::3::4::5", "1,2,3,4"])
    def test_a_line_of_another_form_is_named(self, tmp_path: Path, line: str):
        path = zipped(tmp_path / "a.zip", **{"ml-1m__ratings_dat": RATINGS + line + "\n"})
        expected = rf"ratings\.dat: .* line 4: expected user::item::rating::timestamp, got '{line}'; max"
        with pytest.raises(InputError, match=expected):
            ML1M(path).scan()

    def test_an_empty_file_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"ratings\.dat is empty; expected"):
            ML1M(zipped(tmp_path / "a.zip", **{"ml-1m__ratings_dat": ""})).scan()

    def test_a_zip_without_ratings_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"^[^ ]*a\.zip contains no ratings\.dat; expected the ml-1m\.zip of http"):
            ML1M(zipped(tmp_path / "a.zip", other_dat="")).scan()

    def test_a_truncated_zip_is_refused(self, tmp_path: Path):
        path = Path(zipped(tmp_path / "a.zip", **{"ml-1m__ratings_dat": RATINGS}))
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(InputError, match=r"a\.zip is not a readable zip file \(.*; download it again: https"):
            ML1M(str(path)).scan()

    def test_what_is_no_zip_is_refused(self, tmp_path: Path):
        with pytest.raises(InputError, match=r"a\.zip is not a readable zip file"):
            ML1M(write(tmp_path / "a.zip", "not a zip")).scan()

    def test_a_missing_file_is_refused(self, tmp_path: Path):
        with pytest.raises(MissingInputError, match=r"no such file; leave path out to download https"):
            ML1M(str(tmp_path / "none.zip")).scan()

    def test_a_folder_without_ratings_is_refused(self, tmp_path: Path):
        with pytest.raises(MissingInputError, match=r"no ratings\.dat and no ml-1m\.zip in this folder"):
            ML1M(str(tmp_path)).scan()

    def test_lines_of_another_form_are_left_out_where_that_is_allowed(self, tmp_path: Path):
        source = ML1M(write(tmp_path / "ratings.dat", RATINGS + "1::x\n\n"), max_bad_share=0.25)
        assert len(source.scan().collect()) == source.num_rows == 3
        assert source.malformed[0].places == ("line 4: expected user::item::rating::timestamp, got '1::x'",)

    def test_an_encrypted_zip_is_refused(self, tmp_path: Path):
        path = Path(zipped(tmp_path / "a.zip", **{"ml-1m__ratings_dat": RATINGS}))
        content = bytearray(path.read_bytes())
        # The flag of encryption, in the local and in the central header.
        content[6] |= 1
        content[content.rindex(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.zip is not a readable zip file .*password"):
            ML1M(str(path)).scan()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1]}, "source mine yields no column 'item_id'; it yields user_id"),
        ({"user_id": [1.0], "item_id": [1]}, "source mine: user_id is Float64; it must be Int64 or String"),
        ({"user_id": [1], "item_id": [1], "timestamp": ["a"]}, "timestamp is String; it must be Int64"),
    ],
)
def test_frames_of_other_columns_are_refused(columns, message):
    with pytest.raises(InputError, match=message):
        check_interactions(pl.LazyFrame(columns), "mine")


def test_source_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Source()
