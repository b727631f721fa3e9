"""What loader processes do with signals that are meant for the run."""

from __future__ import annotations

import os
import signal
import threading


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
