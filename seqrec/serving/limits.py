"""Limits of requests and connections of a server."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from seqrec.errors import InputError, check_at_least


@dataclass(frozen=True)
class Limits:
    """Limits of requests and connections, of the work that the model does at a time, and of waiting times.

    Args:
        max_k: Most items that are recommended to a user; never more than the catalogue has.
        max_history: Most items of a history, of a block list or of candidates in a request.
        max_events: Most events of a request.
        max_body_bytes: Largest body of a request.
        max_waiting_bytes: Most bytes of bodies of requests in progress, of all clients; more are answered 503.
        max_request_state_bytes: Most bytes of session state that a request may change: its users times the bytes per
            user; more is answered 413.
        max_head_bytes: Largest head of a request: request line and headers.
        max_requests: Most requests in progress at a time, of all clients; more are answered 503 at once.
        max_connections: Most open connections, of all clients. If a further one comes, the one that has waited longest
            for its client is closed; if all are busy, the new one is answered 503.
        max_batch: Most requests that the model processes together.
        max_batch_events: Most events that the model processes together, unless a single request has more. Larger
            batches serve more events per second, and hold up the other requests for longer.
        batch_wait_ms: Longest time that a request waits for others; it waits only while others arrive.
        head_seconds: Longest time that a client may take to send a head, from its first byte.
        body_seconds: Longest time that a client may take to send a body.
        send_seconds: Longest time that a client may leave an answer unread; its connection is then closed.
        idle_seconds: Longest time that a connection may stay open without a request.
        ready_seconds: Longest time that the model and the session store may take to answer `/ready`.
        stop_seconds: Longest time that requests in progress may take once the server is stopping.

    Raises:
        InputError: if a value is out of range.

    Example:
        >>> from seqrec.serving import Limits
        >>> Limits(max_k=100).max_k
        100
    """

    max_k: int = 1000
    max_history: int = 10_000
    max_events: int = 1000
    max_body_bytes: int = 1 << 20
    max_waiting_bytes: int = 1 << 26
    max_request_state_bytes: int = 1 << 26
    max_head_bytes: int = 1 << 16
    max_requests: int = 1024
    max_connections: int = 2048
    max_batch: int = 64
    max_batch_events: int = 2048
    batch_wait_ms: float = 1.0
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    send_seconds: float = 10.0
    idle_seconds: float = 30.0
    ready_seconds: float = 2.0
    stop_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_at_least(1, **{name: value for name, value in asdict(self).items() if name.startswith("max_")})
        # A head of fewer bytes would refuse ordinary clients.
        check_at_least(1024, max_head_bytes=self.max_head_bytes)
        if self.max_waiting_bytes < self.max_body_bytes:
            raise InputError(
                f"max_waiting_bytes={self.max_waiting_bytes} must be at least max_body_bytes={self.max_body_bytes}"
            )
        for name, value in asdict(self).items():
            if name.endswith("_seconds") and not 0 < value < math.inf:
                raise InputError(f"{name}={value} must be a number of seconds above 0")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise InputError(f"batch_wait_ms={self.batch_wait_ms} must be between 0 and 1000")
