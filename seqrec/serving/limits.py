"""What requests may ask of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seqrec.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, how many may wait, and how long.

    Args:
        max_k: Most items that are recommended to a user; never more than the catalogue has.
        max_history: Most items of a history or a block list in a request.
        max_events: Most events of a request.
        max_body_bytes: Largest body of a request.
        max_requests: Requests in work at a time, of all clients; more are answered 503 at once.
        max_batch: Requests that the model works on together.
        batch_wait_ms: Longest time that a request waits for others; it waits only while others come in.
        body_seconds: Time that a client has to send a body.
        stop_seconds: Time that requests in work have to end once the server is told to stop.
    """

    max_k: int = 1000
    max_history: int = 10_000
    max_events: int = 1000
    max_body_bytes: int = 1 << 20
    max_requests: int = 1024
    max_batch: int = 64
    batch_wait_ms: float = 1.0
    body_seconds: float = 10.0
    stop_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_k", "max_history", "max_events", "max_body_bytes", "max_requests", "max_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("body_seconds", "stop_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} must be a number of seconds above 0")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise InputError(f"batch_wait_ms={self.batch_wait_ms} must lie between 0 and 1000")
