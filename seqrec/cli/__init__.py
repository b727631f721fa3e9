"""The command line. This package imports nothing heavy before a command runs."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from seqrec.cli.commands import run_command
from seqrec.cli.last_net import line_and_status
from seqrec.cli.parsing import with_underscores
from seqrec.errors import StoppedError

__all__ = ["main"]

# Beginnings of warnings about which a user of the command line can do nothing.
_NEEDLESS = (
    # The loader reads memory-mapped arrays; more worker processes do not make it faster.
    ".*does not have many workers",
    ".*is smaller than the logging interval",
    ".*LeafSpec.*deprecated",
    # Baselines have nothing to optimise.
    ".*returned `None`",
    # A resumed run writes next to the checkpoint that it resumes from.
    "Checkpoint directory .* exists and is not empty",
    "Couldn't infer the batch indices",
    # Our callbacks log another metric in one line.
    r"Be aware that when using `ckpt_path`.*: \[(\"(BestCheckpoint|ResumableEarlyStopping)\{[^\"]*\"(, )?)+\]",
)
# Option of every command: show the traceback of a failure.
DEBUG = "--debug"


def main(args: Sequence[str] | None = None) -> None:
    """Run a command: the entry point of `seqrec`.

    Args:
        args: Words after `seqrec`; None is those of the command line.

    Example:
        >>> main(["--version"])
        seqrec 0.2.0
    """
    _silence_third_parties()
    # If the system ends the process, for example when a disk fails under a memory-mapped file, print the stack.
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    words = list(sys.argv[1:] if args is None else args)
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    try:
        run_command(words)
        # If the reader of a short output has gone, this raises here and not when Python ends.
        sys.stdout.flush()
        _leave_job()
    except BrokenPipeError:
        # The reader of the output has gone, as in `seqrec doctor | head`. Discard what is left to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        if debug or os.environ.get("SEQREC_TRACEBACK"):
            raise
        line, status = line_and_status(error, with_underscores(words))
        # Text of a stranger's file may contain characters that steer a terminal.
        sys.stderr.write(f"error: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)}\n")
        raise SystemExit(status) from None
    except SystemExit as end:
        if isinstance(end, StoppedError):
            # All processes of the job stop after the same step.
            _leave_job()
        raise SystemExit(_status(end)) from None


def _warning_in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {' '.join(str(message).split())}\n"


def _leave_job() -> None:
    # A job of several processes needs torch.
    if "torch" in sys.modules:
        from seqrec.catalogue.distributed import leave_job

        leave_job()


def _status(end: SystemExit) -> Any:
    """Return the exit status. Lightning exits with 1 after Ctrl-C, and with 0 after a SIGTERM outside of training."""
    if isinstance(end.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    # By name, since the class is loaded only if Lightning raised it.
    return 128 + signal.SIGTERM if type(end).__name__ == "SIGTERMException" else end.code


def _silence_third_parties() -> None:
    """Hide warnings about which a user of the command line can do nothing."""
    for message in _NEEDLESS:
        warnings.filterwarnings("ignore", message=message)
    warnings.formatwarning = _warning_in_one_line
    # Lightning calls jsonargparse in a way that will change, which it says by a warning of its own.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
