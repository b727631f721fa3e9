"""Limits of requests to a server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seqrec.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits of a request's size, of the number of requests, and of waiting times.

    Args:
        max_k: Most items that are recommended to a user; never more than the catalogue has.
        max_history: Most items of a history or a block list in a request.
        max_events: Most events of a request.
        max_body_bytes: Largest body of a request.
        max_requests: Most requests in progress at a time, of all clients; more are answered 503 at once.
        max_batch: Most requests that the model processes together.
        batch_wait_ms: Longest time that a request waits for others; it waits only while others arrive.
        body_seconds: Longest time that a client may take to send a body.
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
            raise InputError(f"batch_wait_ms={self.batch_wait_ms} must be between 0 and 1000")
