"""The figures of `benchmark catalogue`, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from seqrec.benchmark.table import aligned
from seqrec.data.prepare.memory import spoken_bytes


@dataclass(frozen=True)
class CatalogueFigures:
    """Training steps of one objective and optimiser at one size of the catalogue.

    Attributes:
        num_items: Items of the catalogue.
        objective: Name of the objective.
        optimizer: Name of the optimiser.
        seconds: The fastest step; None where it did not run.
        peak_bytes: Most memory of the whole process (on CUDA, of its tensors); None where it did not run.
        failure: Why it did not run.
    """

    num_items: int
    objective: str
    optimizer: str
    seconds: float | None
    peak_bytes: int | None
    failure: str | None = None


def as_json(settings: dict[str, Any], figures: list[CatalogueFigures]) -> str:
    """Return settings and figures; the attributes are the keys."""
    return json.dumps({"settings": settings, "figures": [asdict(each) for each in figures]}, indent=2)


def as_text(settings: dict[str, Any], figures: list[CatalogueFigures]) -> str:
    """Return a table: step time and memory, each step as a multiple of the same one at the smallest catalogue."""
    title = (
        f"training step, {settings['encoder']} width {settings['d_model']}, batch {settings['batch_size']} x "
        f"{settings['length']}, fastest of {settings['steps']} on {settings['device']}"
    )
    rows = [["objective, optimizer", "items", "ms a step", "of the smallest", "peak memory"]]
    first: dict[tuple[str, str], float] = {}
    for each in figures:
        name = f"{each.objective}, {each.optimizer}"
        if each.seconds is None:
            rows.append([name, f"{each.num_items:,}", "did not run", "", ""])
            continue
        base = first.setdefault((each.objective, each.optimizer), each.seconds)
        rows.append(
            [
                name,
                f"{each.num_items:,}",
                f"{each.seconds * 1e3:,.0f}",
                f"{each.seconds / base:.2f}",
                "" if each.peak_bytes is None else spoken_bytes(each.peak_bytes),
            ]
        )
    notes = [f"{e.objective}, {e.optimizer}, {e.num_items:,}: {e.failure}" for e in figures if e.failure]
    return "\n".join([title, "", *aligned(rows), *notes])
