"""`seqrec serve` refuses in one line; nothing here starts a server."""

from __future__ import annotations

import importlib.util
import re
import resource
import socket
from pathlib import Path

import pytest
import torch

from seqrec.cli import main
from seqrec.errors import InputError
from seqrec.inference import load
from seqrec.inference.sessions import SessionRecommender, SQLiteStore
from seqrec.serving import Limits
from seqrec.serving.server import allow_open_files, bind, check_host, read_token, url_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TOKEN = "a-token-of-some-length"


@pytest.fixture(autouse=True)
def no_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQREC_TOKEN", raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(("serve", *words))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the argument 'ckpt' is required: give --ckpt"),
        (("--ckpt", "gone.ckpt", "--port", "0"), "--ckpt gone.ckpt: there is no such checkpoint"),
        (
            ("--ckpt", "c", "--port", "70000"),
            "port=70000 must be between 0, which takes a free one, and 65535",
        ),
        (("--ckpt", "c", "--threads", "0"), "threads=0 must be at least 1"),
        (("--ckpt", "c", "--host", "0.0.0.0"), "host=0.0.0.0 can be reached by others, .*--token_file"),
        (
            ("--ckpt", "c", "--host", "192.0.2.1", "--allow_no_token", "true"),
            "cannot listen at host=192.0.2.1",
        ),
        (("--ckpt", "c", "--device", "tpu"), "device='tpu' must be auto, cpu or cuda"),
        (
            ("--ckpt", "c", "--cuda_graphs", "true"),
            "cuda_graphs=True needs a CUDA device; give --device cuda, or leave cuda_graphs out",
        ),
        (("--ckpt", "c", "--token_file", "gone"), "token_file=gone does not exist; python -c"),
        (("--ckpt", "c", "--allowed_hosts", "a.example, http://b"), "allowed_hosts=http://b must be a name, such as"),
        (("--ckpt", "c", "--allowed_hosts", "a.example:80"), "allowed_hosts=a.example:80 must be a name, .*or a port"),
        (("--ckpt", "c", "--max_kk", "3"), "unknown argument 'max_kk'; did you mean max_k"),
        (("--ckpt", "c", "--max_events", "0"), "max_events=0 must be at least 1"),
        (
            ("--ckpt", "c", "--sessions", "SqliteStore"),
            "known: InMemoryStore, RedisStore, SQLiteStore, .*did you mean SQL",
        ),
        (
            ("--ckpt", "c", "--sessions", "SQLiteStore"),
            r"'path' is required: .*--sessions.path \(SQLiteStore\)",
        ),
        (
            ("--ckpt", "c", "--sessions", "SQLiteStore", "--sessions.path", "no/folder/u.sqlite"),
            "path=no/folder/u.sqlite is in a folder that does not exist",
        ),
    ],
)
def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str):
    assert re.search(message, refusal(capsys, *words))


def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    with bind("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        line = refusal(capsys, "--ckpt", str(checkpoint), "--port", port)
    assert re.search(rf"cannot listen at host=127.0.0.1 port={port}: .*in use.*; give another", line)


def test_weights_that_are_not_finite_are_refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["items.table.weight"][3, 1] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    line = refusal(capsys, "--ckpt", str(tmp_path / "nan.ckpt"), "--port", "0")
    assert "contains weights that are not finite" in line


def test_sessions_of_another_model_are_refused_without_events(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    model = load(checkpoint)
    torch.nn.init.normal_(next(model.encoder.parameters()).detach())
    path = str(tmp_path / "users.sqlite")
    with SessionRecommender(model, SQLiteStore(path, keep_events=0)) as sessions:
        sessions.observe("ada", model.item_vocabulary.external_ids([1])[0])
    words = ("--port", "0", "--sessions", "SQLiteStore", "--sessions.path", path)
    line = refusal(capsys, "--ckpt", str(checkpoint), *words)
    assert "the store is of another model" in line
    assert "keep_events, which SQLiteStore and RedisStore have, would have kept the events" in line


def test_a_refused_command_creates_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    words = ("--sessions", "SQLiteStore", "--sessions.path", str(tmp_path / "users.sqlite"))
    assert "there is no such checkpoint" in refusal(capsys, "--ckpt", "gone.ckpt", "--port", "0", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    find = importlib.util.find_spec
    gone = ("uvicorn", "prometheus_client")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else find(name, *rest))
    line = refusal(capsys, "--ckpt", "c")
    assert "needs uvicorn, prometheus-client, which is not installed: pip install 'seqrec[serve]'" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_needs_no_token(host: str):
    check_host(host, None, allow_no_token=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "example.org", "127.0.0.1.example.org"])
def test_other_addresses_need_a_token_or_a_word(host: str):
    with pytest.raises(InputError, match="can be reached by others"):
        check_host(host, None, allow_no_token=False)
    check_host(host, TOKEN, allow_no_token=False)
    check_host(host, None, allow_no_token=True)


def write_secret(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def test_the_token_is_the_files_or_else_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert read_token(None) is None
    monkeypatch.setenv("SEQREC_TOKEN", f"{TOKEN}-environment")
    assert read_token(None) == f"{TOKEN}-environment"
    write_secret(tmp_path / "token", f"{TOKEN}\n")
    assert read_token(str(tmp_path / "token")) == TOKEN


@pytest.mark.parametrize(("mode", "refused"), [(0o644, True), (0o604, True), (0o640, False), (0o400, False)])
def test_a_token_file_that_every_user_can_read_is_refused(tmp_path: Path, mode: int, refused: bool):
    path = tmp_path / "token"
    write_secret(path, TOKEN, mode)
    if refused:
        with pytest.raises(
            InputError, match=rf"can be read by every user of this machine .*{mode:o}.*: chmod 600 {path}"
        ):
            read_token(str(path))
    else:
        assert read_token(str(path)) == TOKEN


def test_open_files_are_allowed_up_to_the_systems_limit_and_no_further():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 500), hard))
        allow_open_files(900)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 900
        with pytest.raises(
            InputError, match=rf"needs .* the system allows {hard}: .*or give --max_connections {hard - 128}"
        ):
            allow_open_files(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("token", ["", "short", "with spaces in the token", "tökens-of-some-length"])
def test_a_weak_token_is_refused_and_not_shown(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEQREC_TOKEN", token)
    write_secret(tmp_path / "token", token)
    for file in (None, str(tmp_path / "token")):
        with pytest.raises(InputError, match="must be 16 or more printable ASCII characters") as refused:
            read_token(file)
        assert not token or token not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_k": 0}, "max_k=0 must be at least 1"),
        ({"max_body_bytes": -1}, "max_body_bytes=-1 must be at least 1"),
        ({"body_seconds": 0.0}, "body_seconds=0.0 must be a number of seconds above 0"),
        ({"stop_seconds": float("inf")}, "stop_seconds=inf must be a number"),
        ({"idle_seconds": 0.0}, "idle_seconds=0.0 must be a number of seconds above 0"),
        ({"max_head_bytes": 10}, "max_head_bytes=10 must be at least 1024"),
        ({"max_waiting_bytes": 10}, "max_waiting_bytes=10 must be at least max_body_bytes=1048576"),
        ({"batch_wait_ms": float("nan")}, "batch_wait_ms=nan must be between 0 and 1000"),
    ],
)
def test_limits_out_of_range_are_refused(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        Limits(**arguments)


def test_addresses_are_urls():
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if socket.has_ipv6:
        try:
            listener = bind("::1", 0)
        except InputError:
            pytest.skip("no IPv6 here")
        with listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
