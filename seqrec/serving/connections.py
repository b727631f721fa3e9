"""Connections of a server: how many, how long they may wait, and how much is logged about them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics

_LOG = logging.getLogger(__name__)
# Connections accepted before the event loop turns to others.
ACCEPT_AT_ONCE = 16
ACCEPT_AGAIN_SECONDS = 0.05
# Of answers that a client has not read, in the system; by default this grows to megabytes a connection.
SEND_BUFFER_BYTES = 1 << 17
# h11 gets so many bytes at a time, as it checks the size of a head only when it needs more.
PIECE_BYTES = 1 << 13
# uvicorn's own timer is never due: it ends with the first byte of the next head.
NEVER = 10**9


def refusal(status: int, phrase: str, reason: str) -> bytes:
    """Return a whole HTTP answer that closes the connection."""
    body = json.dumps({"error": reason}).encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


TOO_MANY = refusal(503, "Service Unavailable", "all connections are in use; try again in a second")


class LimitedProtocol(H11Protocol):
    """A connection that is closed if its client is idle, sends a head too slowly, or does not read.

    It is in one of four phases. `idle`: no byte of a request has come. `head`: a head has begun, or the rest of a body
    follows that the answer did not wait for. `send`: the client has not read all that was sent. None: a request is in
    progress, whose body `Guard` receives. The limits are the longest time of each, and the largest head.
    """

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], *, limits: Limits, pool: Listener
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.timeout_keep_alive = NEVER
        self._limits, self._pool = limits, pool
        self._phase: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        # To be told of any byte that the client has not read.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the pool."""
        self._enter(None)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._pool.lost()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of requests."""
        for begin in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                break
            super().data_received(data[begin : begin + PIECE_BYTES])
        self._watch()

    def eof_received(self) -> None:
        """Send what the client has not read yet; it may have closed only its own side."""
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._unsent = True
        self._watch()

    def resume_writing(self) -> None:
        """Continue after the client has read everything."""
        super().resume_writing()
        self._unsent = False
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or a head that is too large."""
        if self.cycle is not None:
            # Its answer would follow ours.
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.close("invalid")
        elif len(self.conn.trailing_data[0]) > self._limits.max_head_bytes:
            reason = f"the head of the request is larger than {self._limits.max_head_bytes:,} bytes"
            self.close("large_head", refusal(431, "Request Header Fields Too Large", reason))
        else:
            self.close("invalid", refusal(400, "Bad Request", "this is not an HTTP/1.1 request"))

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a request to upgrade is answered as any other."""

    def close(self, why: str, answer: bytes = b"") -> None:
        """Close the connection, after a last answer, and count the reason."""
        self._pool.metrics.closed(why)
        if answer:
            self.transport.write(answer)
        self.transport.close()

    def abort(self, why: str) -> None:
        """Close the connection without waiting for the client to read, and count the reason."""
        self._enter(None)
        self._pool.metrics.closed(why)
        self.transport.abort()

    def _watch(self) -> None:
        """Enter the phase that the connection is in."""
        if self._unsent:
            self._enter("send")
        elif self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._enter(None)
        elif self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._enter("head")
        else:
            self._enter("idle")

    def _enter(self, phase: str | None) -> None:
        if phase == self._phase:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._phase = phase
        self._pool.waiting.pop(self, None)
        if phase is not None:
            self._pool.waiting[self] = None
            self._timer = self.loop.call_later(getattr(self._limits, f"{phase}_seconds"), self._late, phase)

    def _late(self, phase: str) -> None:
        if phase == "send":
            self.abort("not_reading")
        elif phase == "idle":
            self.close("idle")
        else:
            reason = f"the head took longer than {self._limits.head_seconds:g} s to arrive"
            self.close("slow_head", refusal(408, "Request Timeout", reason))


class Listener:
    """Accepts connections up to a limit, in the place of an `asyncio.Server` of uvicorn.

    `make_protocol` makes the protocol of a new connection, given this object.

    Attributes:
        waiting: Connections that wait for their client, the longest waiting first.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        limits: Limits,
        metrics: Metrics,
        make_protocol: Callable[[Listener], asyncio.Protocol],
    ) -> None:
        self.metrics = metrics
        self.waiting: dict[LimitedProtocol, None] = {}
        self._socket = listening
        self._limits = limits
        self._make_protocol = make_protocol
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        listening.setblocking(False)
        self._start()

    def lost(self) -> None:
        """Count a connection that has ended."""
        self._open -= 1
        self.metrics.connections.set(self._open)

    def close(self) -> None:
        """Accept no more connections; those that are open stay."""
        self._closed = True
        self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """Return at once: uvicorn waits for the connections itself."""

    def _start(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            full = self._open >= self._limits.max_connections
            if full and not self.waiting and self._tasks:
                return  # Those just accepted are known to wait at the next turn of the loop.
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._cannot_accept(error)
                return
            connection.setblocking(False)
            if full and not self._make_room():
                self._refuse(connection)
                continue
            self._open += 1
            self.metrics.connections.set(self._open)
            task = self._loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            # Or the second part of an answer waits some 40 ms until the client has acknowledged the first. asyncio
            # sets it for sockets that know their protocol only.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(lambda: self._make_protocol(self), connection)
        except OSError:
            connection.close()
            self.lost()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its client; returns whether there was one."""
        for connection in self.waiting:
            connection.abort("room_for_another")
            return True
        return False

    def _refuse(self, connection: socket.socket) -> None:
        self.metrics.closed("too_many")
        with contextlib.suppress(OSError):
            connection.send(TOO_MANY)
        connection.close()

    def _cannot_accept(self, error: OSError) -> None:
        """Wait a moment before the next try: the socket stays readable, and the loop would do nothing else."""
        self.metrics.closed("cannot_accept")
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            for _ in range(ACCEPT_AT_ONCE):
                self._make_room()
        _LOG.warning("cannot accept connections: %s; lower --max_connections or raise `ulimit -n`", error)
        self._loop.remove_reader(self._socket)
        self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._start)


class LinesPerMinute(logging.Filter):
    """Lets through `most` log lines of a kind per minute, so that clients cannot fill a disk.

    Lines are of a kind if they come from one logger with the same text, before its values are put in. The last one says
    that further ones are left out.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._counts: dict[tuple[str, str], int] = {}
        self._until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a line."""
        now = time.monotonic()
        if now >= self._until:
            self._counts, self._until = {}, now + 60
        kind = (record.name, str(record.msg).split("\n", 1)[0][:100])
        # Beyond some kinds all are one, as texts that clients choose would be a kind each.
        kind = kind if kind in self._counts or len(self._counts) < 100 else ("", "")
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count == self.most:
            record.msg = f"{record.msg} (further lines like this are left out for up to a minute)"
        return count <= self.most


FEW_LINES, ONE_LINE = LinesPerMinute(10), LinesPerMinute(1)


def limit_log_lines() -> None:
    """Limit the lines per minute of all loggers that clients can make write."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(FEW_LINES)
    _LOG.addFilter(ONE_LINE)
