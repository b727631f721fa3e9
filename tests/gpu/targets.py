"""Targets of a run of `tests.gpu.measure`: what it must reach on an H100 or H200, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]
FLOAT32, BFLOAT16 = ("fp32", "graphed"), ("bf16", "bf16, graphed")
HEAD = "target | wanted | found | of it | reached"


@dataclass(frozen=True)
class Target:
    """A number to reach.

    Attributes:
        name: What it is.
        wanted: The number.
        value: Returns the number of a run; None if it was not measured.
        at_most: Whether smaller numbers are better.
    """

    name: str
    wanted: float
    value: Callable[[Found], float | None]
    at_most: bool = False

    def verdict(self, found: Found) -> tuple[float | None, float | None, str]:
        """Return the number, its share of the target, above 1 if it is better, and yes, no or "not measured"."""
        value = self.value(found)
        if value is None:
            return None, None, "not measured"
        better, worse = (self.wanted, value) if self.at_most else (value, self.wanted)
        return value, better / worse if worse else None, "yes" if better >= worse else "no"


def rows_of(found: Found, part: str, **wanted: Any) -> Iterator[Found]:
    """Yield the complete results of a part that have some values."""
    for row in found["parts"].get(part, {}).get("results", ()):
        if "failure" not in row and all(row.get(key) == value for key, value in wanted.items()):
            yield row


def _seconds(
    found: Found, part: str, encoder: str, length: int, variants: tuple[str, ...], **more: Any
) -> float | None:
    """Return the seconds of a step by the fastest of some variants."""
    cell = {"encoder": encoder, "length": length, **more}
    times = [row["seconds"] for each in variants for row in rows_of(found, part, variant=each, **cell)]
    return min(times, default=None)


def _events(encoder: str, length: int, variants: tuple[str, ...]) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        seconds = _seconds(found, f"training {encoder}", encoder, length, variants)
        return None if seconds is None else found["sizes"]["batch_size"] * length / seconds / 1e6

    return value


def _ratio(length: int, width: int | None = None) -> Callable[[Found], float | None]:
    """Return the ratio of SASRec's time to MambaRec's; of the study's shapes if SASRec's width there is given."""

    def value(found: Found) -> float | None:
        parts = [f"training {each}" for each in ("SASRec", "MambaRec")] if width is None else ["study"] * 2
        own = {} if width is None else {"width": width}
        slow = _seconds(found, parts[0], "SASRec", length, FLOAT32, **own)
        fast = _seconds(found, parts[1], "MambaRec", length, FLOAT32)
        return None if slow is None or fast is None else slow / fast

    return value


def _study(encoder: str, length: int, figure: str) -> Callable[[Found], float | None]:
    """Return the share of the study's own figure, "GB" or "seconds of 5 epochs", of our best row."""

    def value(found: Found) -> float | None:
        rows = list(rows_of(found, "study", encoder=encoder, length=length))
        rows = [row for row in rows if "study" in row and (figure != "GB" or row["device_bytes"])]
        own = [row["device_bytes"] / 1e9 if figure == "GB" else row[figure] for row in rows]
        return min(own) / rows[0]["study"][figure] if own else None

    return value


def _evaluation(encoder: str) -> Callable[[Found], float | None]:
    """Return the share of the study's seconds of evaluation."""

    def value(found: Found) -> float | None:
        cell = {"encoder": encoder, "length": 1000}
        trained = [row for row in rows_of(found, "study", **cell) if "study" in row]
        judged = list(rows_of(found, "study", evaluation=True, negatives=100, **cell))
        if not trained or not judged:
            return None
        return judged[0]["seconds of evaluation"] / trained[0]["study"]["seconds of evaluation"]

    return value


def _evaluation_memory(encoder: str, length: int) -> Callable[[Found], float | None]:
    """Return the most memory of an evaluation with as many histories as a training batch, as a share of training's."""

    def value(found: Found) -> float | None:
        part, cell = f"training {encoder}", {"encoder": encoder, "length": length}
        trained = list(rows_of(found, part, variant="fp32", **cell))
        judged = list(rows_of(found, part, evaluation=True, histories=found["sizes"]["batch_size"], **cell))
        if not trained or not judged or not trained[0]["device_bytes"]:
            return None
        return judged[0]["bytes"] / trained[0]["device_bytes"]

    return value


def _idle(length: int) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        idle = [row["idle"] for row in rows_of(found, "loading", length=length, prefetch=True)]
        return idle[0] if idle else None

    return value


def _failed_tests(found: Found) -> float | None:
    """Return the tests that failed, and the files that could not be read; None if not all ran and none failed."""
    failed, passed, ended = 0, 0, True
    for part in ("tests", "tests of training"):
        rows = list(rows_of(found, part))
        counts = next((row["counts"] for row in reversed(rows) if "counts" in row), {})
        # With several processes, each of them reports the same file.
        unread = {key for row in rows for key in row if key.startswith("collecting ")}
        failed += counts.get("failed", 0) + len(unread)
        passed += counts.get("passed", 0)
        # pytest's status is 0 if all tests passed, 1 if some failed, and another one if it could not run them.
        outcome = found["parts"].get(part, {}).get("outcome")
        ended = ended and outcome == "passed" and bool(rows) and rows[-1].get("status") in (0, 1)
    return float(failed) if failed or (passed and ended) else None


TARGETS = (
    *(
        Target(f"MambaRec, 16 x {length:,}, {name}: M events/s", wanted, _events("MambaRec", length, variants))
        for length, wanted in ((1000, 3.0), (5000, 6.0))
        for name, variants in (("float32", FLOAT32), ("bf16", BFLOAT16))
    ),
    Target("SASRec / MambaRec, study's shapes, 1,000", 1.7, _ratio(1000, 50)),
    Target("SASRec / MambaRec, width 32, 5,000", 2.0, _ratio(5000)),
    Target("RecMamba, 5,000: GB, share of the study's at 1,000", 0.1, _study("RecMamba", 5000, "GB"), at_most=True),
    Target("RecMamba, 5,000: time, share", 0.05, _study("RecMamba", 5000, "seconds of 5 epochs"), at_most=True),
    *(
        Target(f"{encoder}, 1,000: {name}, share of the study's", 1.0, _study(encoder, 1000, figure), at_most=True)
        for encoder in ("SASRec", "RecMamba", "MambaRec")
        for name, figure in (("GB", "GB"), ("time", "seconds of 5 epochs"))
    ),
    Target("MambaRec, 1,000: evaluation, share of the study's", 1.0, _evaluation("MambaRec"), at_most=True),
    *(
        Target(
            f"MambaRec, {length:,}: evaluation's memory / training's", 1.0, _evaluation_memory("MambaRec", length), True
        )
        for length in (1000, 5000)
    ),
    *(Target(f"idle with prefetch, {length:,}", 0.1, _idle(length), at_most=True) for length in (1000, 5000)),
    Target("failed tests", 0.0, _failed_tests, at_most=True),
)


def target_table(found: Found) -> Any:
    """Return the table of all targets, from the content of a results file."""
    from seqrec.benchmark import harness

    cells = []
    for target in TARGETS:
        value, share, reached = target.verdict(found)
        numbers = ["" if value is None else f"{value:.3g}", "" if share is None else f"{share:.2f}"]
        cells.append([target.name, f"{'<= ' if target.at_most else '>= '}{target.wanted:g}", *numbers, reached])
    return harness.table(HEAD, cells)
