"""Every failure of a command in one line, with the traceback in a file."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import traceback
from pathlib import Path

from seqrec.cli.errors import in_one_line
from seqrec.files import write_text

# Message of torch, Lightning or the system -> what to change. Each is tested with a message that it must not match.
HINTS = (
    (
        r"No supported gpu backend|No CUDA GPUs are available|not compiled with CUDA|Accelerator` can not run on your",
        "set --trainer.accelerator cpu",
    ),
    (r"\bout of memory\b|can't allocate memory", "lower --data.batch_size or --data.max_length"),
    (r"`gradient_clip_algorithm` \S+ is invalid", "set --trainer.gradient_clip_algorithm to norm or value"),
    (
        r"Invalid seed specified|is not in bounds, numpy accepts",
        "set --seed_everything to a number from 0 to 4294967295",
    ),
    (
        r"`val_check_interval` \(\S+\) must be less than",
        "set --trainer.val_check_interval to at most the batches of an epoch",
    ),
    (
        r"machine only has|`devices` selected with `\w+` should be",
        "set --trainer.devices to the number that this machine has",
    ),
)
PACKAGE = Path(__file__).resolve().parents[1]
_BUGS = (AssertionError, AttributeError, IndexError, KeyError, NameError, RecursionError, TypeError, ZeroDivisionError)
_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}


def line_and_status(error: BaseException) -> tuple[str, int]:
    """Return what a user should read of an exception, and the exit status: 2 for input, 1 for all other failures."""
    known = in_one_line(error)
    if known is not None:
        return " ".join(known.split()), 2
    place = _keep_traceback(error)
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    if isinstance(error, MemoryError):
        text = f"memory ran out ({text}); lower --data.batch_size or --data.memory_limit, or use a larger machine"
    elif isinstance(error, OSError) and error.errno in _WRITING:
        where = error.filename or "a file"
        text = f"{where} cannot be written: {error.strerror}; choose another folder, or allow writing there"
    elif is_ours(error):
        return f"seqrec failed with {type(error).__name__}: {text}. This is a bug; please report it with {place}", 1
    else:
        hint = next((hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE)), None)
        text = f"{type(error).__name__}: {text}" if isinstance(error, _BUGS) else f"{text}; {hint}" if hint else text
    return f"{text} (traceback: {place})", 1


def is_ours(error: BaseException) -> bool:
    """Return whether a file of this package raised an error of programming."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, _BUGS) and bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE)


def _keep_traceback(error: BaseException) -> str:
    """Write the traceback into the run's folder if the run has one, else into a temporary file, and return where."""
    text = "".join(traceback.format_exception(error))
    folder = getattr(error, "run_folder", None)
    try:
        if folder is not None and os.access(folder, os.W_OK):
            file = Path(folder) / "traceback.txt"
        else:
            descriptor, name = tempfile.mkstemp(prefix="seqrec-traceback-", suffix=".txt")
            os.close(descriptor)
            file = Path(name)
        write_text(file, text, mode=0o600)
    except OSError:
        return "by --debug"
    return str(file)
