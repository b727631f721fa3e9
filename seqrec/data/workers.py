"""What loader processes do with signals that are meant for the run."""

from __future__ import annotations

import os
import signal
from types import FrameType


def outlive_signals(worker: int) -> None:
    """Let a loader process live on where a terminal or a cluster sends its run's signals to all processes.

    The run ends after its step and ends its loader then; with its loader gone it could not finish the step. A second
    SIGTERM ends the process, which is how the run gets rid of one that hangs. Loaders end by themselves when the run is
    gone.

    Args:
        worker: Number of the process; a loader's `worker_init_fn` gets it.
    """

    def live_on_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, live_on_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
