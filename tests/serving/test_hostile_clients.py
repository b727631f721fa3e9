"""`seqrec serve` while clients without a token hold connections, send endless heads, and read nothing."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from forked_commands import ForkedCommand
from served_processes import AUTHORIZED, TIMEOUT, resident_bytes, server

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
IDLE, SLOW, NOT_READING = 1000, 200, 48
HEAD = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n"
ASK = HEAD + f"Authorization: {AUTHORIZED['Authorization']}\r\n\r\n".encode()
MIB = 1 << 20


@pytest.fixture(autouse=True)
def files_for_many_connections() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000:
        pytest.skip(f"the system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def connections(url: str, count: int) -> Iterator[list[socket.socket]]:
    address = urlsplit(url)
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=TIMEOUT))
            for _ in range(count)
        ]


def still_open(held: list[socket.socket]) -> int:
    """How many the server has not closed; what it sent is read."""
    count = 0
    for connection in held:
        connection.setblocking(False)
        try:
            while connection.recv(1 << 20):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


@contextmanager
def repeated(action, seconds: float) -> Iterator[None]:
    """Do something again and again in a thread."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def use(url: str, seconds: float) -> dict[str, list[float]]:
    """Be an ordinary client for some seconds; returns the latencies of each route."""
    taken: dict[str, list[float]] = {"/live": [], "/observe": [], "/recommend": []}
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, headers=AUTHORIZED, timeout=10) as client:
        for user in range(100_000):
            if time.monotonic() > end:
                break
            for path, body in (
                ("/live", None),
                ("/observe", {"user": user, "item": 1}),
                ("/recommend", {"user": user, "k": 5}),
            ):
                begin = time.perf_counter()
                response = client.get(path) if body is None else client.post(path, json=body)
                # Item 1 may not be in the catalogue: then both say so.
                assert response.status_code < 500, response.text
                taken[path].append(time.perf_counter() - begin)
    return taken


def shown(taken: dict[str, list[float]]) -> str:
    parts = []
    for path, values in taken.items():
        ordered = sorted(values)
        p50, p99 = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
        parts.append(f"{path} {len(values)} times, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return "; ".join(parts)


def log_bytes(folder: Path) -> int:
    return (folder / "errors.txt").stat().st_size


def test_others_are_served_while_connections_are_held(checkpoint: Path, tmp_path: Path):
    limits = ("--idle_seconds", "3", "--head_seconds", "3", "--send_seconds", "2", "--max_requests", "40")
    with server(checkpoint, tmp_path, *limits, forked=True) as (process, url):
        quiet = use(url, 1.5)
        before = resident_bytes(process)
        with connections(url, NOT_READING) as readers, connections(url, SLOW) as slow, connections(url, IDLE) as idle:
            for reader in readers:
                reader.setblocking(False)
                with suppress(OSError):
                    reader.send(ASK * 200)

            def drip() -> None:
                for connection in slow:
                    with suppress(OSError):
                        connection.send(b"b")

            for connection in slow:
                connection.sendall(HEAD + b"X-a: ")
            with repeated(drip, 0.5):
                held = use(url, 4)
            grown = resident_bytes(process) - before
            deadline = time.monotonic() + TIMEOUT
            while (left := [still_open(held) for held in (idle, slow, readers)]) != [0, 0, 0]:
                assert time.monotonic() < deadline, left  # a loaded machine cuts them later
                time.sleep(0.2)
        print(f"\nquiet: {shown(quiet)}\nheld: {shown(held)}\nmemory +{grown / MIB:.0f} MiB")
        assert len(held["/live"]) > 20
        assert sorted(held["/live"])[len(held["/live"]) // 2] < 0.1
        assert grown < 128 * MIB
    assert log_bytes(tmp_path) < 10_000


@pytest.mark.parametrize("line", [b"X-a: " + b"a" * 16_000 + b"\r\n", b"a: b\r\n" * 2000], ids=["long", "short"])
def test_heads_without_end_are_cut_and_take_no_memory(checkpoint: Path, tmp_path: Path, line: bytes):
    with server(checkpoint, tmp_path, forked=True) as (process, url):
        httpx.get(f"{url}/live")
        before = resident_bytes(process)
        sent = 0
        for _ in range(20):
            with connections(url, 1) as (endless,), suppress(OSError):
                endless.sendall(HEAD)
                for _ in range(64 * MIB // len(line)):
                    endless.sendall(line)
                    sent += len(line)
        assert sent < 20 * 16 * MIB  # what the system's buffers take
        assert resident_bytes(process) - before < 32 * MIB
        assert httpx.get(f"{url}/live").status_code == 200
    assert log_bytes(tmp_path) < 10_000


def open_files(process: ForkedCommand) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def test_a_server_whose_descriptors_are_used_up_serves_on(checkpoint: Path, tmp_path: Path):
    with server(checkpoint, tmp_path, forked=True) as (process, url):
        httpx.get(f"{url}/live")
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        # Below the limit of connections, as if something else had opened files.
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files(process) + 20, hard))
        with connections(url, 100):
            for _ in range(3):
                assert httpx.get(f"{url}/live", timeout=10).status_code == 200
            use(url, 0.5)
        response = httpx.get(f"{url}/metrics", headers=AUTHORIZED)
        assert 'seqrec_connections_closed_total{reason="cannot_accept"}' in response.text
    lines = (tmp_path / "errors.txt").read_text().splitlines()
    assert 1 <= len(lines) <= 2
    assert "cannot accept connections: [Errno 24] Too many open files" in lines[0]


def test_too_few_descriptors_are_refused_in_one_line(checkpoint: Path, tmp_path: Path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))"
    words = ("serve", "--ckpt", str(checkpoint), "--port", "0")
    found = ForkedCommand(tmp_path, *words, log=tmp_path / "log.txt", code=code)
    assert found.wait(TIMEOUT) == 2
    (line,) = (tmp_path / "log.txt").read_text().splitlines()
    assert "max_connections=2048 needs 2176 open files, and the system allows 512" in line
    assert "give --max_connections 384" in line
