"""Every failure of a command in one line, with the traceback in a file."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import traceback
from pathlib import Path

from seqrec.cli.errors import in_one_line

# Start of a message of torch, Lightning or the system -> what to change.
HINTS = (
    (r"No supported gpu|No CUDA GPUs|cuda.*not available|not compiled with CUDA", "set --trainer.accelerator cpu"),
    (r"out of memory|can't allocate memory|DefaultCPUAllocator", "lower --data.batch_size or --data.max_length"),
    (r"gradient_clip", "set --trainer.gradient_clip_algorithm to norm or value"),
    (r"Invalid seed|is not in bounds|seed.*(integer|range)", "set --seed_everything to a number from 0 to 4294967295"),
    (r"val_check_interval", "set --trainer.val_check_interval to at most the batches of an epoch"),
    (r"devices", "set --trainer.devices to the number that this machine has"),
)
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
    elif _is_ours(error):
        return f"seqrec failed with {type(error).__name__}: {text}. This is a bug; please report it with {place}", 1
    else:
        hint = next((hint for pattern, hint in HINTS if re.search(pattern, text, re.IGNORECASE)), None)
        text = f"{text}; {hint}" if hint else text
    return f"{text} (traceback: {place})", 1


def _is_ours(error: BaseException) -> bool:
    """Return whether our own code raised an error of programming."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = frames[-1].filename.replace("\\", "/") if frames else ""
    return isinstance(error, _BUGS) and "/seqrec/" in inner and "/site-packages/lightning/" not in inner


def _keep_traceback(error: BaseException) -> Path:
    """Write the traceback into the run's folder if the run has one, else into a temporary file."""
    text = "".join(traceback.format_exception(error))
    folder = getattr(error, "run_folder", None)
    if folder is not None:
        try:
            file = Path(folder) / "traceback.txt"
            file.write_text(text, encoding="utf-8")
        except OSError:
            pass
        else:
            return file
    descriptor, name = tempfile.mkstemp(prefix="seqrec-traceback-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    return Path(name)
