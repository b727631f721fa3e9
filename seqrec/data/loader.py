"""The loader of batches, and its processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from torch.utils.data import DataLoader

from seqrec.data.sampler import BatchSampler
from seqrec.types import SequenceBatch


class ResumableLoader(DataLoader[SequenceBatch]):
    """A loader that can start in the middle of an epoch, which Lightning tells by these two methods.

    Where it starts is the data module's state: the loader itself fetches ahead of what has been trained on.
    """

    sampler: BatchSampler

    def __iter__(self) -> Any:
        """Batches; a loader process that is gone shows within 5 s, where the next one is asked for, and nowhere else.

        torch would also raise wherever the run happens to be, as in the middle of a checkpoint.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not self.num_workers or not in_main_thread or not hasattr(signal, "SIGCHLD"):
            return super().__iter__()
        before = signal.getsignal(signal.SIGCHLD)
        try:
            return super().__iter__()
        finally:
            signal.signal(signal.SIGCHLD, before)

    def state_dict(self) -> dict[str, Any]:
        """Nothing; see `SequenceDataModule.state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; see `SequenceDataModule.load_state_dict`."""


def outlive_signals(worker: int) -> None:
    """Let a loader process live on where a terminal or a cluster sends its run's signals to all processes.

    The run finishes its step, which it could not do without its loader, and then ends the loader by a SIGTERM of its
    own. Loaders also end by themselves when the run is gone. Where a process cannot see who sent a signal (macOS,
    Windows), SIGTERM ends it as ever.

    Args:
        worker: Number of the process; a loader's `worker_init_fn` gets it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Only a signal that is blocked in all threads waits for the one that asks whose it is.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_the_run, args=(os.getppid(),), daemon=True).start()


def _end_with_the_run(run: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
