"""Connections that wait, send slowly, do not read, or are too many: they are closed, and others are served."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from served_models import error_of, model, serving

from seqrec.inference.sessions import SessionRecommender
from seqrec.serving import Limits
from seqrec.serving.app import create_app
from seqrec.serving.connections import LinesPerMinute, Listener, limit_log_lines
from seqrec.serving.metrics import Metrics

LIMITS = Limits(
    idle_seconds=0.4,
    head_seconds=0.4,
    send_seconds=0.4,
    max_head_bytes=4096,
    max_requests=2,
    stop_seconds=5,
)
HEAD = b"Host: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(SessionRecommender(model()), limits=LIMITS), LIMITS) as url:
        httpx.post(f"{url}/observe", json={"user": 1, "item": 10})
        yield url


@pytest.fixture
def connect(url: str) -> Iterator[Any]:
    """Opens connections that are closed after the test."""
    address = urlsplit(url)
    with ExitStack() as stack:

        def connect(receive_buffer: int | None = None) -> socket.socket:
            made = stack.enter_context(socket.socket())
            if receive_buffer is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            made.settimeout(10)
            made.connect((address.hostname, address.port))
            return made

        yield connect


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection, or resets it."""
    answer = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def alive(connection: socket.socket) -> bool:
    """Whether a request on the connection is answered, to its last byte."""
    connection.sendall(b"GET /live HTTP/1.1\r\n" + HEAD + b"\r\n")
    answer = b""
    while not answer.endswith(b'{"status": "live"}'):
        chunk = connection.recv(65536)
        if not chunk:
            return False
        answer += chunk
    return answer.startswith(b"HTTP/1.1 200 OK")


