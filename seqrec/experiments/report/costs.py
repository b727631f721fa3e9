"""What each row costs: memory, time, parameters."""

from __future__ import annotations

from math import isnan

from seqrec.experiments.report.rows import Log, Row
from seqrec.experiments.report.tables import Entry, Table

MIB = 1 << 20


def cost_table(log: Log) -> Table | None:
    """All lengths of a log's models that are trained; None where there are none."""
    shown = [row for row in log.unchanged if row.is_trained]
    if not shown:
        return None
    return Table(
        f"costs_{log.data}",
        f"{log.data}: costs by history length",
        (
            *(
                "length",
                "model",
                "table",
                "encoder",
                "other",
                "peak MiB",
                "train s",
                "s an epoch",
                "validation s",
            ),
            *("test s", "events/s", "epochs", "steps"),
        ),
        2,
        tuple(tuple(Entry(text) for text in _cells(row)) for row in shown),
        (
            "Means over seeds. Parameters of the item table, the encoder, and what else there is, such as positions",
            "Peak memory: on a GPU that of tensors, on a CPU all that the process holds, libraries included",
            "Seconds with the device synchronised: of training, reading included, validation and checkpoints not; of "
            "all validations; of the test. Events/s are those trained on by the seconds of training. Of an epoch: of "
            "whole ones",
            *log.terms(shown),
        ),
    )


def _cells(row: Row) -> list[str]:
    return [
        f"{row.length:,}",
        row.name,
        *(f"{row.runs[0][f'{part}_parameters']:,}" for part in ("table", "encoder", "other")),
        f"{row.mean('peak_memory') / MIB:,.0f}",
        f"{row.mean('train_seconds'):,.1f}",
        "" if isnan(row.epoch_seconds) else f"{row.epoch_seconds:,.1f}",
        f"{row.mean('validation_seconds'):,.1f}",
        f"{row.mean('test_seconds'):,.2f}",
        f"{row.mean('events_per_second'):,.0f}",
        row.span("epochs"),
        row.span("steps"),
    ]
