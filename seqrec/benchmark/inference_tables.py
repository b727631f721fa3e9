"""The figures of `benchmark inference`, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from seqrec.benchmark.table import aligned
from seqrec.data.prepare.memory import spoken_bytes


@dataclass(frozen=True)
class EventRow:
    """One further event behind a history of one length.

    Attributes:
        encoder: Name of the encoder.
        length: Events before it.
        step_seconds: A step from the state; the fastest.
        again_seconds: Encoding the history with the event; the fastest.
        state_bytes: Bytes of a user's state.
    """

    encoder: str
    length: int
    step_seconds: float
    again_seconds: float
    state_bytes: int

    @property
    def times_faster(self) -> float:
        """How many steps take the time of encoding again."""
        return self.again_seconds / self.step_seconds


@dataclass(frozen=True)
class SessionRow:
    """Sessions of many users in one store.

    Attributes:
        store: Name of the store.
        batch_size: Users a batch.
        step: Median seconds of a bare step of the model.
        observe: Of `observe_many` with an event of each.
        recommend: Of `recommend_many` with a request for 10 items of each.
    """

    store: str
    batch_size: int
    step: float
    observe: float
    recommend: float


@dataclass(frozen=True)
class InferenceFigures:
    """All that one run of `benchmark inference` measured.

    Attributes:
        settings: Its arguments.
        machine: Device, threads, versions.
        events: By encoder, then length.
        sessions: By store, then size of batches.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    events: list[EventRow]
    sessions: list[SessionRow]

    def as_json(self) -> str:
        """Return the figures in seconds and bytes; the attributes are the keys."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """Return the tables."""
        settings, machine = self.settings, self.machine
        title = (
            f"width {settings['d_model']}, {settings['num_items']:,} items, {machine['device']}, "
            f"{machine['threads']} threads, torch {machine['torch']}"
        )
        parts = [title]
        if self.events:
            parts.append("\n".join(aligned(self._event_table())))
        if self.sessions:
            parts.append("\n".join(aligned(self._session_table())))
        return "\n\n".join(parts)

    def _event_table(self) -> list[list[str]]:
        title = f"one further event, fastest of {self.settings['rounds']} rounds"
        rows = [[title, "events before", "step us", "of the shortest", "again us", "faster", "state"]]
        shortest: dict[str, float] = {}
        for row in self.events:
            first = shortest.setdefault(row.encoder, row.step_seconds)
            rows.append(
                [
                    row.encoder,
                    f"{row.length:,}",
                    f"{row.step_seconds * 1e6:,.0f}",
                    f"{row.step_seconds / first:.2f}",
                    f"{row.again_seconds * 1e6:,.0f}",
                    f"{row.times_faster:,.1f} x",
                    spoken_bytes(row.state_bytes),
                ]
            )
        return rows

    def _session_table(self) -> list[list[str]]:
        title = f"sessions of {self.settings['session_encoder']}, median of {self.settings['rounds']} rounds"
        rows = [[title, "users a batch", "events/s", "of bare steps", "lists/s", "ms a batch"]]
        for row in self.sessions:
            rows.append(
                [
                    row.store,
                    f"{row.batch_size:,}",
                    f"{row.batch_size / row.observe:,.0f}",
                    f"{row.step / row.observe:.2f}",
                    f"{row.batch_size / row.recommend:,.0f}",
                    f"{row.observe * 1e3:,.2f} + {row.recommend * 1e3:,.2f}",
                ]
            )
        return rows