def closed(url: str) -> dict[str, float]:
    """Connections closed so far, by reason."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    name = 'seqrec_connections_closed_total{reason="'
    return {line[len(name) :].split('"')[0]: float(line.split()[-1]) for line in lines if line.startswith(name)}


def test_idle_connections_are_closed_before_and_after_a_request(url: str, connect):
    before = closed(url).get("idle", 0)
    begin = time.monotonic()
    silent, used = connect(), connect()
    assert alive(used)
    assert rest_of(silent) == b""
    assert rest_of(used) == b""
    assert 0.3 < time.monotonic() - begin < 5
    assert closed(url)["idle"] >= before + 2


def test_a_head_that_comes_byte_by_byte_is_given_up(url: str, connect):
    slow, begin = connect(), time.monotonic()
    slow.settimeout(0.02)
    slow.sendall(b"POST /observe HTTP/1.1\r\nX-a: ")
    answer = b""
    while not answer and time.monotonic() - begin < 5:
        try:
            slow.sendall(b"b")
            answer = slow.recv(65536)
        except TimeoutError:
            continue
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": "the head took longer than 0.4 s to arrive"}
    assert time.monotonic() - begin < 3


def test_the_rest_of_a_body_that_nobody_waits_for_is_given_up(connect):
    trickle, begin = connect(), time.monotonic()
    trickle.sendall(b"GET /live HTTP/1.1\r\nContent-Length: 1000\r\n" + HEAD + b"\r\n")
    assert trickle.recv(65536).startswith(b"HTTP/1.1 200 OK")
    trickle.settimeout(0.05)
    while time.monotonic() - begin < 5:
        try:
            trickle.sendall(b"b")
            if trickle.recv(65536).startswith(b"HTTP/1.1 408"):
                break
        except TimeoutError:
            continue
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("line", [b"X-a: " + b"a" * 10_000, b"a: b\r\n" * 5000 + b"a: b"], ids=["long", "many"])
def test_heads_above_the_limit_are_refused(url: str, connect, line: bytes):
    large = connect()
    large.sendall(b"GET /live HTTP/1.1\r\n" + HEAD + line)
    # The server closes at once, and the system may drop the answer with the rest of the head.
    answer = rest_of(large)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
    assert closed(url)["large_head"] >= 1
    assert httpx.get(f"{url}/live").status_code == 200


def test_a_reader_that_does_not_read_gives_its_place_back_and_is_cut_off(url: str, connect):
    before = closed(url).get("not_reading", 0)
    # More readers than the two requests that may be in progress, and more answers than the system's buffers take.
    readers = [connect(receive_buffer=2048) for _ in range(4)]
    for reader in readers:
        reader.sendall((b"GET /openapi.json HTTP/1.1\r\n" + HEAD + b"\r\n") * 100)
    served, deadline = 0, time.monotonic() + 20
    while closed(url).get("not_reading", 0) < before + 4:
        assert time.monotonic() < deadline
        served += httpx.post(f"{url}/recommend", json={"user": 1}).status_code == 200
        time.sleep(0.05)
    # Also while they were connected, as often as the machine allows.
    assert served >= 1
    assert len(rest_of(readers[0])) > 0
    assert httpx.post(f"{url}/recommend", json={"user": 1}).status_code == 200


def test_a_new_connection_takes_the_place_of_the_one_that_waited_longest():
    limits = Limits(max_connections=10, stop_seconds=1)
    with serving(create_app(SessionRecommender(model()), limits=limits), limits) as url, ExitStack() as stack:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        idle = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(15)]
        assert httpx.get(f"{url}/live").status_code == 200
        assert closed(url)["room_for_another"] >= 6
        # The first ones were closed, and the last ones are open.
        assert rest_of(idle[0]) == b""
        assert alive(idle[-1])


def test_readers_that_do_not_read_make_room_too():
    limits = Limits(max_connections=3, send_seconds=60, stop_seconds=1)
    with serving(create_app(SessionRecommender(model()), limits=limits), limits) as url, ExitStack() as stack:
        address = (urlsplit(url).hostname, urlsplit(url).port)
        for _ in range(3):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            reader.settimeout(10)
            reader.connect(address)
            reader.sendall((b"GET /openapi.json HTTP/1.1\r\n" + HEAD + b"\r\n") * 40)
        deadline = time.monotonic() + 10
        while httpx.get(f"{url}/live").status_code != 200:
            assert time.monotonic() < deadline


def test_a_connection_beyond_the_limit_is_told_so_if_all_are_busy(url: str, connect):
    # Requests whose bodies are missing.
    heads = b"POST /observe HTTP/1.1\r\n" + HEAD + b"Content-Length: 100\r\n\r\n"
    limits = Limits(max_connections=3, stop_seconds=1)
    with serving(create_app(SessionRecommender(model()), limits=limits), limits) as own, ExitStack() as stack:
        address = urlsplit(own)
        for _ in range(3):
            busy = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=10))
            busy.sendall(heads)
            time.sleep(0.05)
        response = httpx.get(f"{own}/live")
        assert error_of(response, 503) == "all connections are in use; try again in a second"
        busy.close()
        deadline = time.monotonic() + 10
        while httpx.get(f"{own}/live").status_code != 200:
            assert time.monotonic() < deadline


def test_a_server_without_descriptors_says_so_once_and_makes_room(caplog: pytest.LogCaptureFixture):
    class Exhausted:
        """A socket that is always readable, as one is whose connections cannot be accepted."""

        tries = 0

        def __init__(self, readable: socket.socket) -> None:
            self.readable = readable

        def fileno(self) -> int:
            return self.readable.fileno()

        def setblocking(self, flag: bool) -> None:
            pass

        def accept(self) -> Any:
            self.tries += 1
            raise OSError(errno.EMFILE, "Too many open files")

    class Waiting:
        aborted = 0

        def abort(self, why: str) -> None:
            assert why == "room_for_another"
            self.aborted += 1

    limit_log_lines()

    async def main() -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.send(b"x")
            exhausted, waiting = Exhausted(ours), Waiting()
            listener = Listener(exhausted, limits=LIMITS, metrics=Metrics(), make_protocol=None)  # type: ignore
            listener.waiting[waiting] = None  # type: ignore[index]
            await asyncio.sleep(0.5)
            listener.close()
            return exhausted.tries, waiting.aborted

    with caplog.at_level(logging.WARNING):
        tries, aborted = asyncio.run(main())
    # Not at each turn of the event loop.
    assert 2 <= tries <= 20
    assert aborted >= tries
    (record,) = caplog.records
    assert "cannot accept connections: [Errno 24] Too many open files; lower --max_conn" in record.getMessage()


def test_lines_of_a_kind_are_limited_and_other_lines_are_not():
    limit = LinesPerMinute(3)

    def logged(text: str, *values: object) -> str | None:
        record = logging.LogRecord("name", logging.WARNING, "", 0, text, values, None)
        return record.getMessage() if limit.filter(record) else None

    lines = [logged("no more of %s", place) for place in range(1000)]
    assert lines[:2] == ["no more of 0", "no more of 1"]
    assert lines[2] == "no more of 2 (further lines like this are left out for up to a minute)"
    assert not any(lines[3:])
    assert logged("another line") == "another line"
    # Texts that differ each time are one kind in the end.
    assert sum(logged(f"text {place}") is not None for place in range(1000)) < 110


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /live HTTP/1.1\r\n\r\n",
        b"GET /live HTTP/1.1\r\n" + HEAD + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"POST /observe HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET /live HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /nowhere HTTP/1.1\r\n" + HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nxyz",
    ],
)
def test_what_is_not_http_is_refused_with_few_lines_in_the_log(
    url: str, connect, request_bytes: bytes, caplog: pytest.LogCaptureFixture
):
    for _ in range(15):
        wrong = connect()
        wrong.sendall(request_bytes)
        assert wrong.recv(65536).startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
        wrong.close()
    assert len(caplog.records) <= 11
    assert not any(record.exc_info for record in caplog.records), caplog.text
    assert httpx.get(f"{url}/live").json() == {"status": "live"}


def test_mangled_requests_leave_no_connection_and_no_request_behind(url: str, caplog: pytest.LogCaptureFixture):
    r, address = random.Random(0), urlsplit(url)
    event = b'{"user": 1, "item": 10}'
    whole = [
        b"GET /live HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET /live HTTP/1.0\r\n\r\n",
        b"HEAD /live HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n",
        b"GET /live HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        b"POST /observe HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 23\r\n\r\n" + event,
        b"POST /observe HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n17\r\n" + event + b"\r\n0\r\n\r\n",
    ]
    for _ in range(300):
        data = b"".join(r.choices(whole, k=r.randrange(1, 6)))
        for _ in range(r.randrange(4)):
            place = r.randrange(len(data) + 1)
            new = r.choice((b"", b"\x00", b"\r\n", b"0\r\n\r\n", b": ", b"a" * 3000))
            data = data[:place] + new + data[place + r.randrange(20) :]
        with socket.create_connection((address.hostname, address.port), timeout=10) as mangled:
            place = r.randrange(len(data) + 1)
            with suppress(OSError):
                mangled.sendall(data[:place])
                mangled.sendall(data[place:])
                if r.random() < 0.5:
                    mangled.shutdown(socket.SHUT_WR)
                    mangled.recv(65536)
    deadline, rest = time.monotonic() + 10, {"seqrec_connections 1.0", "seqrec_requests_in_work 1.0"}
    while not rest <= set(httpx.get(f"{url}/metrics").text.splitlines()):
        assert time.monotonic() < deadline
    assert not any(record.exc_info for record in caplog.records), caplog.text
