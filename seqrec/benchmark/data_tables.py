"""The figures of `benchmark data`, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from seqrec.benchmark.table import aligned
from seqrec.data.prepare.memory import spoken_bytes


@dataclass(frozen=True)
class StageFigures:
    """One pass over the log, in a process of its own.

    Attributes:
        name: What was done.
        seconds: Time; None where it did not come to its end.
        peak_anonymous: Bytes, as in `Measurement`; None where nobody looked.
        peak_resident: Bytes, likewise.
        failure: Why it did not come to its end; None where it did.
    """

    name: str
    seconds: float | None
    peak_anonymous: int | None = None
    peak_resident: int | None = None
    failure: str | None = None


@dataclass(frozen=True)
class LoaderFigures:
    """Passes over the training batches, as `time_loader` returns them.

    Attributes:
        name: How the batches were cut.
        events: Events of a pass, without padding.
        batches: Batches of a pass.
        bytes: Bytes of their tensors.
        padding: Share of positions that hold no event.
        seconds: Time of the fastest pass.
        copy_seconds: Time of the fastest bare copy of as many bytes.
        memory: Anonymous bytes that loading added at most.
    """

    name: str
    events: int
    batches: int
    bytes: int
    padding: float
    seconds: float
    copy_seconds: float
    memory: int


@dataclass(frozen=True)
class DataFigures:
    """All that one run of `benchmark data` measured.

    Attributes:
        settings: Its arguments, sizes in bytes.
        machine: Processor cores, memory in bytes, versions.
        log_bytes: Size of the generated CSV files.
        limited_by: What the limited process was limited with.
        generated: Writing the log; None where it was there already.
        plain: The plain polars pipelines; the fastest is the yardstick.
        prepared: Ours: within the limit, then, if that was asked for, without.
        same_bytes: Whether both stores hold the same bytes; None where there is but one.
        loaders: By batch size, then by token budget.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    log_bytes: int
    limited_by: str
    generated: StageFigures | None
    plain: list[StageFigures]
    prepared: list[StageFigures]
    same_bytes: bool | None
    loaders: list[LoaderFigures]

    @property
    def yardstick(self) -> StageFigures | None:
        """The fastest plain pipeline; None where none came to its end."""
        done = [stage for stage in self.plain if stage.seconds is not None]
        return min(done, key=lambda stage: stage.seconds or 0) if done else None

    def as_json(self) -> str:
        """Return the figures with seconds and bytes; the attributes are the keys."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """Return the figures as a table with ratios: 2.00 is twice as fast as the yardstick."""
        settings, machine = self.settings, self.machine
        title = (
            f"{settings['profile']}-like log, {settings['events']:,} events, {spoken_bytes(self.log_bytes)} of CSV; "
            f"{machine['cores']} cores, {spoken_bytes(machine['memory'])}, polars {machine['polars']}"
        )
        passes = [["preparation", "seconds", "rows/s", "of plain polars", "anonymous", "resident"]]
        if self.generated is not None:
            passes.append(self._stage_row(self.generated, None))
        passes += [self._stage_row(stage, self.yardstick) for stage in (*self.plain, *self.prepared)]
        loading = [["loader", "events/s", "padding", "GB/s", "of a bare copy", "memory", "batches"]]
        loading += [_loader_row(figures) for figures in self.loaders]
        return "\n".join([title, "", *aligned(passes), "", *self._notes(), "", *aligned(loading)])

    def _notes(self) -> list[str]:
        notes = [f"{stage.name}: {stage.failure}" for stage in (*self.plain, *self.prepared) if stage.failure]
        if self.yardstick is not None:
            notes.append(f"1.00 is {self.yardstick.name}, which had no limit")
        limit = spoken_bytes(self.settings["memory_limit"])
        notes.append(f"{limit} enforced by {self.limited_by} on the whole process, imports included")
        if self.same_bytes is not None:
            same = "the same" if self.same_bytes else "OTHER"
            notes.append(f"without the limit the store has {same} bytes")
        return notes

    def _stage_row(self, stage: StageFigures, best: StageFigures | None) -> list[str]:
        memory = [
            "" if size is None else spoken_bytes(size) for size in (stage.peak_anonymous, stage.peak_resident)
        ]
        if stage.seconds is None:
            return [stage.name, "failed", "", "", *memory]
        ratio = "" if best is None or best.seconds is None else f"{best.seconds / stage.seconds:.2f}"
        rate = self.settings["events"] / stage.seconds
        return [stage.name, f"{stage.seconds:.1f}", f"{rate:,.0f}", ratio, *memory]


def _loader_row(figures: LoaderFigures) -> list[str]:
    return [
        figures.name,
        f"{figures.events / figures.seconds:,.0f}",
        f"{figures.padding:.1%}",
        f"{figures.bytes / figures.seconds / 1e9:.2f}",
        f"{figures.copy_seconds / figures.seconds:.2f}",
        spoken_bytes(figures.memory),
        f"{figures.batches:,}",
    ]
