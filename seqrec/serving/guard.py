"""Checks before a request reaches the application: host, token, overload, type and size of the body; counts answers."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seqrec.serving.answers import RefusedError
from seqrec.serving.hosts import CLOSE, Hosts
from seqrec.serving.limits import Limits
from seqrec.serving.metrics import Metrics

# Methods whose bodies are never read. Only with these are `PROBES` and `PAGE` open to everyone.
READ_METHODS = ("GET", "HEAD")
# Answered to everyone at once: they tell nothing of users, and load balancers ask by address, without a token.
PROBES = ("/live", "/ready")
# Not refused if too many requests are in progress, as they show why.
UNLIMITED = ("/health", "/metrics")
# Replaces the model. Not held back while it does.
RELOAD = "/reload"
ROUTES = (*PROBES, *UNLIMITED, RELOAD, "/observe", "/recommend", "/similar", "/openapi.json", "/docs")
USER_ROUTE = "/users/{user}"
# With `seqrec serve --demo`. The page needs no token, as it contains nothing of the model or the users.
PAGE, DEMO_ROUTES = "/", ("/demo/about", "/demo/user")
# A body up to so many times too large is read to its end, so that the client can read the refusal.
READ_ON = 4
RETRY = {"Retry-After": "1"} | CLOSE
# Seconds between looks at whether requests have been answered.
LOOK_SECONDS = 0.002


class Gate:
    """A gate that requests to the model pass. While it is closed, they wait before it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._inside = 0

    async def enter(self) -> None:
        """Wait until the gate is open, and pass it."""
        while not self._open.is_set():  # it may be closed again before this one's turn
            await self._open.wait()
        self._inside += 1

    def leave(self) -> None:
        """Count a request that is answered."""
        self._inside -= 1

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Close the gate, and wait until those that had passed it are answered; open it in the end."""
        self._open.clear()
        try:
            while self._inside:
                await asyncio.sleep(LOOK_SECONDS)
            yield
        finally:
            self._open.set()


class Guard:
    """ASGI middleware that passes on requests with their whole body, and refuses others.

    Clients must send the token as `Authorization: Bearer <token>`; None needs none. `demo` is whether `PAGE` is served.
    Requests to the model pass the gate.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        gate: Gate,
        token: str | None = None,
        hosts: Hosts | None = None,
        demo: bool = False,
    ) -> None:
        self.app = app
        self.gate = gate
        self.limits = limits
        self.metrics = metrics
        self._token = None if token is None else token.encode()
        self._hosts = hosts or Hosts()
        self._pages = (PAGE,) if demo else ()
        self._routes = (*ROUTES, PAGE, *DEMO_ROUTES) if demo else ROUTES
        self.in_progress = 0
        self.body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        is_probe = _reads(scope, PROBES)
        request = Admission(self, limited=not is_probe)
        status = 500  # if the application fails

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # The work is done. Sending may wait for a client that does not read.
                request.end()
            await send(message)

        try:
            whole = await self._admit(scope, receive, request, is_probe)
            if not is_probe and scope["path"] not in (*UNLIMITED, RELOAD):
                await request.enter()
            await self.app(scope, whole, watched)
        except RefusedError as error:
            await error.response()(scope, receive, watched)
        finally:
            request.end()
            self.metrics.answered(self._route(scope["path"]), status, time.perf_counter() - begin)

    async def _admit(self, scope: Scope, receive: Receive, request: Admission, is_probe: bool) -> Receive:
        """Read the request's body and return a function that receives it; a `RefusedError` refuses the request."""
        headers = dict(scope["headers"])
        if not is_probe:
            self._hosts.check(headers)
            if not _reads(scope, self._pages):
                self._check_token(headers.get(b"authorization", b""))
        if self.in_progress > self.limits.max_requests and not is_probe and scope["path"] not in UNLIMITED:
            reason = f"{self.limits.max_requests} requests are already in progress; try again in a second"
            raise RefusedError(503, reason, RETRY)
        if scope["method"] != "POST":
            return receive
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            # This also refuses web pages, which cannot send JSON to another origin without its consent.
            raise RefusedError(415, "the body must be JSON; send Content-Type: application/json", CLOSE)
        body = await self._body(headers, receive, request)
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        return replay

    def _route(self, path: str) -> str:
        """Return the name under which a request is counted."""
        if path in self._routes:
            return path
        return USER_ROUTE if path.startswith("/users/") else "other"

    def _check_token(self, authorization: bytes) -> None:
        if self._token is None:
            return
        scheme, _, sent = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), self._token):
            reason = "the token is missing or wrong; send Authorization: Bearer <token>"
            raise RefusedError(401, reason, {"WWW-Authenticate": "Bearer"} | CLOSE)

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, request: Admission) -> bytes:
        largest, declared = self.limits.max_body_bytes, headers.get(b"content-length", b"")
        too_large = RefusedError(413, f"the body is larger than {largest:,} bytes; send several requests", CLOSE)
        if declared.isdigit() and int(declared[:20]) > READ_ON * largest:
            raise too_large
        body, size = bytearray(), 0
        with anyio.move_on_after(self.limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "the client closed the connection before the end of the body")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size <= largest:
                    request.hold(len(chunk))
                    body += chunk
                elif size > READ_ON * largest:
                    raise too_large
                if not message.get("more_body", False):
                    if size > largest:
                        raise too_large
                    return bytes(body)
        raise RefusedError(408, f"the body took longer than {self.limits.body_seconds:g} s to arrive", CLOSE)


def _reads(scope: Scope, paths: Sequence[str]) -> bool:
    """Return whether a request reads one of some paths; a request with a body does not."""
    return scope["path"] in paths and scope["method"] in READ_METHODS


class Admission:
    """The share of the guard's limits that a request takes until its answer begins.

    If it is not `limited`, it does not count as a request in progress.
    """

    def __init__(self, guard: Guard, *, limited: bool) -> None:
        self._guard, self._requests, self._bytes, self._is_inside = guard, int(limited), 0, False
        guard.in_progress += self._requests
        guard.metrics.in_progress.inc(self._requests)

    def hold(self, size: int) -> None:
        """Count further bytes of the body; a `RefusedError` refuses more than all requests together may hold."""
        self._bytes += size
        self._guard.body_bytes += size
        largest = self._guard.limits.max_waiting_bytes
        if self._guard.body_bytes > largest:
            raise RefusedError(503, f"the requests in progress have {largest:,} bytes; try again in a second", RETRY)

    async def enter(self) -> None:
        """Pass the gate."""
        await self._guard.gate.enter()
        self._is_inside = True

    def end(self) -> None:
        """Return the share; a second call does nothing."""
        if self._is_inside:
            self._guard.gate.leave()
            self._is_inside = False
        self._guard.in_progress -= self._requests
        self._guard.body_bytes -= self._bytes
        self._guard.metrics.in_progress.dec(self._requests)
        self._requests = self._bytes = 0
