"""CUDA graphs on a stand-in for a GPU: they are counted, and not launched."""

from __future__ import annotations

from collections.abc import Callable

import torch

from seqrec.runs.callbacks import GraphedStep
from seqrec.training.recorder import Recorder
from tests.gpu.stand_in_device import Counts, StandInDevice


class _Records(Recorder):
    """Runs a function when it is recorded, and counts a graph when it is launched."""

    def __init__(self, device: StandInDevice | None) -> None:
        self.device = device or StandInDevice()

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        before, inside = self.device.counts, Counts()
        self.device.counts = inside
        function()
        self.device.counts = before

        def launch() -> None:
            if (counts := self.device.counts) is not None:
                counts.graphs += 1
                counts.in_graphs += inside.launches
                counts.waits += inside.waits
                counts.bytes += inside.bytes

        return launch


class StandInGraphs(GraphedStep):
    """`GraphedStep` whose graphs are counted, on a stand-in or on none: losses are those of the recording."""

    def __init__(self, device: StandInDevice | None) -> None:
        super().__init__()
        self.device = device

    def recorder(self, device: torch.device) -> Recorder:
        """Return what records the passes."""
        return _Records(self.device)
