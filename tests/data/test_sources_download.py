from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from seqrec.data.progress import Progress
from seqrec.data.sources import ML1M
from seqrec.data.sources.download import download, extract
from seqrec.errors import InputError, MissingInputError

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class FileServer(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /file and nothing elsewhere; notes the `Range` of each request.

    Attributes:
        knows_ranges: Whether it sends a part where one is asked for.
        breaks_after: Bytes after which each connection is cut; None cuts none.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.knows_ranges = True
        self.breaks_after: int | None = None
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        if self.path != "/file":
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked and self.server.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.server.breaks_after])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


class TestDownload:
    def test_file_arrives_whole_and_progress_is_told(self, server: FileServer, tmp_path: Path):
        told: list[str] = []
        download(server.url, tmp_path / "new" / "file", MD5, Progress(told.append))
        assert (tmp_path / "new" / "file").read_bytes() == CONTENT
        assert not (tmp_path / "new" / "file.part").exists()
        assert told[0] == "downloading file ..."
        assert re.fullmatch(rf"downloading file: {len(CONTENT):,} bytes, \d+\.\d s, [\d,]+ bytes/s", told[-1])

    def test_what_is_there_is_not_fetched(self, server: FileServer, tmp_path: Path):
        (tmp_path / "file").write_bytes(b"x")
        download(server.url, tmp_path / "file", MD5, None)
        assert server.ranges == []

    def test_a_broken_download_is_gone_on_with(self, server: FileServer, tmp_path: Path):
        server.breaks_after = 500_000
        told: list[str] = []
        download(server.url, tmp_path / "file", MD5, Progress(told.append))
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert server.ranges == [None, "bytes=500000-", "bytes=1000000-"]
        assert sum("resuming at 0.5 MB" in line for line in told) == 1

    def test_a_connection_that_brings_nothing_ends_it_and_keeps_what_came(self, server: FileServer, tmp_path: Path):
        (tmp_path / "file.part").write_bytes(CONTENT[:700_000])
        server.breaks_after = 0
        with pytest.raises(MissingInputError, match=r"failed \(the connection ended early\); try again, which resumes"):
            download(server.url, tmp_path / "file", MD5, None)
        assert (tmp_path / "file.part").read_bytes() == CONTENT[:700_000]
        assert not (tmp_path / "file").exists()
        server.breaks_after = None
        download(server.url, tmp_path / "file", MD5, None)
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert server.ranges == ["bytes=700000-"] * 2

    def test_a_server_without_ranges_sends_all_again(self, server: FileServer, tmp_path: Path):
        server.knows_ranges = False
        (tmp_path / "file.part").write_bytes(b"x" * 700_000)
        download(server.url, tmp_path / "file", MD5, None)
        assert (tmp_path / "file").read_bytes() == CONTENT

    def test_a_part_that_holds_all_is_taken(self, server: FileServer, tmp_path: Path):
        (tmp_path / "file.part").write_bytes(CONTENT)
        download(server.url, tmp_path / "file", MD5, None)
        assert (tmp_path / "file").read_bytes() == CONTENT

    def test_another_file_is_refused_and_removed(self, server: FileServer, tmp_path: Path):
        # The beginning of another file: only the whole's digest tells.
        (tmp_path / "file.part").write_bytes(b"x" * 700_000)
        with pytest.raises(InputError, match=rf"has md5 [0-9a-f]{{32}}, expected {MD5}; the download was removed"):
            download(server.url, tmp_path / "file", MD5, None)
        assert not list(tmp_path.glob("file*[!k]"))
        download(server.url, tmp_path / "file", MD5, None)
        assert (tmp_path / "file").read_bytes() == CONTENT

    def test_what_the_server_has_not_is_named(self, server: FileServer, tmp_path: Path):
        url = server.url.replace("file", "none")
        with pytest.raises(MissingInputError, match=rf"HTTP Error 404.*fetch {url} by other means and give its place"):
            download(url, tmp_path / "file", MD5, None)

    def test_where_no_server_is_it_says_where_to_get_the_file(self, tmp_path: Path):
        with pytest.raises(MissingInputError, match=r"file does not exist and downloading it failed .*refused"):
            download("http://127.0.0.1:9/file", tmp_path / "file", MD5, None)

    def test_source_downloads_once(self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("seqrec.data.sources.ml_1m.URL", server.url)
        monkeypatch.setattr("seqrec.data.sources.ml_1m.MD5", MD5)
        source = ML1M(download_dir=str(tmp_path))
        assert source.files() == []
        for _ in range(2):
            with pytest.raises(InputError, match=r"ml-1m\.zip is not a readable zip file"):
                source.scan()
        assert len(server.ranges) == 1


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


class TestExtract:
    MEMBERS: ClassVar = {"K/LICENSE": b"no", "K/data/a.csv": b"a" * 3000, "K/data/b.csv": b"b" * 3000}

    def test_files_of_the_names_are_taken_and_no_others(self, tmp_path: Path):
        path = archive(tmp_path / "k.tar.gz", self.MEMBERS)
        told: list[str] = []
        files = extract(path, ["b.csv", "a.csv"], tmp_path / "K", Progress(told.append))
        assert files == [tmp_path / "K" / "b.csv", tmp_path / "K" / "a.csv"]
        assert [file.read_bytes()[:1] for file in files] == [b"b", b"a"]
        assert sorted(file.name for file in (tmp_path / "K").glob("[!.]*")) == ["a.csv", "b.csv"]
        assert [line.split(", ")[0] for line in told[1::2]] == [f"extracting {x}.csv: 3,000 bytes" for x in "ab"]

    def test_what_is_there_is_not_taken_again(self, tmp_path: Path):
        path = archive(tmp_path / "k.tar.gz", self.MEMBERS)
        (tmp_path / "K").mkdir()
        (tmp_path / "K" / "a.csv").write_bytes(b"mine")
        extract(path, ["a.csv", "b.csv"], tmp_path / "K", None)
        assert (tmp_path / "K" / "a.csv").read_bytes() == b"mine"
        path.unlink()
        extract(path, ["a.csv", "b.csv"], tmp_path / "K", None)

    def test_an_extraction_that_was_cut_short_is_made_up_for(self, tmp_path: Path):
        # Content that does not compress, so that the first file is whole in the first half of the archive.
        content = {f"K/{name}.csv": hashlib.shake_128(name.encode()).digest(200_000) for name in "ab"}
        path = archive(tmp_path / "k.tar.gz", content)
        whole = path.read_bytes()
        path.write_bytes(whole[:300_000])
        with pytest.raises(InputError, match=r"k\.tar\.gz cannot be extracted to .*K: "):
            extract(path, ["a.csv", "b.csv"], tmp_path / "K", None)
        assert (tmp_path / "K" / "a.csv").read_bytes() == content["K/a.csv"]
        assert not (tmp_path / "K" / "b.csv").exists()
        path.write_bytes(whole)
        extract(path, ["a.csv", "b.csv"], tmp_path / "K", None)
        assert (tmp_path / "K" / "b.csv").read_bytes() == content["K/b.csv"]
        assert not list((tmp_path / "K").glob("*.part"))

    @pytest.mark.parametrize("member", ["../a.csv", "/tmp/a.csv", "K/../../a.csv"])
    def test_nothing_is_written_outside_the_folder(self, tmp_path: Path, member: str):
        folder = tmp_path / "x" / "K"
        extract(archive(tmp_path / "k.tar.gz", {member: b"1"}), ["a.csv"], folder, None)
        assert list(tmp_path.rglob("a.csv")) == [folder / "a.csv"]

    def test_a_link_is_no_file(self, tmp_path: Path):
        with tarfile.open(tmp_path / "k.tar.gz", "w:gz") as out:
            link = tarfile.TarInfo("a.csv")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            out.addfile(link)
        with pytest.raises(InputError, match=r"k\.tar\.gz contains no a\.csv; is it the archive of another version"):
            extract(tmp_path / "k.tar.gz", ["a.csv"], tmp_path / "K", None)

    @pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: b"no archive", gzip.compress])
    def test_a_damaged_archive_is_refused(self, tmp_path: Path, damage: Callable[[bytes], bytes]):
        path = archive(tmp_path / "k.tar.gz", self.MEMBERS)
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(InputError, match=r"k\.tar\.gz (cannot be extracted to|contains no none\.csv)"):
            extract(path, ["none.csv"], tmp_path / "K", None)
