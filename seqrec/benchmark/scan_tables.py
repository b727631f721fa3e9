"""The figures of `benchmark scan`, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seqrec.benchmark.table import aligned
from seqrec.data.prepare.memory import spoken_bytes

YARDSTICK = "chunked"
ATTENTION = "SASRec"
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class ScanRow:
    """One size of the scan.

    Attributes:
        length: L.
        channels: D.
        states: N.
        figures: Backend -> `seconds` and `bytes` of forward and backward.
        floor_seconds: Time to move each input, output and gradient once at the speed of a copy; None where
            nobody measured a copy.
    """

    length: int
    channels: int
    states: int
    figures: Figures
    floor_seconds: float | None = None


@dataclass(frozen=True)
class BlockRow:
    """One length of the blocks.

    Attributes:
        length: Events of each history.
        figures: Block -> `seconds` and `bytes` of forward and backward.
    """

    length: int
    figures: Figures


@dataclass(frozen=True)
class ScanFigures:
    """All that one run of `benchmark scan` measured.

    Attributes:
        settings: Its arguments.
        machine: Device, threads, versions.
        left_out: Backend, or backend and sizes, -> why it was not measured.
        scans: By length, channels, states.
        blocks: By length.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    left_out: dict[str, str]
    scans: list[ScanRow]
    blocks: list[BlockRow]

    def as_json(self) -> str:
        """Return the figures in seconds and bytes; the attributes are the keys."""
        return json.dumps(asdict(self), indent=2)

    def as_text(self) -> str:
        """Return the tables; all ratios are to the first backend or block of their row, below 1 is better."""
        machine, settings = self.machine, self.settings
        title = (
            f"forward and backward, float32, {settings['batch_size']} histories, {machine['device']}, "
            f"{machine['threads']} threads, torch {machine['torch']}"
        )
        lines = [title, "", *self._scan_table(), *(f"{name}: {why}" for name, why in self.left_out.items())]
        if self.blocks:
            lines += ["", *self._block_table(), *self._crossings()]
        return "\n".join(lines)

    def _scan_table(self) -> list[str]:
        if not self.scans:
            return []
        others = list(dict.fromkeys(name for row in self.scans for name in row.figures if name != YARDSTICK))
        has_floor = self.scans[0].floor_seconds is not None
        head = ["selective scan", "D", "N", f"{YARDSTICK} ms", "memory"]
        head += [part for name in others for part in (f"{name} time", "memory")]
        rows = [[*head, "fastest / bytes moved"] if has_floor else head]
        for row in self.scans:
            base = row.figures[YARDSTICK]
            cells = [f"L {row.length}", str(row.channels), str(row.states), *_absolute(base)]
            for name in others:
                cells += _relative(row.figures.get(name), base)
            if row.floor_seconds is not None:
                cells.append(f"{min(f['seconds'] for f in row.figures.values()) / row.floor_seconds:.1f}")
            rows.append(cells)
        return aligned(rows)

    def _block_table(self) -> list[str]:
        others = self._mamba_blocks()
        title = f"one block, width {self.settings['d_model']}"
        head = [title, f"{ATTENTION} ms", "memory"]
        rows = [head + [part for name in others for part in (f"{name} time", "memory")]]
        for row in self.blocks:
            base = row.figures[ATTENTION]
            cells = [f"L {row.length}", *_absolute(base)]
            for name in others:
                cells += _relative(row.figures[name], base)
            rows.append(cells)
        return aligned(rows)

    def _mamba_blocks(self) -> list[str]:
        return [name for name in self.blocks[0].figures if name != ATTENTION]

    def _crossings(self) -> list[str]:
        lines = []
        for name in self._mamba_blocks():
            ratios = [row.figures[name]["seconds"] / row.figures[ATTENTION]["seconds"] for row in self.blocks]
            lines.append(f"{name} {crossing_text([row.length for row in self.blocks], ratios)}")
        return lines


def crossing_text(lengths: Sequence[int], ratios: Sequence[float]) -> str:
    """From which length on a block takes less time than attention.

    Args:
        lengths: Ascending.
        ratios: Its time divided by attention's, at each length.
    """
    if ratios[-1] >= 1:
        return f"does not overtake {ATTENTION} up to {lengths[-1]:,} events"
    last_slower = max((i for i, ratio in enumerate(ratios) if ratio >= 1), default=None)
    if last_slower is None:
        return f"is faster than {ATTENTION} at every length measured"
    # Both axes are logarithmic: times are powers of the length.
    low, high = last_slower, last_slower + 1
    share = math.log(ratios[low]) / (math.log(ratios[low]) - math.log(ratios[high]))
    length = math.exp(math.log(lengths[low]) + share * math.log(lengths[high] / lengths[low]))
    return f"is faster than {ATTENTION} from about {round(length, -1):,.0f} events on"


def _absolute(figures: dict[str, float]) -> list[str]:
    return [f"{1000 * figures['seconds']:,.1f}", spoken_bytes(int(figures["bytes"]))]


def _relative(figures: dict[str, float] | None, base: dict[str, float]) -> list[str]:
    if figures is None:
        return ["", ""]
    memory = f"{figures['bytes'] / base['bytes']:.2f}" if base["bytes"] else ""
    return [f"{figures['seconds'] / base['seconds']:.3f}", memory]
