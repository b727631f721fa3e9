"""Metrics of a server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from seqrec.inference.sessions import StoreSizes

LATENCY_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of one server; several servers of a process have separate ones."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("seqrec_requests", "Requests answered.", ("route", "status"), registry=self._registry)
        self._seconds = Histogram(
            "seqrec_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("route",),
            buckets=LATENCY_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "seqrec_batch_size",
            "Requests that the model processed together.",
            ("work",),
            buckets=BATCH_SIZES,
            registry=self._registry,
        )
        self.events = Counter("seqrec_observed_events", "Events observed and kept.", registry=self._registry)
        self.in_progress = Gauge("seqrec_requests_in_work", "Requests not answered yet.", registry=self._registry)
        self.connections = Gauge("seqrec_connections", "Open connections.", registry=self._registry)
        self._closed = Counter(
            "seqrec_connections_closed",
            "Connections that the server refused or closed, by reason.",
            ("reason",),
            registry=self._registry,
        )
        gauges = {
            "users": "Users with a session.",
            "state_bytes": "Bytes of all sessions, without events.",
            "event_bytes": "Bytes of the events that are kept to make sessions again.",
            "dropped_sessions": "Sessions that a limit of the store dropped.",
            "rebuilt_sessions": "Sessions that were made again from their events since the model was loaded.",
            "rebuilt_share": "Share of the sessions of the model before that were made again.",
        }
        self._sessions = {name: Gauge(f"seqrec_{name}", text, registry=self._registry) for name, text in gauges.items()}

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer `seconds` after the request arrived; `route` is one of few, as each gets its own counter."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, work: str, size: int) -> None:
        """Count a batch of `size` requests; `work` is one of few kinds."""
        self._batches.labels(work).observe(size)

    def closed(self, reason: str) -> None:
        """Count a connection that the server closed; `reason` is one of few."""
        self._closed.labels(reason).inc()

    def text(self, sizes: StoreSizes, rebuilt: int, rebuilt_share: float) -> bytes:
        """Return all counts in Prometheus' format, given what the store keeps and which sessions were made again."""
        for gauge, value in zip(self._sessions.values(), (*sizes, rebuilt, rebuilt_share), strict=True):
            gauge.set(value)
        return generate_latest(self._registry)
