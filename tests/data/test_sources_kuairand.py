from __future__ import annotations

import gzip
import hashlib
import tarfile
from pathlib import Path

import pytest

from seqrec.data.prepare import Filters, prepare
from seqrec.data.sources import KuaiRand
from seqrec.errors import InputError, MissingInputError

NAMES = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
PARTS = {
    "27K": [
        "log_standard_4_08_to_4_21_27k_part1.csv",
        "log_standard_4_08_to_4_21_27k_part2.csv",
        "log_standard_4_22_to_5_08_27k_part1.csv",
        "log_standard_4_22_to_5_08_27k_part2.csv",
    ],
    "1K": ["log_standard_4_08_to_4_21_1k.csv", "log_standard_4_22_to_5_08_1k.csv"],
    "Pure": ["log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv"],
}
RANDOM = {version: f"log_random_4_22_to_5_08_{version.lower()}.csv" for version in PARTS}


def row(user: int, video: int, click: int = 1) -> str:
    return f"{user},{video},20220410,1700,{1649581149287 + video},{click},0,0,0,0,0,1,46186,45916,0,7639,0,0,1"


def write_parts(folder: Path, version: str) -> Path:
    """Each part with one row, whose video is the part's number; the random part comes last."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*PARTS[version], RANDOM[version]]):
        (folder / name).write_text(f"{NAMES}\n{row(7, number)}\n")
    return folder


def videos(source: KuaiRand) -> list[int]:
    return source.scan().collect()["item_id"].to_list()


@pytest.mark.parametrize("version", list(PARTS))
@pytest.mark.parametrize("random", [False, True])
def test_parts_of_a_folder_are_read_in_order_of_time(tmp_path: Path, version: str, random: bool):
    data = write_parts(tmp_path / f"KuaiRand-{version}" / "data", version)
    expected = list(range(len(PARTS[version]) + random))
    for folder in (data, data.parent, tmp_path):
        source = KuaiRand(str(folder), version, random)
        assert videos(source) == expected
        assert [file.name for file in source.files()] == PARTS[version] + [RANDOM[version]] * random
    assert source.num_rows == len(expected)


def test_columns_are_ids_time_in_milliseconds_and_features(tmp_path: Path):
    (tmp_path / "log.csv").write_text(f"{NAMES}\n{row(7, 3)}\n")
    frame = KuaiRand(str(tmp_path / "log.csv")).scan().collect()
    assert frame.columns[:3] == ["user_id", "item_id", "timestamp"]
    assert frame.rows()[0][:3] == (7, 3, 1649581149290)
    features = [name for name in NAMES.split(",") if name not in ("user_id", "video_id", "time_ms")]
    assert frame.columns[3:] == features
    assert {str(dtype) for dtype in frame.dtypes} == {"Int64"}


def test_a_flag_filters(tmp_path: Path):
    rows = [row(1, 1, click=0), row(1, 2, click=1), row(2, 3, click=0)]
    (tmp_path / "log.csv").write_text("\n".join([NAMES, *rows]))
    store = prepare(KuaiRand(str(tmp_path / "log.csv")), Filters(event_filter="is_click = 1"), tmp_path / "store")
    assert (store.num_events, store.num_users, store.num_items) == (1, 1, 1)
    assert list(store.item_vocabulary.external_ids(store.item_ids)) == [2]


def test_a_glob_reads_what_it_names(tmp_path: Path):
    data = write_parts(tmp_path / "data", "27K")
    assert videos(KuaiRand(str(data / "log_standard_*part1.csv"))) == [0, 2]
    assert videos(KuaiRand(str(data / "log_*"))) == [4, 0, 1, 2, 3]


class TestArchive:
    def packed(self, folder: Path, version: str = "1K") -> Path:
        data = write_parts(folder / "unpacked" / "data", version)
        path = folder / f"KuaiRand-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as out:
            out.add(data, f"KuaiRand-{version}/data")
        return path

    def test_archive_is_extracted_once_beside_it(self, tmp_path: Path):
        path = self.packed(tmp_path)
        assert videos(KuaiRand(str(path), "1K")) == [0, 1]
        path.write_bytes(b"")
        assert videos(KuaiRand(str(path), "1K", random=True)) == [0, 1, 2]
        assert KuaiRand(str(path), "1K").files() == [path]
        assert videos(KuaiRand(str(tmp_path), "1K")) == [0, 1]

    def test_archive_of_another_version_is_refused(self, tmp_path: Path):
        path = self.packed(tmp_path)
        with pytest.raises(InputError, match=r"contains no log_.*27k_part2\.csv; is it the archive of another version"):
            KuaiRand(str(path)).scan()

    def test_archive_in_the_download_folder_is_taken(self, tmp_path: Path):
        self.packed(tmp_path)
        source = KuaiRand(version="1K", download_dir=str(tmp_path))
        assert source.files() == []
        assert videos(source) == [0, 1]
        assert [file.name for file in source.files()] == PARTS["1K"]

    def test_without_a_path_the_version_is_downloaded_and_checked(self, tmp_path: Path, monkeypatch):
        served = self.packed(tmp_path)
        monkeypatch.setattr("seqrec.data.sources.kuairand.URL", f"{tmp_path.as_uri()}/{{archive}}")
        monkeypatch.setitem(KuaiRand.scan.__globals__["MD5"], "1K", hashlib.md5(served.read_bytes()).hexdigest())
        assert videos(KuaiRand(version="1K", download_dir=str(tmp_path / "downloads"))) == [0, 1]
        served.write_bytes(b"another")
        with pytest.raises(InputError, match=r"KuaiRand-1K\.tar\.gz has md5 .*, expected "):
            KuaiRand(version="1K", download_dir=str(tmp_path / "again")).scan()

    def test_without_a_network_it_says_what_to_put_where(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr("seqrec.data.sources.kuairand.URL", "http://127.0.0.1:9/{archive}")
        with pytest.raises(
            MissingInputError,
            match=r"KuaiRand-27K\.tar\.gz does not exist .*fetch http://.*/KuaiRand-27K\.tar\.gz by other means",
        ):
            KuaiRand(download_dir=str(tmp_path)).scan()


class TestBadInput:
    def test_an_unknown_version_is_refused(self):
        with pytest.raises(InputError, match="version='2K' must be one of 27K, 1K, Pure"):
            KuaiRand(version="2K")

    def test_a_missing_part_is_named(self, tmp_path: Path):
        data = write_parts(tmp_path / "data", "1K")
        (data / PARTS["1K"][1]).unlink()
        with pytest.raises(
            MissingInputError, match=r"no log_standard_4_22_to_5_08_1k\.csv in .*data; give the version"
        ):
            KuaiRand(str(tmp_path), "1K").scan()

    def test_files_of_other_columns_are_named(self, tmp_path: Path):
        data = write_parts(tmp_path / "data", "1K")
        (data / PARTS["1K"][1]).write_text("user_id,video_id,time_ms\n1,2,3\n")
        with pytest.raises(
            InputError,
            match=r"4_22_to_5_08_1k\.csv does not have the columns of .*: only .* comment_stay_time,",
        ):
            KuaiRand(str(data), "1K").scan()

    def test_a_column_that_no_part_has_is_named(self, tmp_path: Path):
        data = write_parts(tmp_path / "data", "1K")
        for name in PARTS["1K"]:
            (data / name).write_text((data / name).read_text().replace("video_id", "item"))
        with pytest.raises(InputError, match=r"4_08_to_4_21_1k\.csv has no column 'video_id' \(item='video_id'\)"):
            KuaiRand(str(data), "1K").scan()

    def test_a_truncated_archive_and_part_are_named(self, tmp_path: Path):
        data = write_parts(tmp_path / "data", "1K")
        archive, part = tmp_path / "KuaiRand-1K.tar.gz", tmp_path / "log.csv.gz"
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(data, "KuaiRand-1K/data")
        archive.write_bytes(archive.read_bytes()[:-60])
        with pytest.raises(InputError, match=r"KuaiRand-1K\.tar\.gz cannot be extracted to .*KuaiRand-1K/data: "):
            KuaiRand(str(archive), "1K").scan()
        part.write_bytes(gzip.compress((data / PARTS["1K"][0]).read_bytes())[:-9])
        with pytest.raises(InputError, match=r"log\.csv\.gz cannot be read as text: unexpected end of file"):
            KuaiRand(str(part)).scan()

    def test_nothing_at_the_path_is_refused(self, tmp_path: Path):
        with pytest.raises(
            MissingInputError, match=r"no such file or folder; leave path out to download https://zenodo"
        ):
            KuaiRand(str(tmp_path / "none")).scan()

    def test_random_beside_named_files_is_refused(self, tmp_path: Path):
        write_parts(tmp_path / "data", "1K")
        with pytest.raises(InputError, match=r"random=True: .* names log files, which are all that is read; leave"):
            KuaiRand(str(tmp_path / "data" / "*.csv"), random=True).files()

    def test_malformed_rows_are_left_out_of_all_parts_as_one_log(self, tmp_path: Path):
        data = write_parts(tmp_path / "data", "1K")
        with (data / PARTS["1K"][1]).open("a") as part:
            part.write(NAMES + "\n")
        with pytest.raises(
            InputError, match=r"5_08_1k\.csv: 1 of 2 rows \(50 %\) is malformed: line 3: timestamp='time_ms'"
        ):
            KuaiRand(str(data), "1K", max_bad_share=0.3).scan()
        source = KuaiRand(str(data), "1K", max_bad_share=0.4)
        assert videos(source) == [0, 1]
        assert source.num_rows == 2
        assert [left.count for left in source.malformed] == [1]


def test_where_a_download_lies_does_not_change_the_description():
    described = KuaiRand(download_dir="a").describe()
    assert described == KuaiRand(download_dir="b").describe()
    assert described["arguments"] == {"path": None, "version": "27K", "random": False, "max_bad_share": 0.0}


def test_excerpt_has_the_counts_known_of_it(real_data, tmp_path: Path):
    source = KuaiRand(str(real_data("kuairand-excerpt/log_like_hate_kcore15.tsv.gz")))
    store = prepare(source, Filters(), tmp_path / "store")
    assert (store.num_events, store.num_users, store.num_items) == (41_828, 664, 9_359)
    assert source.num_rows == 41_828
    clicked = prepare(source, Filters(event_filter="is_click = 1"), tmp_path / "clicked")
    assert 0 < clicked.num_events < 41_828
