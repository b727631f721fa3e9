"""The loader of a data module's batches, and its worker processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
from torch.utils.data import DataLoader

from seqrec.data.prefetch import PrefetchedBatches
from seqrec.data.sampler import BatchSampler
from seqrec.types import SequenceBatch


class ResumableLoader(DataLoader[SequenceBatch]):
    """A loader that can start in the middle of an epoch. Lightning recognizes it by `state_dict`.

    The position is the data module's state, because the loader fetches batches before they are trained on.

    Attributes:
        device: Device to which a thread copies batches ahead of their steps; None makes each when it is asked for.
    """

    sampler: BatchSampler
    device: torch.device | None = None
    _ahead: PrefetchedBatches | None = None

    def __iter__(self) -> Any:
        """Return an iterator over batches. If a worker has died, the next batch raises an error within 5 s.

        torch's handler of SIGCHLD is removed. It would raise at any point of the run, even within a checkpoint.
        """
        if self.device is None:
            return self._batches()
        # Of an epoch that was left early, whose iterator torch uses again.
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = PrefetchedBatches(self._batches(), self.device)
        return self._ahead

    def _batches(self) -> Any:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not self.num_workers or not in_main_thread or not hasattr(signal, "SIGCHLD"):
            return super().__iter__()
        before = signal.getsignal(signal.SIGCHLD)
        try:
            return super().__iter__()
        finally:
            signal.signal(signal.SIGCHLD, before)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; see `SequenceDataModule.state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing; see `SequenceDataModule.load_state_dict`."""


def outlive_signals(worker: int) -> None:
    """Keep a worker alive if a terminal or a cluster sends its run's signals to all processes.

    The run needs its workers to finish its step. Then it ends them by a SIGTERM of its own. Workers also end by
    themselves if the run is gone. If a process cannot see the sender of a signal (macOS, Windows), any SIGTERM ends
    it.

    Args:
        worker: Number of the worker, for use as a loader's `worker_init_fn`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # A signal must be blocked in all threads to wait for the thread that checks its sender.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, args=(os.getppid(),), daemon=True).start()


def _end_with_the_run(run: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
